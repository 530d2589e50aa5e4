"""Triton and CUDA C++ through one table: codes and scales equal the eager backend's bit for bit.

Without a GPU, Triton's kernels run in its interpreter and the CUDA kernels thread by thread on the CPU.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reference.kernels import driver, target
from reference.kernels.quantize import MAPS, dynamic_map, eager, truth
from reference.kernels.quantize.maps import midpoints_below
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

# NumPy, under Triton's interpreter, warns of what the rules expect.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

BACKENDS = ("triton", "cuda")
# (entries, block): every tile size, ragged and whole, one entry, blocks of no tile size, one block of any size.
SHAPES = [
    (1, 64), (1000, 64), (2050, 128), (3000, 256), (1024, 512), (2049, 1024), (8193, 2048), (5000, 4096), (4096, 4096),
    (5, 1), (200, 7), (1000, 300), (9001, 5000), (1, None), (700, None), (4096, None), (9000, None),
]
CANARY = 17
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
GPU_SETTINGS = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(params=BACKENDS)
def kernels(request, device, monkeypatch):
    """(the backend's module, the device it runs on)."""
    if request.param == "triton":
        from reference.kernels.quantize import triton_gpu

        return triton_gpu, device
    from reference.kernels.quantize import cuda_gpu

    if not torch.cuda.is_available():
        monkeypatch.setattr(driver, "kernel", request.getfixturevalue("on_cpu")(cuda_gpu.SOURCE))
        monkeypatch.setattr(target, "width", lambda _device: target.Width(1, 163 * 1024))
        monkeypatch.setattr(target, "workspace", lambda _device, size: torch.full((size,), 77, dtype=torch.uint8))
    return cuda_gpu, device


def draw(n: int, seed: int = 0) -> torch.Tensor:
    """float32[n] of every kind: thirds that are ordinary, of all magnitudes, and with zeros, subnormals and ties."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=random)
    x[n // 3 : 2 * n // 3] *= 10 ** (torch.rand(2 * n // 3 - n // 3, generator=random) * 70 - 38)
    x[2 * n // 3 :: 2] = 0
    x[2 * n // 3 :: 7] *= 1e-41
    return x


def inside(values: torch.Tensor, device: str, start: int = 4) -> torch.Tensor:
    """A copy of ``values`` on ``device`` with canaries before and after it."""
    around = torch.full((values.numel() + 2 * start,), CANARY, dtype=values.dtype, device=device)
    around[start : start + values.numel()] = values
    return around[start : start + values.numel()]


def canaries_live(view: torch.Tensor) -> bool:
    start = view.storage_offset()
    around = view.as_strided((view.numel() + 2 * start,), (1,), 0)
    return bool((around[:start] == CANARY).all() and (around[start + view.numel() :] == CANARY).all())


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit; NaNs are alike."""
    a, b = a.cpu(), b.cpu()
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(3e38), b.nan_to_num(3e38))


def quantized(module, x, code, block, device, keep_sign=False, start=4):
    """(codes, absmax, values) of one round trip; nothing beside them is written."""
    blocks = -(-x.numel() // block)
    codes = inside(torch.full(x.shape, 99, dtype=torch.uint8), device, start)
    absmax, out = inside(torch.full((blocks,), -3.0), device), inside(torch.full(x.shape, -5.0), device, start)
    given_x, code = inside(x, device, start), code.to(device)
    module.quantize(given_x, code, block, codes, absmax, keep_sign)
    module.dequantize(codes, absmax, code, block, out)
    assert all(canaries_live(view) for view in (codes, absmax, out, given_x))
    assert same(given_x, x)
    return codes, absmax, out


@pytest.mark.parametrize("n, block", SHAPES)
def test_a_round_trip_equals_eager(kernels, n, block):
    module, device = kernels
    for name, signed, keep_sign in itertools.product(MAPS, (True, False), (False, True)):
        x = draw(n, n) if signed else draw(n, n).abs()
        arguments = x, MAPS[name](signed), block or n
        expected = quantized(eager, *arguments, "cpu", keep_sign and signed)
        found = quantized(module, *arguments, device, keep_sign and signed)
        assert all(map(same, found, expected)), (name, signed, keep_sign)


@pytest.mark.parametrize("name, signed", list(itertools.product(MAPS, (True, False))))
def test_ties_go_to_the_lower_code(kernels, name, signed):
    module, device = kernels
    code = MAPS[name](signed)
    middle = midpoints_below(code.numpy())
    around = np.concatenate([middle, np.nextafter(middle, np.float32(2)), np.nextafter(middle, np.float32(-2))])
    # The 1 that leads each block is its scale.
    blocks = np.resize(around, (-(-around.size // 63), 63))
    x = torch.from_numpy(np.concatenate([np.ones((len(blocks), 1), np.float32), blocks], axis=1).reshape(-1))
    codes, _, _ = quantized(module, x, code, 64, device)
    assert np.array_equal(codes.cpu().numpy(), np.searchsorted(middle, x.numpy(), side="left"))


@pytest.mark.parametrize("exponent", [-146, -130, -61, -59, 0, 99, 101, 127])
def test_quotients_beside_a_midpoint_are_rounded_as_ieee_division_does(kernels, exponent):
    module, device = kernels
    code, random = dynamic_map(True), np.random.default_rng(0)
    scales = (np.ldexp(random.uniform(0.5, 1, (100, 1)), exponent)).astype(np.float32)
    # Products of scale and midpoint and their neighbours: the last bit of the quotient decides.
    products = (scales * random.choice(midpoints_below(code.numpy()), (100, 21)).astype(np.float64)).astype(np.float32)
    beside = [np.nextafter(products, np.float32(end)) for end in (np.inf, -np.inf)]
    x = torch.from_numpy(np.concatenate([scales, products, *beside], axis=1).reshape(-1))
    for keep_sign in (False, True):
        found = quantized(module, x, code, 64, device, keep_sign)
        assert all(map(same, found, quantized(eager, x, code, 64, "cpu", keep_sign)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("block", [64, 100])
def test_a_value_that_is_no_number_spoils_its_whole_block_and_no_other(kernels, bad, block):
    module, device = kernels
    x = torch.ones(3 * block)
    x[block + 6] = bad
    _, absmax, out = quantized(module, x, dynamic_map(True), block, device)
    assert not absmax[1].isfinite()
    assert out[block : 2 * block].isnan().all()
    assert torch.equal(out[:block].cpu(), x[:block])
    assert torch.equal(out[2 * block :].cpu(), x[2 * block :])


@settings(max_examples=25, **GPU_SETTINGS)
@given(
    x=arrays(np.float32, st.integers(1, 300), elements=FINITE), block=st.sampled_from([50, 64, 128, 256, None]),
    keep_sign=st.booleans(), name=st.sampled_from(list(MAPS)),
)
def test_drawn_values_equal_eager(kernels, x, block, keep_sign, name):
    module, device = kernels
    arguments = torch.from_numpy(x), MAPS[name](True), block or x.size
    expected = quantized(eager, *arguments, "cpu", keep_sign)
    assert all(map(same, quantized(module, *arguments, device, keep_sign), expected))


@settings(max_examples=25, **GPU_SETTINGS)
@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=256),
    x=arrays(np.float32, st.integers(1, 200), elements=st.floats(-1, 1, width=32)),
)
def test_any_sorted_map_is_searched_right(kernels, values, x):
    module, device = kernels
    code = torch.tensor(sorted([*values, *[values[-1]] * (256 - len(values))]), dtype=torch.float32)
    arguments = torch.from_numpy(x), code, 64
    assert all(map(same, quantized(module, *arguments, device), quantized(eager, *arguments, "cpu")))


@pytest.mark.parametrize("n, block", [(3000, 256), (5000, 4096), (700, None), (1000, 300)])
def test_codes_are_as_near_as_float64_finds_them(kernels, n, block):
    module, device = kernels
    x, code = torch.randn(n, generator=torch.Generator().manual_seed(1)), dynamic_map(True)
    _, _, out = quantized(module, x, code, block or n, device)
    exact = x.double().numpy()
    least = np.abs(truth.dequantize(*truth.quantize(exact, code.numpy(), block), code.numpy(), block) - exact)
    # A quotient rounded to float32 may fall on the other side of a midpoint: then both codes are as near.
    assert np.allclose(np.abs(out.double().cpu().numpy() - exact), least, rtol=1e-4, atol=1e-6 * np.abs(exact).max())


@pytest.mark.parametrize("start", [1, 2])
@pytest.mark.parametrize("n, block", [(1000, 64), (5000, 256)])
def test_memory_need_not_be_aligned(kernels, n, block, start):
    module, device = kernels
    found = quantized(module, draw(n), dynamic_map(True), block, device, start=start)
    assert all(map(same, found, quantized(eager, draw(n), dynamic_map(True), block, "cpu")))


STEPS = {
    "adam": AdamSettings.at_step(5, 1e-2, 0.9, 0.99, 1e-8, 0.1, keep_sign=True),
    "momentum": MomentumSettings.of(0.1, 0.9, 0.01),
    "lion": LionSettings.of(1e-3, 0.9, 0.99, 0.1, keep_sign=True),
}


def stepped(module, op, g, block, device, start=4, times=2):
    """(p, codes and scales of the states) after some steps from one start; nothing beside them is written."""
    n, random = g.numel(), torch.Generator().manual_seed(7)
    p, m, v = torch.randn(n, generator=random), torch.randn(n, generator=random), torch.rand(n, generator=random) + 0.01
    tensors, states = [inside(p, device, start), inside(g, device, start)], []
    for value, signed in ((m, True), (v, False))[: 2 if op == "adam" else 1]:
        codes, absmax = torch.empty(n, dtype=torch.uint8), torch.empty(-(-n // block))
        eager.quantize(value, dynamic_map(signed), block, codes, absmax)
        states.append((inside(codes, device, start), inside(absmax, device), dynamic_map(signed).to(device)))
    for _ in range(times):
        getattr(module, op)(*tensors, *states, block, STEPS[op])
    changed = [tensors[0], *(item for state in states for item in state[:2])]
    assert all(canaries_live(view) for view in [*changed, tensors[1]])
    assert same(tensors[1], g)
    return changed


@pytest.mark.parametrize("op", STEPS)
@pytest.mark.parametrize("n, block", SHAPES)
def test_steps_equal_eager(kernels, op, n, block):
    module, device = kernels
    g = torch.randn(n, generator=torch.Generator().manual_seed(n))
    g[n // 2 :: 3] = 0
    p, *states = stepped(module, op, g, block or n, device)
    want_p, *want_states = stepped(eager, op, g, block or n, "cpu")
    assert all(map(same, states, want_states))
    # Only torch's square root is not IEEE's: each step may move a parameter by a rounding of the update and the sum.
    assert torch.allclose(p.cpu(), want_p, rtol=3e-7, atol=3e-7)
    assert op == "adam" or same(p, want_p)


@pytest.mark.parametrize("op", STEPS)
def test_a_gradient_that_is_no_number_shows_in_its_block_and_no_other(kernels, op):
    module, device = kernels
    g = torch.ones(600)
    g[300] = float("nan")
    found, expected = stepped(module, op, g, 256, device), stepped(eager, op, g, 256, "cpu")
    assert found[0][300].isnan()
    assert not found[2][1].isfinite()
    assert found[0][:256].isfinite().all() and found[0][512:].isfinite().all()
    assert all(map(same, found[1:], expected[1:]))


@pytest.mark.parametrize("op", STEPS)
def test_steps_work_on_memory_that_is_not_aligned(kernels, op):
    module, device = kernels
    g = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    found, expected = stepped(module, op, g, 256, device, start=1), stepped(eager, op, g, 256, "cpu")
    assert all(map(same, found[1:], expected[1:]))


def test_places_beyond_2_to_the_31(kernels):
    module, device = kernels
    if device == "cpu" or torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs a CUDA device with 12 GiB of free memory")
    n = 2**31 + 300
    codes, out = torch.zeros(n, dtype=torch.uint8, device=device), torch.empty(n, device=device)
    codes[-300:] = 255
    absmax = torch.ones(-(-n // 256), device=device)
    absmax[-1] = 3.0
    module.dequantize(codes, absmax, dynamic_map(False, device), 256, out)
    assert out[-300 : -(n % 256)].eq(1).all() and out[-(n % 256) :].eq(3).all()
    module.quantize(out, dynamic_map(False, device), 256, codes, absmax)
    assert codes[-300:].eq(255).all() and absmax[-1] == 3.0
