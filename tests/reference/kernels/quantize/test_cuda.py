"""The CUDA C++ kernels: compiled without spills, planned rightly, and what their arithmetic rests on."""

from __future__ import annotations

import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels import driver, target
from reference.kernels.quantize import cuda_gpu, dynamic_map, gpu_book
from reference.kernels.quantize.settings import MomentumSettings

OPS = tuple(cuda_gpu.ENTRIES)
STEPS = ("adam", "momentum", "lion")
REGISTERS = 2**16
# What a multiprocessor of sm_80 has, less what the system keeps for each CUDA block.
SHARED_BYTES = 164 * 1024


def test_every_kernel_compiles_without_spills_and_as_many_run_at_once_as_planned(nvcc):
    stages = [f"{op}_{stage}" for op in ("quantize", *STEPS) for stage in ("tiles", "largest", "finish")]
    books = {"quantize": 1, "adam": 2, "momentum": 1, "lion": 1, "dequantize": 0}
    largest = 4 * (gpu_book.BINS + gpu_book.MOST_BINS)
    for arch, kernels in nvcc(cuda_gpu.SOURCE).items():
        assert set(kernels) == {*stages, "dequantize_quads", "dequantize_pieces"}, arch
        for name, taken in kernels.items():
            op, stage = name.split("_")
            tiled = stage in ("tiles", "quads")
            threads = cuda_gpu.TILE_THREADS if tiled else cuda_gpu.PIECE_THREADS
            at_once = cuda_gpu.TILES_AT_ONCE[op] if tiled else cuda_gpu.PIECES_AT_ONCE
            assert taken.spill_stores == taken.spill_loads == taken.stack_bytes == 0, (arch, name)
            # Registers are given to warps in units of eight a thread.
            assert -(-taken.registers // 8) * 8 * threads * at_once <= REGISTERS, (arch, name)
            if tiled:
                assert (taken.shared_bytes + 1024 + books[op] * largest) * at_once <= SHARED_BYTES, (arch, name)


@settings(max_examples=300)
@given(
    op=st.sampled_from(OPS), n=st.integers(1, 2**34), aligned=st.booleans(),
    block=st.one_of(st.integers(1, 10**5), st.sampled_from([*cuda_gpu.BLOCKS, 2**34])),
    multiprocessors=st.sampled_from([1, 108, 132]),
)
def test_plans_hold_whole_blocks_and_fill_the_device(op, n, block, aligned, multiprocessors):
    chosen = cuda_gpu.plan(op, n, block, aligned, multiprocessors)
    assert chosen.grid >= 1
    assert aligned or not chosen.tiled
    if not chosen.tiled:
        pieces = -(-n // block) * -(-min(block, n) // cuda_gpu.PIECE)
        assert chosen.threads == cuda_gpu.PIECE_THREADS
        assert (chosen.grid - 1) * (chosen.threads // 32) < pieces
        return
    entries = chosen.threads * cuda_gpu.ENTRIES[op]
    assert chosen.grid == min(-(-n // entries), cuda_gpu.TILES_AT_ONCE[op] * multiprocessors)
    if op == "dequantize":
        assert (n - 1) >> chosen.shift == (n - 1) // block
        assert block >= n or block % 4 == 0
        return
    held = cuda_gpu.ENTRIES[op] << chosen.shift
    assert held == block or (block >= n and held >= n)
    assert held <= entries


def test_plans_for_the_sizes_that_matter():
    assert cuda_gpu.plan("quantize", 2**26, 256, True, 132) == cuda_gpu.Plan(True, 264, 512, 4)
    assert cuda_gpu.plan("adam", 2**26, 4096, True, 132) == cuda_gpu.Plan(True, 264, 512, 9)
    assert cuda_gpu.plan("adam", 2**26, 64, True, 132) == cuda_gpu.Plan(True, 264, 512, 3)
    assert cuda_gpu.plan("quantize", 2**12, 256, True, 132).grid == 1
    assert cuda_gpu.plan("lion", 768, 768, True, 132) == cuda_gpu.Plan(True, 1, 512, 7)
    assert not cuda_gpu.plan("lion", 2**26, 2**26, True, 132).tiled
    assert cuda_gpu.plan("dequantize", 2**26, 2**26, True, 132) == cuda_gpu.Plan(True, 528, 512, 62)


def test_only_steps_in_pieces_need_memory_beside_their_operands():
    assert cuda_gpu.workspace_bytes("adam", 10**6, 256) == 0
    assert cuda_gpu.workspace_bytes("adam", 10**6, 1000) == 8 * 1000
    assert cuda_gpu.workspace_bytes("lion", 10**6, 10**6) == 4
    assert cuda_gpu.workspace_bytes("momentum", 10**6, 256, aligned=False) == 4 * 3907
    assert cuda_gpu.workspace_bytes("quantize", 10**6, 1000) == cuda_gpu.workspace_bytes("dequantize", 9, 7) == 0


def test_a_step_in_pieces_takes_the_workspace_that_it_declares(on_cpu, monkeypatch):
    taken = []

    def workspace(_device, size_bytes):
        taken.append(size_bytes)
        return torch.full((size_bytes,), 77, dtype=torch.uint8)

    monkeypatch.setattr(driver, "kernel", on_cpu(cuda_gpu.SOURCE))
    monkeypatch.setattr(target, "width", lambda _device: target.Width(1, SHARED_BYTES))
    monkeypatch.setattr(target, "workspace", workspace)
    for n, block in ((512, 256), (512, 100), (9000, 9000)):
        p, g = torch.zeros(n), torch.ones(n)
        state = torch.zeros(n, dtype=torch.uint8), torch.zeros(-(-n // block)), dynamic_map(True)
        cuda_gpu.momentum(p, g, state, block, MomentumSettings.of(0.1, 0.9, 0.0))
        assert state[1].eq(1).all()
    assert taken == [cuda_gpu.workspace_bytes("momentum", n, block) for n, block in ((512, 100), (9000, 9000))]


def hard_quotients(count: int, seed: int):
    """Pairs x, a of 24-bit whole numbers whose quotient comes within 3/a of the middle between two floats."""
    draw = random.Random(seed)
    while count:
        a, distance = draw.randrange(2**23 + 1, 2**24, 2), draw.choice([-5, -3, -1, 1, 3, 5])
        scale = draw.choice([24, 25])
        middle = -distance * pow(a, -1, 2**scale) % 2**scale  # x * 2^scale = a * middle + distance, middle odd
        x, rest = divmod(a * middle + distance, 2**scale)
        if rest == 0 and middle % 2 and 2**24 <= middle < 2**25 and 2**23 <= x < 2**24:
            count -= 1
            yield x, a


def test_a_reciprocal_and_two_fused_operations_give_the_ieee_quotient():
    """The quotient of quantize.cuh. By its error only such pairs are in doubt; these are some of the 2^25."""

    def nearest(value):
        """The float32 nearest to a fraction: a float64 decides like it, rounded to odd where it is not exact."""
        high = float(value)
        if Fraction(high) != value and np.float64(high).view(np.int64) % 2 == 0:
            high = float(np.nextafter(high, np.inf if value > Fraction(high) else -np.inf))
        return np.float32(high)

    for x, a in hard_quotients(3000, 0):
        reciprocal = np.float32(1) / np.float32(a)
        q = np.float32(x) * reciprocal
        rest = nearest(Fraction(x) - Fraction(a) * Fraction(float(q)))
        found = nearest(Fraction(float(rest)) * Fraction(float(reciprocal)) + Fraction(float(q)))
        assert found == np.float32(x) / np.float32(a), (x, a)


def test_on_a_gpu_the_kernels_take_no_memory_of_torchs():
    if not torch.cuda.is_available():
        pytest.skip("NOT CHECKED: the allocator's peak needs a CUDA device")
    n = 2**22
    x, absmax = torch.randn(n, device="cuda"), torch.empty(n // 256, device="cuda")
    codes, code = torch.empty(n, dtype=torch.uint8, device="cuda"), dynamic_map(True, "cuda:0")
    cuda_gpu.quantize(x, code, 256, codes, absmax)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cuda_gpu.quantize(x, code, 256, codes, absmax)
    cuda_gpu.dequantize(codes, absmax, code, 256, x)
    assert torch.cuda.max_memory_allocated() == before
