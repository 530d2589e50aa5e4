"""The CUDA C++ backend: which kernels of softmax.cu run for a shape, and their launches.

A row that fits into a warp's registers or a block's shared memory is read once, by one kernel, whatever the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reference.kernels import driver, target

SOURCE = Path(__file__).with_name("softmax.cu")
SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP = range(3)  # as in softmax.cu
SUFFIXES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
LONGEST = 2**30  # elements of a row; indices within a row are 32 bits wide
PARTIAL_BYTES = 16
STATIC_SHARED_BYTES = 1024  # what a block needs beside its row, and the system's share
WARP_ELEMENTS = 1024  # the longest row of a warp
CHUNK_BYTES = 2**14  # a chunk has at least so many


@dataclass(frozen=True)
class Plan:
    """One way through softmax.cu: ``rows_*`` kernels stand alone, ``chunks`` > 0 means passes over chunks of rows."""

    kernel: str
    grid: int
    block: int
    shared_bytes: int = 0
    lanes: int = 0
    chunks: int = 0


def softmax(x: Tensor, out: Tensor, algorithm: str, threads: int | None) -> None:
    """Write the softmax over the last axis of ``x`` (rows, n) into ``out``, which may be ``x``."""
    _run(x, out, algorithm, SOFTMAX)


def log_softmax(x: Tensor, out: Tensor, algorithm: str, threads: int | None) -> None:
    """Write x - ln(sum(e^x)) over the last axis of ``x`` (rows, n) into ``out``, which may be ``x``."""
    _run(x, out, algorithm, LOG_SOFTMAX)


def log_sum_exp(x: Tensor, out: Tensor, algorithm: str, threads: int | None) -> None:
    """Write ln(sum(e^x)) over the last axis of ``x`` (rows, n) into ``out`` (rows,)."""
    _run(x, out, algorithm, LOG_SUM_EXP)


def workspace_bytes(algorithm: str, rows: int, n: int, itemsize: int, width: target.Width) -> int:
    """Device memory for partial results of long rows; kept for the next call on the same stream."""
    chunks = plan(algorithm, rows, n, itemsize, False, width).chunks
    return rows * chunks * PARTIAL_BYTES * (2 if algorithm.startswith("three") else 1)


@lru_cache(maxsize=4096)
def plan(algorithm: str, rows: int, n: int, itemsize: int, aligned: bool, width: target.Width) -> Plan:
    """What runs for ``rows`` rows of ``n`` elements; ``aligned``: each row begins at a multiple of 16 bytes.

    Raises ValueError for rows longer than ``LONGEST``.
    """
    if n > LONGEST:
        raise ValueError(f"a row may have {LONGEST} elements, not {n}")
    if n <= WARP_ELEMENTS:
        return _warp_plan(rows, n, 16 // itemsize if aligned else 1, itemsize)
    row_bytes = n * itemsize + 16
    if row_bytes <= width.shared_bytes - STATIC_SHARED_BYTES:
        return Plan("rows_shared", rows, _block(rows, row_bytes, width), row_bytes)
    if algorithm in ("two_pass", "online") and rows >= 4 * width.multiprocessors:
        return Plan(f"rows_twice_{algorithm}", rows, 1024)
    first = {"two_pass": "partials_two_pass", "online": "partials_online"}.get(algorithm, "maxima")
    # One full wave for one row; else several, so that the last one matters little.
    blocks = width.multiprocessors * (4 if rows == 1 else 16)
    chunks = max(1, min(blocks // rows, n * itemsize // CHUNK_BYTES))
    return Plan(first, rows * chunks, 256, chunks=chunks)


def _warp_plan(rows: int, n: int, width: int, itemsize: int) -> Plan:
    items = -(-n // width)
    lanes = min(32, 1 << (items - 1).bit_length())
    sizes = (1, 4, 16, 32) if width == 1 else (1, 2, 4, 8) if itemsize == 4 else (1, 2, 4)
    steps = next(size for size in sizes if size * lanes >= items)
    return Plan(f"rows_warp_{'scalar' if width == 1 else 'vector'}{steps}", -(-rows * lanes // 128), 128, lanes=lanes)


def _block(rows: int, row_bytes: int, width: target.Width) -> int:
    """Threads for a row: four vectors each where there are rows for all, one where there are few."""
    vectors = row_bytes // 16 // (4 if rows >= width.multiprocessors else 1)
    # A second block should fit beside a row that leaves it room.
    most = 512 if 2 * row_bytes <= width.shared_bytes else 1024
    return min(most, max(128, -(-vectors // 32) * 32))


def _run(x: Tensor, out: Tensor, algorithm: str, mode: int) -> None:
    rows, n = x.shape
    aligned = (n * x.element_size() | x.data_ptr() | (0 if mode == LOG_SUM_EXP else out.data_ptr())) % 16 == 0
    p, kernel, sizes = ready(algorithm, mode, rows, n, x.dtype, aligned, x.device)
    if p.chunks:
        _run_chunks(p, x, out, algorithm, mode)
    else:
        kernel.launch(p.grid, p.block, (x, out, *sizes), p.shared_bytes)


@lru_cache(maxsize=4096)
def ready(
    algorithm: str, mode: int, rows: int, n: int, dtype: torch.dtype, aligned: bool, device: torch.device
) -> tuple[Plan, driver.Kernel, tuple[np.generic, ...]]:
    """The plan for a shape, its first kernel and the sizes that a kernel of whole rows takes, looked up in one go."""
    p = plan(algorithm, rows, n, dtype.itemsize, aligned, target.width(device))
    sizes: tuple[np.generic, ...] = (np.int32(n), np.int32(mode))
    if p.lanes:
        sizes = (np.int64(rows), np.int32(n), np.int32(p.lanes), np.int32(mode))
    return p, _kernel(p.kernel, dtype, device), sizes


def _run_chunks(p: Plan, x: Tensor, out: Tensor, algorithm: str, mode: int) -> None:
    n, chunks = np.int32(x.shape[1]), np.int32(p.chunks)
    parts = target.workspace(x.device, p.grid * PARTIAL_BYTES * (2 if algorithm.startswith("three") else 1))

    def launch(name: str, *args: Tensor | np.generic, grid: int = p.grid) -> None:
        _kernel(name, x.dtype, x.device).launch(grid, p.block, args)

    launch(p.kernel, x, parts, n, chunks)
    if algorithm.startswith("three"):
        maxima, parts = parts, parts[p.grid * PARTIAL_BYTES :]
        if algorithm == "three_pass_reload":
            launch("sum_store_exp", x, out, maxima, parts, n, chunks)
            launch("scale", out, parts, n, chunks)
            return
        launch("sum_exp", x, maxima, parts, n, chunks)
    if mode == LOG_SUM_EXP:
        launch("log_sum_exp", out, parts, chunks, grid=x.shape[0])
    else:
        launch("finish", x, out, parts, n, chunks, np.int32(mode))


def _kernel(name: str, dtype: torch.dtype, device: torch.device) -> driver.Kernel:
    return driver.kernel(SOURCE, f"{name}_{SUFFIXES[dtype]}", device)
