"""The CUDA C++ kernels: compiled without spills, planned within the device's limits, and rows that begin anywhere."""

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
        x = ((torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * bound).to(dtype)
        source, out = memory[shift : shift + rows * n], torch.full((rows * n + 40,), 7.0, dtype=dtype)
        source.copy_(x.reshape(-1))
        y = out[16 : 16 + rows * n]
        cuda_gpu.ready.cache_clear()
        cuda_gpu.softmax(source.reshape(rows, n), y.reshape(rows, n), algorithm, None)
    cuda_gpu.ready.cache_clear()
    expected = truth.softmax(x.double().numpy())
    # Right to the type's own unit: what matters here is where, not how well.
    unit = 2.0**-18 if dtype == torch.float32 else 4.0 * TYPES[dtype]
    assert (np.abs(y.double().reshape(rows, n).numpy() - expected) <= unit * expected + 2.0**-24).all()
    assert (out[:16] == 7.0).all() and (out[16 + rows * n :] == 7.0).all()
