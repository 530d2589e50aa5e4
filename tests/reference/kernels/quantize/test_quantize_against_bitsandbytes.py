"""The maps and one step against bitsandbytes' own."""

import pytest
import torch

from reference.kernels.quantize import adam8bit_step, dynamic_map, linear_map, quantize_blockwise

pytestmark = pytest.mark.peer
bnb = pytest.importorskip("bitsandbytes")


@pytest.mark.parametrize("signed", [True, False])
def test_dynamic_map_is_equal_bit_for_bit(signed):
    assert torch.equal(dynamic_map(signed), bnb.functional.create_dynamic_map(signed=signed))


@pytest.mark.parametrize("signed", [True, False])
def test_linear_map_is_equal_up_to_rounding(signed):
    assert torch.allclose(linear_map(signed), bnb.functional.create_linear_map(signed=signed), rtol=0, atol=1e-7)


# Measured on version 0.50: for float32 its CPU library looks codes up in a table that is uniform over the scale, so
# below about this share of the scale it does not return the nearest code (an exact 0 becomes 1.6e-5 or 2.1e-5).
# Its slow path, taken for other types, compares with every code.
COARSE_BELOW = 1e-4


def near_and_tiny(mine, theirs, code):
    """Share of entries within one code where the peer's table is fine enough, largest gap in value where it is not."""
    distance = (mine.int() - theirs.int()).abs()
    gap = (code[mine.long()] - code[theirs.long()]).abs()
    tiny = code[mine.long()].abs() < COARSE_BELOW
    return (distance <= 1)[~tiny].float().mean().item(), gap[tiny].max().item() if tiny.any() else 0.0


@pytest.mark.parametrize("signed", [True, False])
def test_codes_equal_those_of_the_peers_exact_path(signed):
    x = torch.randn(10_001, generator=torch.Generator().manual_seed(0)) ** 3
    x = x if signed else x.abs()
    codes, absmax = quantize_blockwise(x, code=dynamic_map(signed), block=256)
    theirs, their_absmax = torch.ops.bitsandbytes.quantize_blockwise(x.double(), dynamic_map(signed), 256)
    assert torch.equal(absmax, their_absmax)
    distance = (codes.int() - theirs.int()).abs()
    assert distance.max() <= 1
    assert (distance == 0).float().mean() >= 0.999


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_near_those_of_the_peers_fast_path(signed):
    x = torch.randn(10_001, generator=torch.Generator().manual_seed(0)) ** 3
    x = x if signed else x.abs()
    codes, _ = quantize_blockwise(x, code=dynamic_map(signed), block=256)
    theirs, _ = torch.ops.bitsandbytes.quantize_blockwise(x, dynamic_map(signed), 256)
    near, gap = near_and_tiny(codes, theirs, dynamic_map(signed))
    assert near >= 0.999
    assert gap <= COARSE_BELOW


def test_adam_steps_agree_to_one_code():
    n, random = 10_001, torch.Generator().manual_seed(1)
    mine, theirs = (torch.randn(n, generator=torch.Generator().manual_seed(2)) for _ in range(2))
    state = [torch.full((n,), 127, dtype=torch.uint8), torch.zeros(n, dtype=torch.uint8),
             torch.zeros(-(-n // 256)), torch.zeros(-(-n // 256))]
    for step in range(1, 6):
        g = torch.randn(n, generator=random)
        peer = [item.clone() for item in state]
        theirs.copy_(mine)
        adam8bit_step(
            mine, g, *state, lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, step=step, block=256
        )
        torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
            "adam", g, theirs, peer[0], peer[1], 0.9, 0.999, 0.0, 0.0, 1e-8, step, 1e-2,
            dynamic_map(True), dynamic_map(False), peer[2], peer[3], 0.1, 1.0, False,
        )
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-6)
        assert torch.allclose(state[2], peer[2], rtol=1e-6)
        assert torch.allclose(state[3], peer[3], rtol=1e-6)
        for ours, other, signed in ((state[0], peer[0], True), (state[1], peer[1], False)):
            near, gap = near_and_tiny(ours, other, dynamic_map(signed))
            assert near >= 0.999
            assert gap <= COARSE_BELOW
