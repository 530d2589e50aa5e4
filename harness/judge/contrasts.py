"""Estimates that compare arms unit by unit: ratio, difference, equivalence, mean and ordering.

``best(a, b)`` is chosen by the same records that judge it. So that this earns no optimism, every candidate gets its
interval at the simultaneous level 1 - (1 - level) / m, and the bounds of the best are the best of the bounds: they hold
whichever candidate is truly the best.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.declare.estimate_spec import Difference, Equivalence, Mean, Ordering, Ratio, arms_of
from harness.declare.suite import Estimate
from harness.judge.sample import NotEstimable, Sample, to_sample, units_of
from harness.judge.stats.holm import first_step_level
from harness.judge.stats.intervals import UNBOUNDED, Bounds
from harness.judge.stats.tests import sign_flip_p

if TYPE_CHECKING:
    import pandas as pd

    from harness.declare.card import Experiment
    from harness.judge.stats.bootstrap import Floats

Pick = Callable[[Sequence[float]], float]
_SIGN_FLIP_UP_TO = 16


@dataclass(frozen=True)
class Question:
    """The tidy rows of one point (or pool) and how their units are formed."""

    table: pd.DataFrame
    experiment: Experiment
    level: float
    unit: str | None = None

    def sample(self, metric: str, combine: Callable[..., Floats], *arms: str) -> Sample:
        """``combine`` applied to the units' values of ``arms``."""
        units = units_of(self.table, metric, list(dict.fromkeys(arms)), self.experiment)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            values = combine(*(units.values[arm] for arm in arms))
        return to_sample(values, units.keys, self.experiment, metric, self.unit)

    @property
    def speed(self) -> bool:
        """Whether units are timed rounds rather than seeds."""
        return self.experiment.kind == "speed"


def ratio(spec: Ratio, question: Question) -> Estimate:
    """exp of the centre of log(of / to): the median over rounds, or the mean over seeds."""
    of, to = arms_of(spec.of), arms_of(spec.to)
    found = _compared(spec.ratio, of, to, question, lambda a, b: _log(a) - _log(b), "log ratios")
    if not math.isfinite(found.point):
        return found
    low, point, high = (float(item) for item in np.exp([found.low, found.point, found.high]))
    return Estimate(point, low, high, found.n, found.level, found.unit, found.method)


def difference(spec: Difference | Equivalence, question: Question) -> Estimate:
    """of - minus: the mean over seeds, or the median over rounds.

    ``relative`` divides by the mean of ``minus`` over seeds (interval by linearisation), or round by round.
    """
    metric = spec.difference if isinstance(spec, Difference) else spec.equivalence
    of, minus = arms_of(spec.of), arms_of(spec.minus if isinstance(spec, Difference) else spec.to)
    if not spec.relative:
        return _compared(metric, of, minus, question, np.subtract, "differences")
    if question.speed:
        return _compared(metric, of, minus, question, lambda a, b: a / b - 1, "relative differences")
    samples = [[_relative(metric, a, b, question) for b in minus] for a in of]
    return _envelope(samples, question, metric, "relative differences")


def mean(spec: Mean, question: Question) -> Estimate:
    """The mean over seeds, or the median over rounds, of one arm."""
    arms = arms_of(spec.of)
    samples = [[question.sample(spec.mean, lambda a: a, arm)] for arm in arms]
    return _envelope(samples, question, spec.mean, "values")


def ordering(spec: Ordering, question: Question) -> Estimate:
    """The smallest gap between neighbours of ``rising``, each gap's interval at the level 1 - (1 - level) / gaps."""
    def gap(a: Floats, b: Floats) -> Floats:
        return _log(b) - _log(a) if spec.log else b - a

    pairs = list(itertools.pairwise(spec.rising))
    samples = [question.sample(spec.ordering, gap, first, second) for first, second in pairs]
    point, (low, high) = _combined([[sample] for sample in samples], question.level, min, min)
    worst = pairs[int(np.argmin([sample.center for sample in samples]))]
    method = f"{samples[0].method}; smallest gap is {worst[0]} to {worst[1]}, simultaneous over {len(pairs)} gaps"
    return Estimate(point, low, high, samples[0].n, question.level, samples[0].unit, method)


def _log(values: Floats) -> Floats:
    return np.asarray(np.log(np.where(values > 0, values, np.nan)))


def _compared(
    metric: str, of: Sequence[str], to: Sequence[str], question: Question, combine: Callable[..., Floats], what: str
) -> Estimate:
    samples = [[question.sample(metric, combine, a, b) for b in to] for a in of]
    return _envelope(samples, question, metric, what)


def _relative(metric: str, of: str, minus: str, question: Question) -> Sample:
    """Pseudo-values r + (d_i - r m_i) / M of the ratio r = mean(d) / mean(m): their mean is r, their t interval is its
    linearised one."""
    d = question.sample(metric, np.subtract, of, minus)
    m = question.sample(metric, lambda a: a, minus)
    base = m.values.mean()
    if base == 0 or not (d.defined and m.defined):
        return Sample(np.full(d.n, np.nan), d.processes, d.shape, d.unit)
    r = d.values.mean() / base
    return Sample(r + (d.values - r * m.values) / base, d.processes, d.shape, d.unit)


def _envelope(samples: list[list[Sample]], question: Question, metric: str, what: str) -> Estimate:
    """The estimate over all candidates: rows are candidates of the first side, columns of the second."""
    sample, candidates = samples[0][0], len(samples) * len(samples[0])
    method = f"{sample.method} of {what}"
    inner: Pick = min
    outer: Pick = min
    if candidates > 1:
        better = question.experiment.better(metric)
        if better == "none":
            raise NotEstimable(f"best(...) needs a direction, but metric '{metric}' has better: none")
        outer, inner = (min, max) if better == "lower" else (max, min)
        method += f"; best of {candidates} chosen by these records, intervals simultaneous"
    elif what != "values" and sample.shape == "clusters" and sample.n <= _SIGN_FLIP_UP_TO and sample.defined:
        method += f"; sign-flip p {sign_flip_p(sample.values):.2g}"
    point, (low, high) = _combined(samples, question.level, outer, inner)
    return Estimate(point, low, high, sample.n, question.level, sample.unit, method)


def _combined(samples: list[list[Sample]], level: float, outer: Pick, inner: Pick) -> tuple[float, Bounds]:
    """Point and simultaneous bounds of outer_i inner_j of the samples' centres."""
    each = first_step_level(sum(len(row) for row in samples), 1 - level)
    centers = [[sample.center for sample in row] for row in samples]
    if not np.isfinite(centers).all():
        return math.nan, UNBOUNDED
    bounds = [[sample.bounds(each) for sample in row] for row in samples]
    low, high = (outer([inner([pair[end] for pair in row]) for row in bounds]) for end in (0, 1))
    return outer([inner(row) for row in centers]), (low, high)
