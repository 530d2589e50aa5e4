"""What each algorithm and each pass must move and compute per float32 element (table 2 of the paper's section 3)."""

from __future__ import annotations

from dataclasses import dataclass

GRAIN = 2**15  # elements below which a second thread costs more than it brings


def chunks_of(elements: int, threads: int) -> int:
    """How many threads ``elements`` are worth: each gets at least ``GRAIN``."""
    return max(1, min(threads, elements // GRAIN))


@dataclass(frozen=True)
class Cost:
    """Arrays read and written once, and floating-point additions and multiplications (an FMA is two), per element."""

    reads: int
    writes: int
    flops: float

    def bytes_moved(self, elements: int) -> float:
        """Bytes to and from memory, 4 per read and per write; reads that stores provoke (write-allocate) left out."""
        return 4.0 * (self.reads + self.writes) * elements

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
# Amax, difference, exp, sum and quotient, each an array operation of its own: 5 reads, 3 writes.
SCIPY = Cost(5, 3, _EXP + 3.0)
