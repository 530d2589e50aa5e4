"""The Triton backend: which kernels of ``triton_kernels`` run for a shape, in which sizes, and their launches.

Block sizes and warps are plain functions of the shape and the device. A row that fits into a program's registers is
read once, whatever the algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from reference.kernels import target
from reference.kernels.softmax import triton_kernels as kernels

SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP = range(3)  # as in triton_kernels
FIRST_PASS = {"two_pass": 0, "online": 1, "three_pass_recompute": 2, "three_pass_reload": 2}
LONGEST = 2**30  # elements of a row; indices within a row are 32 bits wide
ROW_ELEMENTS = 2**14  # the longest row of one program: 16 elements a thread; 32 do not fit into its registers
LANES_OF_WARP = 4 * 32  # elements that a warp takes at a time from a long row, four times over
PARTIAL_BYTES = 16
MOST_CHUNKS = 2048  # of a row: every program of the last pass merges them all
OPTIONS = {"enable_fp_fusion": False}  # the kernels say fma where they mean it
INTERPRETED = target.Width(1, 0)


@dataclass(frozen=True)
class Plan:
    """One way through triton_kernels; ``block`` is what a program holds of a row, ``steps`` of 4 * block follow it."""

    kind: str  # rows, twice or chunks
    grid: int
    block: int
    num_warps: int
    rows: int = 1  # of a program
    steps: int = 0
    chunks: int = 0

    @property
    def chunks_padded(self) -> int:
        """``chunks`` raised to a power of two."""
        return 1 << (self.chunks - 1).bit_length()


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
    return rows * plan(algorithm, rows, n, itemsize, width).chunks * PARTIAL_BYTES


@lru_cache(maxsize=4096)
def plan(algorithm: str, rows: int, n: int, itemsize: int, width: target.Width) -> Plan:
    """What runs for ``rows`` rows of ``n`` elements. Raises ValueError for rows longer than ``LONGEST``."""
    if n > LONGEST:
        raise ValueError(f"a row may have {LONGEST} elements, not {n}")
    if n <= ROW_ELEMENTS:
        block = max(16, 1 << (n - 1).bit_length())
        together = max(1, 1024 // block)
        return Plan("rows", -(-rows // together), block, min(32, max(2, block // 512)), together)
    if algorithm in ("two_pass", "online") and rows >= 4 * width.multiprocessors:
        # As wide as a program can be, so that L2 holds the rows of those that run.
        return Plan("twice", rows, 32 * LANES_OF_WARP, 32, steps=-(-n // (4 * 32 * LANES_OF_WARP)))
    block = 8 * LANES_OF_WARP
    # One full wave for one row; else several, so that the last one matters little.
    programs = width.multiprocessors * (4 if rows == 1 else 16)
    most = min(MOST_CHUNKS, max(1, programs // rows))
    steps = -(-n // (4 * block * most))
    chunks = -(-n // (4 * block * steps))
    return Plan("chunks", rows * chunks, block, 8, steps=steps, chunks=chunks)


def _run(x: Tensor, out: Tensor, algorithm: str, mode: int) -> None:
    rows, n = x.shape
    half = x.element_size() == 2
    p = plan(algorithm, rows, n, x.element_size(), target.width(x.device) if x.is_cuda else INTERPRETED)
    with torch.cuda.device_of(x):
        if p.kind == "rows":
            kernels.rows_kernel[(p.grid,)](
                x, out, rows, n, MODE=mode, ROWS=p.rows, BLOCK=p.block, HALF=half, num_warps=p.num_warps,
                **OPTIONS,
            )
        elif p.kind == "twice":
            kernels.rows_twice_kernel[(p.grid,)](
                x, out, n, p.steps, ALGORITHM=FIRST_PASS[algorithm], MODE=mode, LANES=p.block, HALF=half,
                num_warps=p.num_warps, **OPTIONS,
            )
        else:
            _run_chunks(p, x, out, algorithm, mode)


def _run_chunks(p: Plan, x: Tensor, out: Tensor, algorithm: str, mode: int) -> None:
    rows, n = x.shape
    parts = _partials(x.device, p.grid)
    sizes = (n, p.chunks, p.steps)
    lanes = {"LANES": p.block, "HALF": x.element_size() == 2, "num_warps": p.num_warps, **OPTIONS}
    merged = {"CHUNKS": p.chunks_padded, **lanes}
    common = algorithm.startswith("three")  # then all sums are relative to the row's maximum
    kernels.partials_kernel[(p.grid,)](x, *parts, *sizes, ALGORITHM=FIRST_PASS[algorithm], **lanes)
    if common:
        reload = algorithm == "three_pass_reload"
        kernels.terms_kernel[(p.grid,)](x, out, *parts, *sizes, STORE=reload, **merged)
        if reload:
            del merged["HALF"]
            kernels.scale_kernel[(p.grid,)](out, parts[0], *sizes, **merged)
            return
    if mode == LOG_SUM_EXP:
        kernels.log_sum_exp_kernel[(rows,)](
            out, *parts, p.chunks, COMMON=common, CHUNKS=p.chunks_padded, num_warps=4, **OPTIONS
        )
    else:
        kernels.finish_kernel[(p.grid,)](x, out, *parts, *sizes, MODE=mode, COMMON=common, **merged)


def _partials(device: torch.device, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sums, exponents and maxima of ``count`` chunks."""
    size = count * PARTIAL_BYTES
    memory = target.workspace(device, size) if device.type == "cuda" else torch.empty(size, dtype=torch.uint8)
    sums, rest = memory[: 8 * count].view(torch.float64), memory[8 * count : size].view(torch.float32)
    return sums, rest[:count], rest[count:]
