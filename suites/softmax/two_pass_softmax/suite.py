"""The Two-Pass Softmax Algorithm (arXiv 2001.04438): time against the three-pass forms, pass by pass, and peers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from harness.declare.estimate_spec import Ratio
from harness.declare.suite import Estimate, NotTestable, Point, Problem, Suite
from harness.run.measure.threads import thread_count
from reference.kernels.softmax import ALGORITHMS, numba_cpu, softmax, truth
from suites.softmax.two_pass_softmax.arms import passes_problem, softmax_problem
from suites.softmax.two_pass_softmax.gpu import gpu_problem

if TYPE_CHECKING:
    import pandas as pd

suite = Suite(__file__)

_SPEEDUP = Ratio(ratio="time", of="best(three_pass_recompute, three_pass_reload)", to="two_pass")
_ULP = 2.0**-23


@suite.speed("throughput")
def throughput(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One vector."""
    return softmax_problem(1, point["n"], thread_count(point["threads"]))


@suite.speed("rows")
def rows(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """A batch, its shape written as ROWSxN."""
    return softmax_problem(*_shape(point), thread_count(point["threads"]))


def _shape(point: Point) -> tuple[int, int]:
    count, n = map(int, point["shape"].split("x"))
    return count, n


@suite.speed("gpu_throughput")
def gpu_throughput(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One vector on a CUDA device."""
    return gpu_problem(1, point["n"], device)


@suite.speed("gpu_rows")
def gpu_rows(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """A batch on a CUDA device."""
    return gpu_problem(*_shape(point), device)


@suite.speed("passes")
def passes(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One pass at a time."""
    return passes_problem(point["n"], thread_count(point["threads"]))


@suite.estimate("speedup_gap")
def speedup_gap(records: pd.DataFrame, level: float, inside: int, outside: int) -> Estimate:
    """Speedup over the better three-pass form at n = ``outside`` minus that at ``inside``, and where it crosses 1.

    The two cells are independent, so their intervals (over processes and rounds) combine by the squares of their
    half-widths (MOVER, Zou & Donner 2008), which lets either be lopsided.
    """
    from harness.judge.contrasts import Question, ratio  # its scipy.stats would delay every timing process

    found = {int(n): ratio(_SPEEDUP, Question(part, suite.card.experiments["throughput"], level))
             for n, part in records.groupby("n")}
    if not {inside, outside} <= set(found):
        raise NotTestable(f"needs n = {inside} and n = {outside}, this run has {', '.join(map(str, found))}")
    far, near = found[outside], found[inside]
    gap = far.point - near.point
    low = gap - math.hypot(far.point - far.low, near.high - near.point)
    high = gap + math.hypot(far.high - far.point, near.point - near.low)
    method = f"difference of two median ratios, MOVER; {crossover({n: item.point for n, item in found.items()})}"
    return Estimate(gap, low, high, min(far.n, near.n), level, far.unit, method)


def crossover(speedups: dict[int, float]) -> str:
    """From which n on two_pass is ahead at every measured size, by log-log interpolation."""
    sizes = sorted(speedups)
    behind = [n for n in sizes if speedups[n] <= 1.0]
    if not behind:
        return "two_pass is ahead at every size measured"
    if behind[-1] == sizes[-1]:
        return "two_pass is ahead from no measured size on"
    left, right = behind[-1], sizes[sizes.index(behind[-1]) + 1]
    share = -math.log(speedups[left]) / (math.log(speedups[right]) - math.log(speedups[left]))
    log2 = math.log2(left) + share * (math.log2(right) - math.log2(left))
    return f"two_pass is ahead from about n = 2^{log2:.1f} on"


def _each(x: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The softmax of ``x`` by every algorithm and backend, written into a poisoned buffer."""
    return [
        (f"{algorithm} ({backend})",
         softmax(x, np.full_like(x, np.nan), algorithm=algorithm, backend=backend, threads=threads))
        for backend in ("numba", "eager") for algorithm in ALGORITHMS for threads in (1, 2)
    ]


def _uniform(n: int, bound: float, seed: int = 0) -> np.ndarray:
    return ((np.random.default_rng(seed).random(n, dtype=np.float32) * 2 - 1) * np.float32(bound)).astype(np.float32)


def _grid(n: int, bound: float) -> np.ndarray:
    """Multiples of 2^-6, whose sums and differences are exact."""
    return np.round(_uniform(n, bound) * 64) / np.float32(64)


def _extended_sum(x: np.ndarray) -> tuple[float, float]:
    """(m, e) of a vector, from the first pass alone."""
    sums, exponents = numba_cpu.partials(1)
    numba_cpu.run_pass("accumulate", x, x, sums, exponents)
    return numba_cpu.merge(sums, exponents)


@suite.oracle
def mantissa_within_3_units() -> None:
    """The split alone: a vector of one element leaves p * 2^n, which must be e^x for every |x| <= 10^4."""
    for x in _uniform(4000, 1e4):
        error = abs(math.expm1(numba_cpu.log_sum(*_extended_sum(np.array([x]))) - float(x))) / truth.UNIT
        assert error <= 3.0, f"e^{x} is off by {error:.2f} units of 2^-24"


@suite.oracle
def within_4_units_of_float64() -> None:
    """Outputs above 2^-100 for |x| up to 10^4. At 10 the three-pass forms round x - max, which costs them more."""
    for bound in (10.0, 1e3, 1e4):
        x = _uniform(2**14, bound)
        expected = truth.softmax(x)
        for name, y in _each(x):
            rounded = bound == 10.0 and not name.startswith("two_pass")
            error, limit = truth.error_units(y, expected), 20.0 if rounded else 4.0
            assert error <= limit, f"{name}: {error:.2f} units of 2^-24 for |x| <= {bound:g}, at most {limit:g}"


@suite.oracle
def sums_to_one() -> None:
    """Within 10^-6, also where chunks are merged."""
    for n in (1, 7, 1000, 2**17 + 5):
        for name, y in _each(_uniform(n, 1000.0)):
            total = y.sum(dtype=np.float64)
            assert abs(total - 1.0) <= 1e-6, f"{name}: n={n} sums to {total!r}"


@suite.oracle
def shift_invariance() -> None:
    """softmax(x + c) = softmax(x) where adding c rounds nothing."""
    x = _grid(5000, 100.0)
    for (name, y), (_, shifted) in zip(_each(x), _each(x + np.float32(1024.0)), strict=True):
        error = truth.error_units(shifted, y.astype(np.float64))
        assert error <= 8.0, f"{name}: a shift by 1024 moves the result by {error:.2f} units of 2^-24"


@suite.oracle
def all_equal_gives_one_over_n() -> None:
    """Whatever the value."""
    for value, n in ((0.0, 8), (0.3, 2**16), (-77.7, 12345), (9999.0, 1000)):
        for name, y in _each(np.full(n, value, np.float32)):
            worst = float(np.max(np.abs(y.astype(np.float64) * n - 1.0)))
            assert worst <= 4 * truth.UNIT, f"{name}: {n} times {value:g} is off 1/n by {worst:.2g}"


@suite.oracle
def merge_order_does_not_matter() -> None:
    """(m, e) of 64 chunks in any order: within 4 ulp."""
    x = _uniform(2**16, 1000.0).reshape(64, -1)
    parts = [_extended_sum(row) for row in x]
    sums, exponents = (np.array(column) for column in zip(*parts, strict=True))
    rng = np.random.default_rng(1)
    logs = [numba_cpu.log_sum(*numba_cpu.merge(sums[order], exponents[order].astype(np.float32)))
            for order in (rng.permutation(64) for _ in range(20))]
    assert max(logs) - min(logs) <= 4 * _ULP, f"merge orders differ by {(max(logs) - min(logs)) / _ULP:.2f} ulp"
    chunks = [softmax(x.reshape(-1), threads=threads) for threads in (1, 2)]
    error = truth.error_units(chunks[1], chunks[0].astype(np.float64))
    assert error <= 8.0, f"one and two chunks differ by {error:.2f} units of 2^-24"


@suite.oracle
def nothing_overflows() -> None:
    """800 everywhere, where e^x is far beyond float32; and the largest floats."""
    for value in (800.0, 3e38, -3e38):
        for name, y in _each(np.full(1000, value, np.float32)):
            assert np.allclose(y, 1e-3, rtol=1e-6), f"{name}: {value:g} everywhere gives {y[:3]}"


@suite.oracle
def masked_inputs() -> None:
    """-inf gives exactly 0 and leaves the rest as if it were not there; a row of -inf gives NaN, as in torch."""
    x = _grid(3000, 50.0)
    masked = np.random.default_rng(2).random(3000) < 0.7
    x[masked] = -np.inf
    expected = truth.softmax(x[~masked])
    for name, y in _each(x):
        assert (y[masked] == 0.0).all(), f"{name}: a masked input got {y[masked].max()}"
        error = truth.error_units(y[~masked], expected)
        assert error <= 4.0, f"{name}: {error:.2f} units of 2^-24 beside masked inputs"
    for name, y in _each(np.full(300, -np.inf, np.float32)):
        assert np.isnan(y).all(), f"{name}: a row of -inf gives {y[:3]}"
