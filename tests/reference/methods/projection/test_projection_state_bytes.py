"""State bytes: what a walk over the optimizer finds equals the formulas, on real tensors and by shapes."""

import pytest
import torch

from reference.methods.projection import llama
from reference.methods.projection.dct import DCTAdamW
from reference.methods.projection.galore import GaLoreAdamW
from reference.methods.state import state_bytes

SHAPES = [(96, 64), (64, 64), (64, 200)]


def stepped(optimizer_class, **settings):
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    vector = torch.nn.Parameter(torch.zeros(70))
    optimizer = optimizer_class([{"params": parameters, "rank": 32}, {"params": [vector]}], **settings)
    for p in [*parameters, vector]:
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("bits", [32, 8])
def test_galore_keeps_mr_plus_2nr(bits):
    want = sum(llama.galore_bytes(shape, 32, 4, bits) for shape in SHAPES) + llama.plain_bytes((70,), 4, bits)
    assert state_bytes(stepped(GaLoreAdamW, bits=bits)) == want
    if bits == 32:
        assert want == sum(4 * (min(s) * 32 + 2 * max(s) * 32) for s in SHAPES) + 8 * 70


def test_dct_keeps_indices_and_one_basis():
    want = llama.dct_bytes(SHAPES, 32, 4) + llama.plain_bytes((70,), 4)
    assert state_bytes(stepped(DCTAdamW, error_feedback=None)) == want
    assert llama.dct_bytes([(64, 64)] * 3, 32, 4) == 3 * (2 * 64 * 32 * 4 + 4 * 32) + 4 * 64**2


@pytest.mark.parametrize("bits", [32, 8])
def test_allocating_ahead_equals_the_state_after_a_step(bits):
    ahead = GaLoreAdamW([{"params": [torch.nn.Parameter(torch.zeros(s)) for s in SHAPES], "rank": 32}], bits=bits)
    ahead.allocate()
    want = sum(llama.galore_bytes(shape, 32, 4, bits) for shape in SHAPES)
    assert state_bytes(ahead) == want


@pytest.mark.parametrize(("name", "millions"), [("60M", 58), ("1B", 1339), ("7B", 6738)])
def test_published_configurations_have_their_published_sizes(name, millions):
    assert round(llama.LLAMA[name].parameter_count() / 1e6) == millions


def test_shapes_alone_are_enough_for_7b():
    model = llama.LLAMA["7B"]
    parameters = llama.meta_parameters(model.matrices(), torch.bfloat16)
    others = llama.meta_parameters(model.others(), torch.bfloat16)
    optimizer = GaLoreAdamW([{"params": parameters, "rank": 1024}, {"params": others}])
    optimizer.allocate()
    want = sum(llama.galore_bytes(shape, 1024, 2) for shape in model.matrices())
    want += sum(llama.plain_bytes(shape, 2) for shape in model.others())
    assert state_bytes(optimizer) == want
