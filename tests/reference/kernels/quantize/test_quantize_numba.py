"""The Numba backend: both ways of finding codes are exact, threads change nothing, nothing is allocated unsaid."""

import ctypes
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reference.kernels.backend import BackendMissing
from reference.kernels.quantize import (
    MAPS,
    adam8bit_step,
    cost,
    dequantize_blockwise,
    dynamic_map,
    linear_map,
    lion8bit_step,
    momentum8bit_step,
    numba_cpu,
    quantize_blockwise,
)
from reference.kernels.quantize.maps import LOWEST_OCTAVE, lane_table, midpoints_below
from reference.kernels.quantize.numba_kernels import STREAM_FROM
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SLACK = 4 * 2**20
FIXTURE = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
ALL_MAPS = [(name, signed) for name in MAPS for signed in (True, False)]


@pytest.fixture(params=["wide", "one by one"])
def way(request, monkeypatch):
    """How codes are found; ``wide`` takes what this CPU has."""
    if request.param == "one by one":
        monkeypatch.setattr(numba_cpu, "can_go_wide", lambda: False)
    elif not numba_cpu.can_go_wide():
        pytest.skip("NOT CHECKED: this CPU has no AVX-512 byte permutes")
    return request.param


def led_by_one(values, block=64):
    """``values`` in blocks that begin with 1, which is then their scale."""
    rows = np.resize(np.asarray(values, np.float32), (-(-len(values) // (block - 1)), block - 1))
    return np.concatenate([np.ones((len(rows), 1), np.float32), rows], axis=1).reshape(-1)


def neighbours(values):
    """``values`` and the two next to each on either side, within [-1, 1]."""
    found = [np.asarray(values, np.float32)]
    for end in (np.float32(2), np.float32(-2)):
        found += [np.nextafter(found[0], end), np.nextafter(np.nextafter(found[0], end), end)]
    found = np.concatenate(found)
    return found[np.abs(found) <= 1]


@pytest.mark.parametrize("name, signed", ALL_MAPS)
def test_the_code_changes_just_above_each_midpoint(way, name, signed):
    code = MAPS[name](signed)
    middle = midpoints_below(code.numpy())
    edges = np.arange(LOWEST_OCTAVE << 7, (127 << 7) + 1, dtype=np.int32) << 16
    edges = edges.view(np.float32)
    x = led_by_one(np.concatenate([neighbours(middle), neighbours(-middle), neighbours(edges), neighbours(-edges)]))
    codes, absmax = quantize_blockwise(torch.from_numpy(x), code=code, block=64)
    assert (absmax == 1).all()
    assert np.array_equal(codes.numpy(), np.searchsorted(middle, x, side="left"))


@pytest.mark.parametrize("name, signed", ALL_MAPS)
def test_every_code_is_reached_and_comes_back(way, name, signed):
    code = MAPS[name](signed)
    x = torch.from_numpy(led_by_one(code.numpy()))
    codes, absmax = quantize_blockwise(x, code=code, block=64)
    assert set(code[codes.long()].tolist()) == set(code.tolist())
    assert torch.equal(dequantize_blockwise(codes, absmax, code, block=64), x)


@settings(max_examples=60, **FIXTURE)
@given(
    x=arrays(np.float32, st.integers(0, 400), elements=st.floats(width=32)), keep_sign=st.booleans(),
    block=st.sampled_from([1, 64, 65, 100, 128, 256, None]), which=st.sampled_from(ALL_MAPS),
)
def test_any_numbers_give_what_eager_gives(way, x, block, which, keep_sign):
    code, x = MAPS[which[0]](which[1]), torch.from_numpy(x)
    found = quantize_blockwise(x, code=code, block=block, keep_sign=keep_sign)
    expected = quantize_blockwise(x, code=code, block=block, keep_sign=keep_sign, backend="eager")
    assert torch.equal(found[0], expected[0])
    assert found[1].nan_to_num(7.0).equal(expected[1].nan_to_num(7.0))
    values = [dequantize_blockwise(*expected, code, block=block, backend=name) for name in ("numba", "eager")]
    assert values[0].nan_to_num(7.0).equal(values[1].nan_to_num(7.0))


@settings(max_examples=40, **FIXTURE)
@given(seed=st.integers(0, 2**31), decades=st.sampled_from([0.0, 1.0, 7.0, 30.0]), low=st.sampled_from([-1.0, 0.0]))
def test_any_map_is_searched_right(way, seed, decades, low):
    random = np.random.default_rng(seed)
    code = torch.from_numpy(np.sort(random.uniform(low, 1, 256) * 10 ** random.uniform(-decades, 0, 256))).float()
    x = torch.from_numpy(random.standard_normal(300) * 10.0 ** -random.integers(0, 9, 300)).float()
    found, expected = (quantize_blockwise(x, code=code, block=128, backend=name) for name in ("numba", "eager"))
    assert torch.equal(found[0], expected[0])


def test_the_maps_in_use_can_be_searched_64_entries_at_a_time():
    for maker in MAPS.values():
        for signed in (True, False):
            table = lane_table(maker(signed))
            assert table is not None
            assert table.data.ctypes.data % 64 == 0
    assert lane_table(torch.linspace(1 - 255 * 2**-20, 1, 256)) is None
    assert lane_table(torch.linspace(-1, 1, 16).repeat_interleave(16)) is None


def test_no_code_below_the_first_is_taken_to_keep_a_sign(way):
    x = torch.tensor([1.0] + [-0.3, -1e-9, 0.0] * 43)
    for code in (dynamic_map(False), linear_map(False)):
        for name in ("numba", "eager"):
            codes, _ = quantize_blockwise(x, code=code, block=None, keep_sign=True, backend=name)
            assert codes.tolist() == [255] + [0, 0, 0] * 43


@pytest.mark.parametrize("start", [0, 1])
def test_results_that_no_cache_holds(way, start):
    n = STREAM_FROM // 4 + 77
    codes = torch.arange(n + start, dtype=torch.int32).mul_(7).to(torch.uint8)[start:].clone()
    absmax = torch.rand(-(-n // 256), generator=torch.Generator().manual_seed(0))
    out = torch.full((n + start + 16,), -5.0)
    view = out[start : start + n]
    assert dequantize_blockwise(codes, absmax, dynamic_map(True), block=256, out=view) is view
    assert torch.equal(view, dynamic_map(True)[codes.int()] * absmax.repeat_interleave(256)[:n])
    assert (out[:start] == -5).all() and (out[start + n :] == -5).all()


def stepped(n, block, backend="numba"):
    """Parameters and states after a step of each kind."""
    random = torch.Generator().manual_seed(n)
    p, g, m = (torch.randn(n, generator=random) for _ in range(3))
    results = []
    for step in (adam8bit_step, momentum8bit_step, lion8bit_step):
        state = [quantize_blockwise(m, code=dynamic_map(True), block=block, backend="eager")]
        hyper = {"lr": 0.01, "weight_decay": 0.1, "block": block, "keep_sign": True, "backend": backend}
        if step is adam8bit_step:
            state.append(quantize_blockwise(m.abs(), code=dynamic_map(False), block=block, backend="eager"))
            hyper |= {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "step": 3}
        else:
            hyper |= {"momentum": 0.9} if step is momentum8bit_step else {"beta1": 0.9, "beta2": 0.99}
        moved = p.clone()
        step(moved, g, *[codes for codes, _ in state], *[absmax for _, absmax in state], **hyper)
        results += [moved, *[item for pair in state for item in pair]]
    return results


@pytest.mark.parametrize("block", [64, 256, 300, 5000, None])
def test_threads_change_nothing(way, block):
    n, threads = numba_cpu.PARALLEL_FROM + 321, torch.get_num_threads()
    results = []
    for count in (1, 3):
        torch.set_num_threads(count)
        results.append(stepped(n, block))
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("n, block", [(1, 64), (300, 64), (1001, 100), (9001, None), (11_000, 5000)])
def test_steps_leave_the_states_that_eager_leaves(way, n, block):
    for found, expected in zip(stepped(n, block), stepped(n, block, "eager"), strict=True):
        if found.dtype == torch.uint8 or found.numel() < n:
            assert torch.equal(found, expected)
        else:
            assert torch.allclose(found, expected, rtol=3e-7, atol=3e-7)


def test_a_gradient_that_is_no_number_shows_after_a_lion_step():
    for name in ("numba", "eager"):
        p, g = torch.ones(600), torch.zeros(600)
        g[300] = float("nan")
        codes, absmax = quantize_blockwise(torch.ones(600), code=dynamic_map(True))
        lion8bit_step(p, g, codes, absmax, lr=0.1, beta1=0.9, beta2=0.99, weight_decay=0.0, block=256, backend=name)
        assert p[300].isnan() and p[:300].equal(torch.full((300,), 0.9)) and absmax[1].isnan()
        assert dequantize_blockwise(codes, absmax, dynamic_map(True), block=256)[256:512].isnan().all()


def test_results_go_where_they_are_asked_to_go():
    x, out = torch.randn(5, 100), (torch.empty(500, dtype=torch.uint8), torch.empty(2))
    assert quantize_blockwise(x, code=dynamic_map(True), out=out) is out
    codes, absmax = quantize_blockwise(x, code=dynamic_map(True))
    assert torch.equal(codes, out[0]) and torch.equal(absmax, out[1])
    with pytest.raises(ValueError, match="absmax"):
        quantize_blockwise(x, code=dynamic_map(True), out=(out[0], torch.empty(3)))
    with pytest.raises(ValueError, match="contiguous"):
        quantize_blockwise(x.T, code=dynamic_map(True))
    with pytest.raises(ValueError, match="out must be"):
        dequantize_blockwise(codes, absmax, dynamic_map(True), block=256, out=torch.empty(499))


def test_a_backend_that_cannot_run_here_says_so():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(BackendMissing, match="cuda runs on a CUDA device"):
        quantize_blockwise(torch.ones(3), code=dynamic_map(True), backend="cuda")


def resident(what):
    return int(re.search(rf"{what}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


def peak_bytes(call):
    """The most that ``call`` added to the resident set, after a first call that compiles."""
    call()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


@pytest.mark.skipif(not CLEAR.exists(), reason="NOT CHECKED: peaks of memory are read from Linux's /proc")
@pytest.mark.parametrize("op", ["quantize", "dequantize", "adam", "momentum", "lion"])
@pytest.mark.parametrize("block", [256, None])
def test_no_call_allocates_more_than_it_declares(way, op, block):
    n = 2**22
    size = block or n
    p, g = torch.full((n,), 0.5), torch.full((n,), 0.25)
    m_state, v_state = ((torch.full((n,), 90, dtype=torch.uint8), torch.ones(n // size), dynamic_map(sign))
                        for sign in (True, False))
    arguments = {
        "quantize": (g, m_state[2], size, *m_state[:2]),
        "dequantize": (m_state[0], m_state[1], m_state[2], size, p),
        "adam": (p, g, m_state, v_state, size, AdamSettings.at_step(1, 0.1, 0.9, 0.9, 1e-8, 0.1)),
        "momentum": (p, g, m_state, size, MomentumSettings.of(0.1, 0.9, 0.1)),
        "lion": (p, g, m_state, size, LionSettings.of(0.1, 0.9, 0.9, 0.1)),
    }
    declared = cost.workspace_bytes(op, torch.get_num_threads())
    assert declared + SLACK < 4 * n / 2
    assert peak_bytes(partial(getattr(numba_cpu, op), *arguments[op])) <= declared + SLACK
