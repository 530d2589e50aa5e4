"""The fused optimizer steps: against float64, across backends, and with faults planted."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from reference.kernels.quantize import (
    adam8bit_step,
    block_count,
    cost,
    dequantize_blockwise,
    dynamic_map,
    momentum8bit_step,
    quantize_blockwise,
    truth,
)

HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1}
BACKENDS = ("numba", "eager")
ROOT = Path(__file__).parents[4]


def draw(n, block, seed=0):
    random = torch.Generator().manual_seed(seed)
    p, g, m = (torch.randn(n, generator=random) for _ in range(3))
    v = torch.rand(n, generator=random) + 0.01
    m_codes, m_absmax = quantize_blockwise(m, code=dynamic_map(True), block=block, backend="eager")
    v_codes, v_absmax = quantize_blockwise(v, code=dynamic_map(False), block=block, backend="eager")
    return p, g, m_codes, v_codes, m_absmax, v_absmax


def decode(codes, absmax, signed, block):
    return truth.dequantize(codes.numpy(), absmax.numpy(), dynamic_map(signed).numpy(), block)


def step_error(step, n=3000, block=256):
    """Largest error of p, m and v of one step, m and v in units of what quantisation may cost."""
    p, g, *state = draw(n, block)
    old_p = p.clone()
    m, v = decode(state[0], state[2], True, block), decode(state[1], state[3], False, block)
    step(p, g, *state)
    want_p, want_m, want_v = truth.adam(old_p.numpy(), g.numpy(), m, v, step=5, **HYPER)
    excess = [np.abs(p.numpy() - want_p).max() / 1e-6]
    for codes, absmax, want, signed in ((state[0], state[2], want_m, True), (state[1], state[3], want_v, False)):
        scale = np.repeat(absmax.numpy().astype(np.float64), block)[:n]
        # With one entry to a block the scale takes all: what is left is float32 rounding.
        bound = truth.relative_error_bound(dynamic_map(signed).numpy()) * scale + 1e-5
        excess.append((np.abs(decode(codes, absmax, signed, block) - want) / bound).max())
    return max(excess)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [1, 100, 256, 2048])
def test_adam_follows_the_equations_and_requantises_to_the_nearest(backend, block):
    def step(p, g, *state):
        adam8bit_step(p, g, *state, step=5, block=block, backend=backend, **HYPER)

    assert step_error(step, block=block) <= 1.01


def with_bias_correction_left_out(p, g, *state):
    adam8bit_step(p, g, *state, step=10**6, block=256, **HYPER)


def with_p_updated_from_requantised_states(p, g, *state):
    scratch = p.clone()
    adam8bit_step(scratch, g, *state, step=5, block=256, **HYPER)
    m = torch.from_numpy(decode(state[0], state[2], True, 256)).float()
    v = torch.from_numpy(decode(state[1], state[3], False, 256)).float()
    c1, c2 = 1 - HYPER["beta1"] ** 5, 1 - HYPER["beta2"] ** 5
    p.mul_(1 - HYPER["lr"] * HYPER["weight_decay"]).sub_(HYPER["lr"] * m / c1 / ((v / c2).sqrt() + HYPER["eps"]))


def with_stale_scales(p, g, *state):
    m_absmax, v_absmax = state[2].clone(), state[3].clone()
    adam8bit_step(p, g, *state, step=5, block=256, **HYPER)
    state[2].copy_(m_absmax)
    state[3].copy_(v_absmax)


def with_scales_in_half_precision(p, g, *state):
    adam8bit_step(p, g, *state, step=5, block=256, **HYPER)
    state[2].copy_(state[2].bfloat16())
    state[3].copy_(state[3].bfloat16())


def without_the_ragged_block(p, g, *state):
    whole = p.numel() // 256 * 256
    adam8bit_step(p[:whole], g[:whole], state[0][:whole], state[1][:whole], state[2][:-1], state[3][:-1],
                  step=5, block=256, **HYPER)


@pytest.mark.parametrize("fault", [
    with_bias_correction_left_out, with_p_updated_from_requantised_states, with_stale_scales,
    with_scales_in_half_precision, without_the_ragged_block,
])
def test_a_planted_fault_is_caught(fault):
    assert step_error(fault) > 1.1


@pytest.mark.parametrize("keep_sign", [False, True])
@pytest.mark.parametrize("n", [1000, 2**16 + 77])
def test_backends_keep_equal_states_over_many_steps(n, keep_sign):
    results = []
    for backend in BACKENDS:
        p, g, *state = draw(n, 256)
        for step in range(1, 6):
            adam8bit_step(
                p, g * (step - 2.5), *state, step=step, block=256, backend=backend, keep_sign=keep_sign, **HYPER
            )
        results.append((p, *state))
    assert all(torch.equal(a, b) for a, b in zip(results[0][1:], results[1][1:], strict=True))
    assert torch.allclose(results[0][0], results[1][0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [64, None])
def test_momentum_follows_its_equation(backend, block):
    n = 1000
    p, g, m_codes, _, m_absmax, _ = draw(n, block)
    old_p, m = p.clone(), decode(m_codes, m_absmax, True, block)
    momentum8bit_step(p, g, m_codes, m_absmax, lr=0.1, momentum=0.9, weight_decay=0.01, block=block, backend=backend)
    want_p, want_m = truth.momentum(old_p.numpy(), g.numpy(), m, lr=0.1, momentum=0.9, weight_decay=0.01)
    assert np.abs(p.numpy() - want_p).max() <= 1e-6
    scale = np.repeat(m_absmax.numpy(), block or n)[:n]
    assert (np.abs(decode(m_codes, m_absmax, True, block) - want_m) <= 0.00704 * scale).all()


def test_gradients_of_zero_leave_zero_states_and_parameters():
    p, g = torch.ones(300), torch.zeros(300)
    state = [torch.full((300,), 127, dtype=torch.uint8), torch.zeros(300, dtype=torch.uint8),
             torch.zeros(block_count(300, 256)), torch.zeros(block_count(300, 256))]
    adam8bit_step(p, g, *state, step=1, block=256, **{**HYPER, "weight_decay": 0.0})
    assert torch.equal(p, torch.ones(300))
    assert state[2].tolist() == state[3].tolist() == [0, 0]


def test_a_gradient_that_is_no_number_shows_in_parameters_and_states():
    p, g, *state = draw(600, 256)
    g[300] = float("nan")
    adam8bit_step(p, g, *state, step=1, block=256, **HYPER)
    assert p[300].isnan()
    assert p[:300].isfinite().all()
    m = dequantize_blockwise(state[0], state[2], dynamic_map(True), block=256, shape=(600,))
    assert m[256:512].isnan().all()
    assert m[:256].isfinite().all()


def test_steps_refuse_what_they_cannot_do():
    p, g, *state = draw(512, 256)
    with pytest.raises(ValueError, match="from 1"):
        adam8bit_step(p, g, *state, step=0, block=256, **HYPER)
    with pytest.raises(ValueError, match="contiguous"):
        adam8bit_step(p.reshape(2, 256).T, g, *state, step=1, block=256, **HYPER)
    with pytest.raises(ValueError, match="m_absmax"):
        adam8bit_step(p, g, *state, step=1, block=128, **HYPER)
    with pytest.raises(ValueError, match="float32"):
        adam8bit_step(p, g.half(), *state, step=1, block=256, **HYPER)


def test_bytes_per_parameter():
    assert cost.adam_fp32_bytes(1) == 28
    assert cost.adam8bit_bytes(1, 256) == 16 + 16 / 256
    assert cost.adam_state_bytes(1, 2048) == pytest.approx(2.0039, abs=1e-4)
    assert cost.adam_state_bytes(1, 256) == 2.03125


def test_torchs_thread_count_is_kept_and_obeyed():
    """In a fresh process: Numba resets OpenMP's count when its own threads start."""
    program = """
import torch
torch.set_num_threads({threads})
from reference.kernels.quantize import dynamic_map, quantize_blockwise
quantize_blockwise(torch.ones(2**17), code=dynamic_map(True))
assert torch.get_num_threads() == {threads}, torch.get_num_threads()
"""
    for threads in (1, 3):
        subprocess.run([sys.executable, "-c", program.format(threads=threads)], check=True, cwd=ROOT, timeout=60)
