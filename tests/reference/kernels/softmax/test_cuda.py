"""The CUDA C++ kernels: compiled without spills, planned rightly, and run on the CPU where there is no GPU."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels import driver, target
from reference.kernels.softmax import ALGORITHMS, cuda_gpu, truth
from reference.kernels.target import Width

H100 = Width(132, 227 * 1024)
# So little that short rows take every way through the source.
NARROW = Width(2, 8192)
TYPES = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.fixture
def gpu(request, monkeypatch):
    """The device that the kernels run on: a GPU, or the CPU by the stand-in, as if it were narrow."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    stand_in = request.getfixturevalue("on_cpu")(cuda_gpu.SOURCE)
    monkeypatch.setattr(driver, "kernel", stand_in)
    monkeypatch.setattr(target, "width", lambda _device: NARROW)
    monkeypatch.setattr(target, "workspace", lambda _device, size: torch.empty(size, dtype=torch.uint8))
    return torch.device("cpu")


def run(op: str, x: torch.Tensor, algorithm: str = "two_pass", in_place: bool = False) -> np.ndarray:
    given_x = x.clone()
    if op == "log_sum_exp":
        out = torch.full(x.shape[:1], torch.nan, dtype=x.dtype, device=x.device)
    else:
        out = given_x if in_place else torch.full_like(x, torch.nan)
    getattr(cuda_gpu, op)(given_x, out, algorithm, None)
    assert in_place or torch.equal(given_x.nan_to_num(7.0), x.nan_to_num(7.0))
    return out.double().cpu().numpy()


def draw(rows: int, n: int, bound: float, dtype: torch.dtype, device: torch.device, seed: int = 0) -> torch.Tensor:
    values = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return ((values * 2 - 1) * bound).to(dtype).to(device)


def softmax_errors(y: np.ndarray, x: torch.Tensor, algorithm: str) -> np.ndarray:
    """|y - truth| in units of 2^-24 of the truth, beyond the rounding of 16-bit results (1.5 times for reload)."""
    expected = truth.softmax(x.double().cpu().numpy())
    halves = 0.0 if x.dtype == torch.float32 else 3.0 if algorithm == "three_pass_reload" else 1.0
    rounding = halves * np.maximum(expected * TYPES[x.dtype], 2.0**-25)
    beyond = np.maximum(np.abs(y - expected) - rounding, 0.0)
    return np.where(expected > truth.SMALLEST, beyond / np.maximum(expected, truth.SMALLEST) * 2.0**24, 0.0)


def test_every_kernel_compiles_without_spills(nvcc):
    for arch, kernels in nvcc(cuda_gpu.SOURCE).items():
        assert len(kernels) == 3 * 18 + 1, arch
        for name, taken in kernels.items():
            assert taken.spill_stores == taken.spill_loads == taken.stack_bytes == 0, (arch, name)
            assert taken.shared_bytes <= cuda_gpu.STATIC_SHARED_BYTES, (arch, name)
            threads = 1024 if name.startswith(("rows_shared", "rows_twice")) else 512
            assert taken.registers * threads <= 2**16, (arch, name)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 5000), n=st.one_of(st.integers(1, 3000), st.integers(1, 2**27)),
    dtype=st.sampled_from(list(TYPES)), algorithm=st.sampled_from(ALGORITHMS), aligned=st.booleans(),
    width=st.sampled_from([H100, NARROW, Width(108, 163 * 1024)]),
)
def test_plans_cover_the_row_within_the_devices_limits(rows, n, dtype, algorithm, aligned, width):
    size = dtype.itemsize
    aligned = aligned and n * size % 16 == 0
    p = cuda_gpu.plan(algorithm, rows, n, size, aligned, width)
    assert 1 <= p.grid <= 2**31 - 1 and p.block % 32 == 0 and 128 <= p.block <= 1024
    assert p.shared_bytes <= width.shared_bytes - cuda_gpu.STATIC_SHARED_BYTES
    if p.lanes:
        kind, steps = re.fullmatch(r"rows_warp_(scalar|vector)(\d+)", p.kernel).groups()
        assert p.lanes in (1, 2, 4, 8, 16, 32)
        assert int(steps) * p.lanes * (1 if kind == "scalar" else 16 // size) >= n
        assert (kind == "vector") == aligned
        assert p.grid * (p.block // p.lanes) >= rows
    elif p.chunks:
        assert p.grid == rows * p.chunks
        assert p.chunks == 1 or n * size // p.chunks >= cuda_gpu.CHUNK_BYTES
        assert rows == 1 or p.grid <= max(rows, 16 * width.multiprocessors)
    else:
        assert p.grid == rows
        assert p.kernel == "rows_shared" or algorithm in p.kernel
    expected = rows * p.chunks * 16 * (2 if algorithm.startswith("three") else 1)
    assert cuda_gpu.workspace_bytes(algorithm, rows, n, size, width) in (expected, 0)


def test_plans_for_the_shapes_that_matter():
    def plan(rows, n, size=4, algorithm="two_pass"):
        return cuda_gpu.plan(algorithm, rows, n, size, True, H100)

    assert plan(4096, 128) == cuda_gpu.Plan("rows_warp_vector1", 1024, 128, lanes=32)
    assert plan(256, 32000) == cuda_gpu.Plan("rows_shared", 256, 1024, 128016)
    assert plan(8192, 4096) == cuda_gpu.Plan("rows_shared", 8192, 256, 16400)
    assert plan(8192, 128256, 2) == cuda_gpu.Plan("rows_twice_two_pass", 8192, 1024)
    assert plan(1, 2**25) == cuda_gpu.Plan("partials_two_pass", 528, 256, chunks=528)
    assert plan(1, 2**25, algorithm="three_pass_reload").kernel == "maxima"
    with pytest.raises(ValueError, match="a row may have 1073741824 elements, not 1073741825"):
        plan(1, 2**30 + 1)


SHAPES = [(5, 1), (37, 3), (9, 20), (3, 33), (4, 128), (2, 500), (3, 1000), (2, 1024), (3, 1500), (2, 1800), (9, 1900),
          (1, 20_001)]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("rows, n", SHAPES)
def test_equals_float64_for_any_length(gpu, dtype, rows, n):
    x = draw(rows, n, 30.0, dtype, gpu)
    for algorithm in ALGORITHMS:
        y = run("softmax", x, algorithm)
        assert softmax_errors(y, x, algorithm).max() <= (8.0 if algorithm == "two_pass" else 72.0), algorithm
        assert np.array_equal(y, run("softmax", x, algorithm, in_place=True))


@pytest.mark.parametrize("algorithm", ["two_pass", "three_pass_recompute", "online"])
@pytest.mark.parametrize("rows, n", [(5, 1), (9, 20), (2, 500), (3, 1500), (9, 1900), (1, 9001)])
def test_logarithms_equal_float64(gpu, algorithm, rows, n):
    for dtype, unit in TYPES.items():
        x = draw(rows, n, 1000.0, dtype, gpu)
        wide = x.double().cpu()
        for op, expected in (("log_softmax", wide.log_softmax(-1)), ("log_sum_exp", wide.logsumexp(-1))):
            y = run(op, x, algorithm)
            allowed = np.maximum(1.0, expected.abs().numpy())
            rounding = 0.0 if dtype == torch.float32 else unit
            assert (np.abs(y - expected.numpy()) <= allowed * (8.0 * truth.UNIT + rounding)).all(), (op, dtype)


SPECIAL = {
    "masked": [-np.inf, 1.0, 2.0, -np.inf], "all masked": [-np.inf] * 4, "nan": [1.0, np.nan, 2.0, -np.inf],
    "nan and masked": [np.nan, -np.inf, -np.inf, -np.inf], "inf": [1.0, np.inf, np.inf, -np.inf],
    "inf and nan": [np.inf, np.nan, 1.0, 1.0], "large": [3e38, 3e38, 2.9e38, -3e38],
    "low": [-3e38, -3e38, -np.inf, -3e38],
    "beyond the split": [1.5e5, 1.5e5, 149_999.0, 0.0], "just below": [-131_000.0, -131_001.0, -131_080.0, -1e6],
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("n", [4, 700, 1500, 9001])
def test_special_rows(gpu, name, n):
    """Special values at the start, then, wherever it may matter, nothing but masked elements; a plain row beside."""
    x = torch.full((2, n), -torch.inf)
    x[0, -4:] = torch.tensor(SPECIAL[name])
    x[1] = 0.5
    x, wide = x.to(gpu), x.double()
    sums, logarithms = wide.logsumexp(-1).cpu().numpy(), wide.log_softmax(-1).float().cpu().numpy()
    wide = wide.cpu().numpy()
    for algorithm in ALGORITHMS:
        y = run("softmax", x, algorithm)
        expected = truth.softmax(wide)
        assert np.array_equal(np.isnan(y), np.isnan(expected)), algorithm
        assert (y[np.isneginf(wide) & ~np.isnan(expected)] == 0.0).all()
        assert np.nanmax(softmax_errors(y, x, algorithm)) <= 72.0
        if algorithm == "three_pass_reload":
            continue
        found = run("log_sum_exp", x, algorithm)
        assert np.allclose(found, sums, rtol=8 * truth.UNIT, atol=8 * truth.UNIT, equal_nan=True), algorithm
        logs, defined = run("log_softmax", x, algorithm), ~np.isnan(expected)
        assert np.array_equal(np.isnan(logs), np.isnan(expected)), algorithm
        assert np.allclose(logs[defined], logarithms[defined], rtol=8 * truth.UNIT, atol=8 * truth.UNIT)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 5), n=st.one_of(st.integers(1, 1100), st.integers(1700, 6000)), shift=st.integers(0, 9),
    dtype=st.sampled_from(list(TYPES)), algorithm=st.sampled_from(ALGORITHMS), seed=st.integers(0, 99),
    bound=st.sampled_from([0.0, 1.0, 100.0, 1e4, 6e4]),
)
def test_rows_may_begin_anywhere(on_cpu, rows, n, shift, dtype, algorithm, seed, bound):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "kernel", on_cpu(cuda_gpu.SOURCE))
        patch.setattr(target, "width", lambda _device: NARROW)
        patch.setattr(target, "workspace", lambda _device, size: torch.empty(size, dtype=torch.uint8))
        memory = torch.full((rows * n + 40,), 7.0, dtype=dtype)
        x = draw(rows, n, bound, dtype, torch.device("cpu"), seed)
        source, out = memory[shift : shift + rows * n], torch.full((rows * n + 40,), 7.0, dtype=dtype)
        source.copy_(x.reshape(-1))
        y = out[16 : 16 + rows * n]
        cuda_gpu.softmax(source.reshape(rows, n), y.reshape(rows, n), algorithm, None)
    errors = softmax_errors(y.double().reshape(rows, n).numpy(), x, algorithm)
    assert errors.max() <= (8.0 if algorithm == "two_pass" else 72.0)
    assert (out[:16] == 7.0).all() and (out[16 + rows * n :] == 7.0).all()


def test_error_does_not_grow_with_length(gpu):
    for n in (1000, 2000, 100_003):
        x = torch.full((1, n), 0.3, device=gpu)
        assert softmax_errors(run("softmax", x), x, "two_pass").max() <= 4.0, n
