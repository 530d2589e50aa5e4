"""What this machine's CPU can do at most: stream bandwidth and float32 arithmetic, for the roofline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from harness.plan.machine import this_machine
from harness.run.measure import streams
from harness.run.measure.threads import limit_threads, thread_count

_REPEATS, _LEAST_REPEATS, _PROBE_S = 40, 5, 0.25
_GEMM = 1536
_BLOCK = 2048


def measure_ceilings(threads: tuple[Any, ...] = (1, "all")) -> dict[str, Any]:
    """Bytes per second of read, copy and triad streams beyond the cache, and float32 FLOP/s.

    The best of several repeats of several loops, since a ceiling is what the machine can do undisturbed: plain and
    prefetching streams, the matrix products of both of torch's libraries, and chains of multiply-adds. Streams count
    the bytes that the program reads and writes; a write's hidden read of the cache line is not counted.
    """
    array_bytes = max(4 * this_machine().caches["llc"], 2**26)
    found = {}
    for count in threads:
        limit_threads(count)
        parts = thread_count(count)
        found[str(count)] = {**_bandwidths(array_bytes, parts), "flops_per_s": _flops(parts)}
    return {"threads": found, "array_bytes": array_bytes}


def _bandwidths(array_bytes: int, parts: int) -> dict[str, float]:
    size = array_bytes // 4 // (streams.LANES * parts) * (streams.LANES * parts)
    a, b, c = (np.full(size, value, dtype=np.float32) for value in (0.0, 1.0, 2.0))
    sums = np.empty(parts, np.float32)
    reads = (lambda: streams.read(b), lambda: streams.read_ahead(b, sums))
    copies = (lambda: streams.copy(a, b), lambda: streams.copy_ahead(a, b, parts), lambda: np.copyto(a, b))
    triads = (lambda: streams.triad(a, b, c), lambda: streams.triad_ahead(a, b, c, parts))
    return {f"{name}_bytes_per_s": arrays * 4 * size / min(map(_best_s, loops))
            for name, arrays, loops in (("read", 1, reads), ("copy", 2, copies), ("triad", 3, triads))}


def _flops(parts: int) -> float:
    blocks = np.full((parts, _BLOCK), 0.5, dtype=np.float32)
    chained = 2.0 * streams.CHAIN * streams.PASSES * blocks.size
    return max(chained / _best_s(lambda: streams.chain(blocks, np.float32(0.9), np.float32(0.1))),
               *(2.0 * _GEMM**3 / _best_s(product) for product in _products()))


def _products() -> Iterator[Callable[[], object]]:
    """A float32 matrix product by torch's BLAS and, where torch has it, by oneDNN, which knows other processors."""
    import torch

    left, right = torch.ones(_GEMM, _GEMM), torch.ones(_GEMM, _GEMM)
    out = torch.empty(_GEMM, _GEMM)
    yield lambda: torch.mm(left, right, out=out)
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        yield lambda: torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


def _best_s(work: Callable[[], object]) -> float:
    """Seconds of the fastest run: of 40, or of as many as a quarter of a second holds, but at least 5."""
    work()
    times: list[float] = []
    started = time.perf_counter()
    while len(times) < _REPEATS and (len(times) < _LEAST_REPEATS or time.perf_counter() - started < _PROBE_S):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)
