"""What each algorithm and each pass must move, compute and allocate (table 2 of the paper's section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

GRAIN = 2**16  # elements below which a second thread costs more than it brings
PARTIAL_BYTES = 12  # of a chunk: its sum in float64, its exponent or maximum in float32
EAGER_BYTES_PER_ELEMENT = 80  # at most; the operations' results, most of them in float64


def chunks_of(elements: int, threads: int) -> int:
    """How many threads ``elements`` are worth: each gets at least ``GRAIN``."""
    return max(1, min(threads, elements // GRAIN))


def shared(rows: int, n: int, threads: int) -> tuple[str, int]:
    """How the CPU kernels share (rows, n) among threads: ("rows", workers) or ("chunks", chunks of each row)."""
    workers, chunks = chunks_of(rows * n, threads), chunks_of(n, threads)
    # A handful of long rows would leave threads idle at the end.
    if chunks < workers or rows >= 8 * workers or rows % workers == 0:
        return "rows", min(workers, rows)
    return "chunks", chunks


def workspace_bytes(
    rows: int, n: int, *, itemsize: int = 4, algorithm: str = "two_pass", backend: str = "numba", threads: int = 1,
    device: Any = None,
) -> int:
    """What a call may allocate beyond ``x`` and ``out``; the same for all three functions.

    numba: the partial results of the chunks of a long row (``bind`` makes them once). triton and cuda: the same in
    device memory, kept for the next call, for the CUDA ``device``. eager: an upper limit, see EAGER_BYTES_PER_ELEMENT.
    """
    if backend == "numba":
        how, parts = shared(rows, n, threads)
        return parts * PARTIAL_BYTES if how == "chunks" else 0
    if backend == "eager":
        return EAGER_BYTES_PER_ELEMENT * rows * n
    from reference.kernels import target

    module = import_module(f"reference.kernels.softmax.{backend}_gpu")
    return module.workspace_bytes(algorithm, rows, n, itemsize, target.width(device))


@dataclass(frozen=True)
class Cost:
    """Arrays read and written once, and floating-point additions and multiplications (an FMA is two), per element."""

    reads: int
    writes: int
    flops: float

    def bytes_moved(self, elements: int, itemsize: int = 4) -> float:
        """Bytes to and from memory; reads that stores provoke (write-allocate) left out."""
        return float(itemsize) * (self.reads + self.writes) * elements

    def flops_done(self, elements: int) -> float:
        """Operations for ``elements`` elements."""
        return self.flops * elements


# The split of e^x into p * 2^n: 1 product, 2 FMA of the reduction, 5 of the polynomial. 2^n costs one addition.
_SPLIT = 15.0
_EXP = _SPLIT + 2.0
PASSES = {
    "accumulate": Cost(1, 0, _SPLIT + 4.75),  # n - e, its power, the FMA; one rescaling for four elements
    "store": Cost(1, 1, _SPLIT + 5.0),
    "max": Cost(1, 0, 0.0),
    "sum_exp": Cost(1, 0, _EXP + 2.0),
    "store_shifted": Cost(1, 1, _SPLIT + 6.0),
    "sum_store_exp": Cost(1, 1, _EXP + 2.0),
    "scale": Cost(1, 1, 1.0),
    "store_log": Cost(1, 1, 2.0),
    "online_sum": Cost(1, 0, 1.25 * (_EXP + 2.0)),
    "stream_read": Cost(1, 0, 1.0),
    "stream_copy": Cost(1, 1, 1.0),
    "stream_scale": Cost(1, 1, 1.0),
}


def _sum(*names: str) -> Cost:
    passes = [PASSES[name] for name in names]
    return Cost(sum(p.reads for p in passes), sum(p.writes for p in passes), sum(p.flops for p in passes))


ALGORITHMS = {
    "two_pass": _sum("accumulate", "store"),  # 2 reads, 1 write: 12 bytes
    "three_pass_recompute": _sum("max", "sum_exp", "store_shifted"),  # 3 reads, 1 write: 16 bytes
    "three_pass_reload": _sum("max", "sum_store_exp", "scale"),  # 3 reads, 2 writes: 20 bytes
    "online": _sum("online_sum", "store_shifted"),  # 2 reads, 1 write: 12 bytes
}
# Log-softmax and log-sum-exp by the same algorithms; neither has a reload form, and the sums of a row are not counted.
LOG_SOFTMAX = {
    "two_pass": _sum("accumulate", "store_log"),
    "three_pass_recompute": _sum("max", "sum_exp", "store_log"),
    "online": _sum("online_sum", "store_log"),
}
LOG_SUM_EXP = {
    "two_pass": _sum("accumulate"),
    "three_pass_recompute": _sum("max", "sum_exp"),
    "online": _sum("online_sum"),
}
# Amax, difference, exp, sum and quotient, each an array operation of its own: 5 reads, 3 writes.
SCIPY = Cost(5, 3, _EXP + 3.0)
