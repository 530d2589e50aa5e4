"""Both GPU backends against float64: on a GPU, or with CUDA run on the CPU and Triton in its interpreter."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.kernels import driver, target
from reference.kernels.softmax import ALGORITHMS, cuda_gpu, truth
from reference.kernels.target import Width

# NaN and infinities are among the inputs; the interpreter computes with numpy.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
UNITS = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
LOGARITHMIC = [name for name in ALGORITHMS if name != "three_pass_reload"]
ANY_EXAMPLE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["cuda", "triton"])
def backend(request, monkeypatch):
    """The backend's module; without a GPU as if the device were so narrow that short rows take every way through."""
    if request.param == "cuda":
        if DEVICE.type == "cpu":
            monkeypatch.setattr(driver, "kernel", request.getfixturevalue("on_cpu")(cuda_gpu.SOURCE))
            monkeypatch.setattr(target, "width", lambda _device: Width(2, 8192))
            monkeypatch.setattr(target, "workspace", lambda _device, size: torch.empty(size, dtype=torch.uint8))
            monkeypatch.setattr(cuda_gpu, "CHUNK_BYTES", 4096)
            for remembered in (cuda_gpu.plan, cuda_gpu.ready):
                remembered.cache_clear()
                request.addfinalizer(remembered.cache_clear)
        return cuda_gpu
    request.getfixturevalue("device")
    from reference.kernels.softmax import triton_gpu

    if DEVICE.type == "cpu":
        monkeypatch.setattr(triton_gpu, "ROW_ELEMENTS", 1024)
        triton_gpu.plan.cache_clear()
        request.addfinalizer(triton_gpu.plan.cache_clear)
    return triton_gpu


def draw(shape: tuple[int, int], bound: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values * 2 - 1) * bound).to(dtype).to(DEVICE)


def run(module: ModuleType, op: str, x: torch.Tensor, algorithm: str, in_place: bool = False) -> np.ndarray:
    """Into a poisoned buffer, or in place; the inputs must stay as they were."""
    kept = x.clone()
    if op == "log_sum_exp":
        out = torch.full(x.shape[:1], torch.nan, dtype=x.dtype, device=DEVICE)
    else:
        out = kept if in_place else torch.full_like(x, torch.nan)
    getattr(module, op)(kept, out, algorithm, None)
    assert in_place or torch.equal(kept.nan_to_num(7.0), x.nan_to_num(7.0))
    return out.double().cpu().numpy()


def beyond_rounding(module: ModuleType, y: np.ndarray, expected: np.ndarray, dtype: torch.dtype, roundings: float):
    """|y - expected|, for 16-bit results less ``roundings`` times half a unit in their own last place."""
    if dtype == torch.bfloat16 and module is not cuda_gpu and DEVICE.type == "cpu":
        roundings *= 2.0  # Triton's interpreter cuts bfloat16 off instead of rounding
    smallest = 2.0**-25 if dtype == torch.float16 else 0.0
    rounding = 0.0 if dtype == torch.float32 else roundings * np.maximum(np.abs(expected) * UNITS[dtype], smallest)
    return np.maximum(np.abs(y - expected) - rounding, 0.0)


def softmax_units(module: ModuleType, x: torch.Tensor, algorithm: str, y: np.ndarray) -> float:
    """The largest error of ``y`` in units of 2^-24 of the truth where that is above 2^-100."""
    expected = truth.softmax(x.double().cpu().numpy())
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    error = beyond_rounding(module, y, expected, x.dtype, 3.0 if algorithm == "three_pass_reload" else 1.0)
    counts = expected > truth.SMALLEST
    return float(np.max(error[counts] / expected[counts], initial=0.0) / truth.UNIT)


def limit(algorithm: str) -> float:
    return 8.0 if algorithm == "two_pass" else 72.0


SHAPES = [(5, 1), (37, 3), (9, 20), (3, 33), (4, 128), (2, 500), (3, 1000), (2, 1024), (3, 1500), (2, 1800),
          (9, 1900), (1, 10_001)]  # fmt: skip


@pytest.mark.parametrize("dtype", UNITS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_equals_float64(backend, dtype, shape):
    x = draw(shape, 30.0, dtype)
    for algorithm in ALGORITHMS:
        y = run(backend, "softmax", x, algorithm)
        assert softmax_units(backend, x, algorithm, y) <= limit(algorithm), algorithm
        assert np.array_equal(y, run(backend, "softmax", x, algorithm, in_place=True)), algorithm


@pytest.mark.parametrize("algorithm", LOGARITHMIC)
@pytest.mark.parametrize("shape", [(5, 1), (9, 20), (2, 500), (3, 1500), (9, 1900), (1, 5001)], ids=str)
def test_logarithms_equal_float64(backend, algorithm, shape):
    for dtype in UNITS:
        x = draw(shape, 1000.0, dtype)
        wide = x.double().cpu()
        for op, expected in (("log_softmax", wide.log_softmax(-1)), ("log_sum_exp", wide.logsumexp(-1))):
            error = beyond_rounding(backend, run(backend, op, x, algorithm), expected.numpy(), dtype, 1.0)
            assert (error <= 8 * truth.UNIT * np.maximum(1.0, np.abs(expected.numpy()))).all(), (op, dtype)


SPECIAL = {
    "masked": [-np.inf, 1.0, 2.0, -np.inf],
    "all masked": [-np.inf] * 4,
    "nan": [1.0, np.nan, 2.0, -np.inf],
    "nan and masked": [np.nan, -np.inf, -np.inf, -np.inf],
    "inf": [1.0, np.inf, np.inf, -np.inf],
    "inf and nan": [np.inf, np.nan, 1.0, 1.0],
    "large": [3e38, 3e38, 2.9e38, -3e38],
    "low": [-3e38, -3e38, -np.inf, -3e38],
    "beyond the split": [1.5e5, 1.5e5, 149_999.0, 0.0],
    "just below": [-131_000.0, -131_001.0, -131_080.0, -1e6],
}


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("n", [4, 700, 5001])
def test_special_rows(backend, name, n):
    """Special values at the end, before them nothing but masked elements; a plain row beside."""
    x = torch.full((2, n), -torch.inf)
    x[0, -4:] = torch.tensor(SPECIAL[name])
    x[1] = 0.5
    wide = x.double()
    sums, logarithms = wide.logsumexp(-1).numpy(), wide.log_softmax(-1).float().double().numpy()
    masked = np.isneginf(x.numpy()) & ~np.isnan(logarithms)
    x = x.to(DEVICE)
    close = {"rtol": 8 * truth.UNIT, "atol": 8 * truth.UNIT, "equal_nan": True}
    for algorithm in ALGORITHMS:
        y = run(backend, "softmax", x, algorithm)
        assert softmax_units(backend, x, algorithm, y) <= limit(algorithm), algorithm
        assert (y[masked] == 0.0).all(), algorithm
    for algorithm in LOGARITHMIC:
        assert np.allclose(run(backend, "log_softmax", x, algorithm), logarithms, **close), algorithm
        assert np.allclose(run(backend, "log_sum_exp", x, algorithm), sums, **close), algorithm


@settings(ANY_EXAMPLE, max_examples=25)
@given(
    rows=st.integers(1, 5), n=st.one_of(st.integers(1, 1100), st.integers(1700, 6000)),
    bound=st.sampled_from([0.0, 1e-30, 30.0, 1e4, 1.3e5, 1e7, 1e30]), offset=st.sampled_from([0.0, -5e4, 9e4]),
    algorithm=st.sampled_from(ALGORITHMS), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_range_equals_float64(backend, rows, n, bound, offset, algorithm, seed):
    x = draw((rows, n), bound, seed=seed) + offset
    assert softmax_units(backend, x, algorithm, run(backend, "softmax", x, algorithm)) <= limit(algorithm)


@settings(ANY_EXAMPLE, max_examples=25)
@given(
    values=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([0.0, -np.inf, 700.0])), min_size=1, max_size=200
    ),
    repeats=st.sampled_from([1, 30]), algorithm=st.sampled_from(ALGORITHMS),
)  # fmt: skip
def test_any_floats_behave_as_in_float64(backend, values, repeats, algorithm):
    x = torch.tensor([values * repeats], dtype=torch.float32, device=DEVICE)
    assert softmax_units(backend, x, algorithm, run(backend, "softmax", x, algorithm)) <= limit(algorithm)


def test_small_outputs_are_flushed(backend):
    for n in (1000, 5000):
        x = torch.linspace(-110.0, 0.0, n, device=DEVICE)[None]
        for algorithm in ALGORITHMS:
            y = run(backend, "softmax", x, algorithm)
            assert ((y == 0.0) | (y >= 2.0**-128)).all(), (n, algorithm)
            assert (y == 0.0).any()


def test_error_does_not_grow_with_length(backend):
    for n in (1000, 30_003):
        x = torch.full((1, n), 0.3, device=DEVICE)
        for algorithm in ALGORITHMS:
            assert softmax_units(backend, x, algorithm, run(backend, "softmax", x, algorithm)) <= 4.0, (n, algorithm)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="NOT CHECKED: allocations on a GPU, for want of one")
@pytest.mark.parametrize("shape", [(4096, 128), (64, 32000), (1, 2**24)], ids=str)
def test_a_second_call_allocates_nothing(backend, shape):
    x, out = draw(shape, 1.0), torch.empty(shape, device=DEVICE)
    backend.softmax(x, out, "two_pass", None)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    backend.softmax(x, out, "two_pass", None)
    assert torch.cuda.max_memory_allocated() == before
