"""The 8-bit optimizers as torch optimizers: parity with torch, eligibility, state size, saving and loading."""

import copy

import pytest
import torch
from torch import nn

from reference.kernels.quantize import MAPS
from reference.methods.quantization.blockwise8bit import BlockwiseAdam8bit, BlockwiseMomentum8bit
from reference.methods.state import state_bytes

ADAM = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64))


def train(net, optimizer, steps=15, start=0):
    for step in range(start, start + steps):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (net(x) - x.roll(1, 1)).square().mean()
        loss.backward()
        optimizer.step()
    return loss.item()


def flat(net):
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def both(make_a, make_b, steps=15):
    a, b = model(), model()
    train(a, make_a(a.parameters()), steps)
    train(b, make_b(b.parameters()), steps)
    return flat(a), flat(b)


def test_the_identity_map_is_torch_adamw():
    a, b = both(lambda p: torch.optim.AdamW(p, **ADAM), lambda p: BlockwiseAdam8bit(p, map="identity", **ADAM), 30)
    assert (a - b).abs().max() <= 1e-6


def test_the_identity_map_is_torch_sgd_with_momentum():
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
    a, b = both(
        lambda p: torch.optim.SGD(p, **settings), lambda p: BlockwiseMomentum8bit(p, map="identity", **settings)
    )
    assert (a - b).abs().max() <= 1e-6


def test_tensors_below_the_minimum_size_keep_float32_states_and_torchs_numbers():
    a, b = both(lambda p: torch.optim.AdamW(p, **ADAM), lambda p: BlockwiseAdam8bit(p, min_size=10**6, **ADAM))
    assert (a - b).abs().max() <= 1e-6


@pytest.mark.parametrize("block", [256, 2048, None])
def test_eight_bit_states_stay_near_the_float32_run(block):
    a, b = both(lambda p: torch.optim.AdamW(p, **ADAM), lambda p: BlockwiseAdam8bit(p, block=block, **ADAM))
    assert 0 < (a - b).abs().max() < 0.1
    assert (a - b).abs().mean() < 5e-3


def test_the_fused_and_the_eager_backend_train_alike():
    a, b = both(lambda p: BlockwiseAdam8bit(p, **ADAM), lambda p: BlockwiseAdam8bit(p, backend="eager", **ADAM))
    assert (a - b).abs().max() < 2e-3


def test_which_tensors_are_eligible():
    net = model()
    groups = [{"params": [net[0].weight, net[0].bias]}, {"params": [net[2].weight], "bits": 32}]
    optimizer = BlockwiseAdam8bit(groups, **ADAM)
    train(net, optimizer, 1)
    assert set(optimizer.state[net[0].weight]) == {"step", "m_codes", "m_absmax", "v_codes", "v_absmax"}
    assert optimizer.state[net[0].weight]["m_codes"].dtype == torch.uint8
    assert optimizer.state[net[0].weight]["m_absmax"].dtype == torch.float32
    assert set(optimizer.state[net[0].bias]) == set(optimizer.state[net[2].weight]) == {"step", "m", "v"}


def test_state_bytes_count_codes_scales_and_maps_once():
    net = model()
    optimizer = BlockwiseAdam8bit(net.parameters(), block=256, **ADAM)
    train(net, optimizer, 1)
    big = 2 * 64 * 128
    maps = 2 * 256 * 4
    assert state_bytes(optimizer) == 2 * big + 2 * big // 256 * 4 + 8 * (128 + 64) + maps
    assert state_bytes(optimizer, [net[0].weight]) == big + big // 256 * 4
    reference = torch.optim.AdamW(net.parameters(), **ADAM)
    train(net, reference, 1)
    assert state_bytes(reference) == 8 * (big + 128 + 64) + 4 * 4


def test_saving_and_loading_continues_bit_for_bit():
    net = model()
    optimizer = BlockwiseAdam8bit(net.parameters(), **ADAM)
    train(net, optimizer, 5)
    other = model(1)
    other.load_state_dict(net.state_dict())
    resumed = BlockwiseAdam8bit(other.parameters(), **ADAM)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state[other[0].weight]["m_codes"].dtype == torch.uint8
    train(net, optimizer, 5, start=5)
    train(other, resumed, 5, start=5)
    assert torch.equal(flat(net), flat(other))


def test_lost_second_moments_counts_zero_v_beside_nonzero_m():
    p = nn.Parameter(torch.zeros(4096))
    optimizer = BlockwiseAdam8bit([p], lr=0.0, map="linear", block=None)
    p.grad = torch.full((4096,), 0.05)
    p.grad[0] = 1.0  # v: 0.0025 of the largest, above half a step of 1/255; m: 0.05 of the largest
    optimizer.step()
    assert optimizer.lost_second_moments() == (0, 4096)
    p.grad.fill_(0.03)
    p.grad[0] = 1e3
    optimizer.step()
    assert optimizer.lost_second_moments() == (0, 4096)  # m is lost with v
    fresh = BlockwiseAdam8bit([p], lr=0.0, map="linear", block=None)
    p.grad.fill_(0.03)
    p.grad[0] = 1.0  # v: 0.0009 of the largest becomes 0, m: 0.03 does not
    fresh.step()
    assert fresh.lost_second_moments() == (4095, 4096)


@pytest.mark.parametrize("name", MAPS)
def test_parameters_without_gradient_are_left_alone(name):
    net = model()
    net[0].weight.requires_grad_(False)
    before = net[0].weight.clone()
    train(net, BlockwiseAdam8bit(net.parameters(), map=name, **ADAM), 2)
    assert torch.equal(before, net[0].weight)


def test_refusals():
    with pytest.raises(ValueError, match="unknown map"):
        BlockwiseAdam8bit(model().parameters(), map="cubic")
    p = nn.Parameter(torch.zeros(8, dtype=torch.float64))
    p.grad = torch.ones(8, dtype=torch.float64)
    with pytest.raises(ValueError, match="float32"):
        BlockwiseAdam8bit([p]).step()
