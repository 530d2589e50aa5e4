"""What this machine can do at most: stream bandwidth and float32 arithmetic, for the roofline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from harness.plan.machine import this_machine
from harness.run.measure.threads import limit_threads, thread_count

_REPEATS = 40
_GEMM = 1536
# Fused multiply-adds per element and elements of the arithmetic probe: it stays in the first-level cache.
_CHAIN, _BLOCK, _PASSES = 32, 2048, 512


def measure_ceilings(threads: tuple[Any, ...] = (1, "all")) -> dict[str, Any]:
    """Bytes per second of read, copy and triad streams beyond the cache, and float32 FLOP/s.

    The best of several repeats, since a ceiling is what the machine can do undisturbed; for arithmetic also the better
    of a matrix product and of chains of multiply-adds, since a BLAS need not know this processor. Streams count the
    bytes that the program reads and writes; a write's hidden read of the cache line is not counted.
    """
    array_bytes = max(4 * this_machine().caches["llc"], 2**26)
    size = array_bytes // 4
    a, b, c = (np.full(size, value, dtype=np.float32) for value in (0.0, 1.0, 2.0))
    found = {}
    for count in threads:
        limit_threads(count)
        found[str(count)] = {
            "read_bytes_per_s": array_bytes / _best_s(lambda: _read(b)),
            "copy_bytes_per_s": 2 * array_bytes / min(_best_s(lambda: _copy(a, b)), _best_s(lambda: np.copyto(a, b))),
            "triad_bytes_per_s": 3 * array_bytes / _best_s(lambda: _triad(a, b, c)),
            "flops_per_s": max(2 * _GEMM**3 / _best_s(_gemm()), _chain_flops(thread_count(count))),
        }
    return {"threads": found, "array_bytes": array_bytes}


def _best_s(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def _gemm() -> Callable[[], object]:
    import torch

    left, right = torch.ones(_GEMM, _GEMM), torch.ones(_GEMM, _GEMM)
    out = torch.empty(_GEMM, _GEMM)
    return lambda: torch.mm(left, right, out=out)


def _chain_flops(threads: int) -> float:
    """FLOP/s of Horner chains, every thread on a block of its own."""
    blocks = np.full((threads, _BLOCK), 0.5, dtype=np.float32)
    work = 2 * _CHAIN * _BLOCK * _PASSES * threads
    return work / _best_s(lambda: _chain(blocks, np.float32(0.9), np.float32(0.1)))


@numba.njit(parallel=True, fastmath={"contract"}, cache=True)
def _chain(blocks, a, b):  # type: ignore[no-untyped-def]
    for row in numba.prange(blocks.shape[0]):
        block = blocks[row]
        for _ in range(_PASSES):
            for i in range(block.size):
                y = block[i]
                for _ in range(_CHAIN):
                    y = y * a + b
                block[i] = y


@numba.njit(parallel=True, fastmath=True, cache=True)
def _read(b):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in numba.prange(b.size):
        total += b[i]
    return total


@numba.njit(parallel=True, cache=True)
def _copy(a, b):  # type: ignore[no-untyped-def]
    for i in numba.prange(b.size):
        a[i] = b[i]


@numba.njit(parallel=True, cache=True)
def _triad(a, b, c):  # type: ignore[no-untyped-def]
    for i in numba.prange(b.size):
        a[i] = b[i] + np.float32(3.0) * c[i]
