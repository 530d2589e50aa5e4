"""Every way through the GPU kernels against float64: on a GPU, or CUDA run on the CPU and Triton in its interpreter.

The device is said to be so narrow that the short rows of the tests count as long ones.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.kernels import driver, softmax, target
from reference.kernels.softmax import ALGORITHMS, cuda_gpu, truth
from reference.kernels.target import Width

# NaN and infinities are among the inputs; the interpreter computes with numpy.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
DEVICE = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
# Half a spacing of 16-bit types; bfloat16 a whole one, since Triton's interpreter cuts it off.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7}
ANY_EXAMPLE = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def cuda(request, monkeypatch):
    """softmax.cu planned for a narrow device, and ``backend="cuda"`` meaning it wherever the tensors are."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(driver, "kernel", request.getfixturevalue("on_cpu")(cuda_gpu.SOURCE))
        monkeypatch.setattr(target, "workspace", lambda _device, size: torch.empty(size, dtype=torch.uint8))
        monkeypatch.setattr(softmax, "choose", lambda *_: "cuda")
    monkeypatch.setattr(target, "width", lambda _device: Width(2, 8192))
    monkeypatch.setattr(cuda_gpu, "CHUNK_BYTES", 4096)
    for remembered in (cuda_gpu.plan, cuda_gpu.ready):
        remembered.cache_clear()
        request.addfinalizer(remembered.cache_clear)
    return "cuda"


@pytest.fixture
def triton(request, device, monkeypatch):
    """The Triton kernels with rows of more than 600 elements as long ones."""
    from reference.kernels.softmax import triton_gpu

    monkeypatch.setattr(target, "width", lambda _device: triton_gpu.INTERPRETED)
    monkeypatch.setattr(triton_gpu, "ROW_ELEMENTS", 600)
    triton_gpu.plan.cache_clear()
    request.addfinalizer(triton_gpu.plan.cache_clear)
    return "triton"


@pytest.fixture(params=["cuda", "triton"])
def backend(request):
    return request.getfixturevalue(request.param)


def test_cuda_passes_the_table(case, cuda):
    case.check(cuda, str(DEVICE))


LONG = ["rows of 1000", "rows of 2049", "one row of 5003", "wide", "small outputs", "masked", "NaN and infinities"]


@pytest.mark.parametrize("case", [(name, "float32") for name in LONG], ids=str, indirect=True)
def test_long_rows_in_triton_pass_the_table(case, triton):
    case.check(triton, str(DEVICE))


def draw(shape: tuple[int, int], bound: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    values = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values * 2 - 1) * bound).to(dtype).to(DEVICE)


def softmax_units(backend: str, x: torch.Tensor, algorithm: str) -> float:
    """The largest error, beyond the type's rounding, in units of 2^-24 of the truth where that is above 2^-100."""
    y = softmax.softmax(x, algorithm=algorithm, backend=backend).double().cpu().numpy()
    expected = truth.softmax(x.double().cpu().numpy())
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    roundings = (3.0 if algorithm == "three_pass_reload" else 1.0) * ROUNDING[x.dtype]
    smallest = 2.0**-14 if x.dtype == torch.float16 else 0.0  # below, its spacing is constant
    error = np.abs(y - expected) - roundings * np.maximum(expected, smallest)
    counts = expected > truth.SMALLEST
    return float(np.max(error[counts] / expected[counts], initial=0.0) / truth.UNIT)


def limit(algorithm: str) -> float:
    return 8.0 if algorithm == "two_pass" else 72.0


@settings(ANY_EXAMPLE, max_examples=40)
@given(
    rows=st.integers(1, 9), n=st.one_of(st.integers(1, 1100), st.integers(1700, 6000)),
    bound=st.sampled_from([0.0, 1e-30, 30.0, 1e4, 1.3e5, 1e7, 1e30]), offset=st.sampled_from([0.0, -5e4, 9e4]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), algorithm=st.sampled_from(ALGORITHMS),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_and_range_equals_float64(backend, rows, n, bound, offset, dtype, algorithm, seed):
    x = draw((rows, n), bound, dtype, seed) + offset
    assert softmax_units(backend, x, algorithm) <= limit(algorithm)


@settings(ANY_EXAMPLE, max_examples=25)
@given(
    values=st.lists(
        st.one_of(st.floats(width=32), st.sampled_from([0.0, -np.inf, 700.0])), min_size=1, max_size=200
    ),
    repeats=st.sampled_from([1, 30]), algorithm=st.sampled_from(ALGORITHMS),
)  # fmt: skip
def test_any_floats_behave_as_in_float64(backend, values, repeats, algorithm):
    x = torch.tensor([values * repeats], dtype=torch.float32, device=DEVICE)
    assert softmax_units(backend, x, algorithm) <= limit(algorithm)


@pytest.mark.parametrize("low", [-131_080.0, -1e6, -np.inf])
def test_masked_elements_weigh_nothing_just_within_the_range_of_the_split(backend, low):
    for n in (4, 700, 5001):
        x = torch.full((2, n), low, device=DEVICE)
        x[:, -2:] = torch.tensor([-131_000.0, -131_001.0])
        for algorithm in ALGORITHMS:
            assert softmax_units(backend, x, algorithm) <= limit(algorithm), (n, algorithm)
            assert (softmax.softmax(x, algorithm=algorithm, backend=backend)[:, :-2] < 1e-30).all(), (n, algorithm)


def test_error_does_not_grow_with_length(backend):
    for n in (600, 20_003):
        x = torch.full((1, n), 0.3, device=DEVICE)
        for algorithm in ALGORITHMS:
            assert softmax_units(backend, x, algorithm) <= 4.0, (n, algorithm)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="NOT CHECKED: allocations on a GPU, for want of one")
@pytest.mark.parametrize("backend", ["cuda", "triton"])
@pytest.mark.parametrize("shape", [(4096, 128), (64, 32000), (1, 2**24)], ids=str)
def test_a_second_call_allocates_nothing(backend, shape):
    x, out = draw(shape, 1.0), torch.empty(shape, device=DEVICE)
    softmax.softmax(x, out, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    softmax.softmax(x, out, backend=backend)
    assert torch.cuda.max_memory_allocated() == before
