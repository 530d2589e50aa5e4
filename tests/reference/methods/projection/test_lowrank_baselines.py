"""LoRA from scratch and W = BA as replacements of linear layers."""

import pytest
import torch

from reference.methods.projection.lowrank_baselines import FactorisedLinear, LoRALinear, factorise, lora_from_scratch
from reference.testbeds import char_lm

LINEARS = char_lm.parameter_roles(char_lm.make("S", 0).named_parameters()).linears
NAMES = [name.removesuffix(".weight") for name, _ in LINEARS]


def tokens():
    return torch.randint(128, (2, 17), generator=torch.Generator().manual_seed(0))


def test_lora_starts_as_the_model_it_wraps_and_keeps_the_weights_frozen():
    plain, wrapped = char_lm.make("S", 0), char_lm.make("S", 0)
    lora_from_scratch(wrapped, NAMES, 8, torch.Generator().manual_seed(1))
    torch.testing.assert_close(wrapped(tokens()), plain(tokens()))
    frozen = wrapped.get_submodule(NAMES[0]).weight.clone()
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        wrapped.loss(tokens()).backward()
        optimizer.step()
    assert torch.equal(frozen, wrapped.get_submodule(NAMES[0]).weight)
    assert not any(name.endswith(tuple(f"{layer}.weight" for layer in NAMES)) for name, _ in wrapped.named_parameters())
    assert wrapped.get_submodule(NAMES[0]).A.grad.abs().max() > 0


def test_lora_adds_the_scaled_product():
    layer = torch.nn.Linear(6, 4)
    wrapped = LoRALinear(layer, 2, 32.0, torch.Generator().manual_seed(0))
    torch.nn.init.normal_(wrapped.B)
    x = torch.randn(3, 6)
    want = x @ (layer.weight + 16.0 * wrapped.B @ wrapped.A).mT + layer.bias
    torch.testing.assert_close(wrapped(x), want)


def test_factors_start_at_the_best_rank_r_approximation():
    layer = torch.nn.Linear(6, 4)
    factors = FactorisedLinear(layer, 2)
    S = torch.linalg.svdvals(layer.weight.detach())
    error = torch.linalg.matrix_norm(factors.B @ factors.A - layer.weight)
    torch.testing.assert_close(error, S[2:].square().sum().sqrt())
    full = FactorisedLinear(layer, 4)
    x = torch.randn(3, 6)
    torch.testing.assert_close(full(x), layer(x), atol=1e-5, rtol=1e-4)


def test_factorised_models_have_r_times_the_sum_of_sides():
    plain = char_lm.make("S", 0)
    sides = [sum(plain.get_submodule(name).weight.shape) for name in NAMES]
    dense = sum(plain.get_submodule(name).weight.numel() for name in NAMES)
    model = factorise(char_lm.make("S", 0), NAMES, 8)
    assert char_lm.parameter_count(plain) - char_lm.parameter_count(model) == dense - 8 * sum(sides)


def test_only_linear_layers_can_be_replaced():
    with pytest.raises(ValueError, match="LayerNorm"):
        factorise(char_lm.make("S", 0), ["final_norm"], 4)
