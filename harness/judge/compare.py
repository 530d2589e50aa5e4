"""Head against base in one number: pure functions from arrays to a word with its reason and interval."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy import stats

from harness.judge.comparison import BAD, Comparison, Word
from harness.judge.stats.bootstrap import Floats
from harness.judge.stats.holm import holm as holm_adjusted
from harness.judge.stats.intervals import UNBOUNDED, t_interval
from harness.judge.stats.sequential import least_pairs, shares

Better = Literal["lower", "higher", "none"]
LEAST_ERROR = 1e-9  # no claim is made beyond it
_SIDED_P, _SIDED_LEAST = 1e-3, 8


@dataclass(frozen=True)
class Decision:
    """A word about one number on two sides; the fields are those of :class:`Comparison`, which see."""

    word: Word
    reason: str
    change: float | None
    low: float | None
    high: float | None
    level: float
    n: int
    unit: str
    detail: str = ""

    def onto(self, comparison: Comparison) -> Comparison:
        """``comparison`` with this word, reason, interval and level."""
        return replace(comparison, verdict=self.word, reason=self.reason, change=self.change, low=self.low,
                       high=self.high, level=self.level, n=self.n, unit=self.unit, detail=self.detail)


def zone(threshold: float, floor: float) -> float:
    """Half the width of the zone of equality, relative: the larger of what matters and what equal code showed here."""
    return max(threshold, floor)


def decide_speed(rounds: Floats, zone: float, level: float) -> Decision:
    """Whether head is slower, from log(head / base) as [process pairs, rounds], NaN where a pair has fewer rounds.

    The independent unit is the pair of fresh processes, since two processes of equal code differ by their memory
    layout: the change is the mean over pairs of the median over rounds, its interval is Student's over the pairs.
    ``slower`` when the whole interval lies beyond log1p(zone), ``faster`` when beyond -log1p(zone), ``same`` when it
    lies between them. A change is never said on fewer pairs than :func:`least_pairs` asks for at 1 - level.
    ``change``, ``low`` and ``high`` are head / base - 1. Pairs with no round are left out; an infinite ratio is
    ``undefined``.
    """
    rounds = rounds[~np.isnan(rounds).all(axis=1)]
    count = len(rounds)
    if np.isinf(rounds).any():
        return Decision("inconclusive", "undefined", None, None, None, level, count, "process",
                        "a time is zero or not finite")
    medians = np.nanmedian(rounds, axis=1) if count else np.empty(0)
    low, high = t_interval(medians, level)
    return _speed_word(float(medians.mean()) if count else math.nan, low, high, zone, level, count)


def _speed_word(center: float, low: float, high: float, zone: float, level: float, count: int) -> Decision:
    bound = math.log1p(zone)

    def said(word: Word, reason: str, detail: str = "") -> Decision:
        if count < 2:
            return Decision(word, reason, None if count == 0 else math.expm1(center), None, None, level, count,
                            "process", detail)
        return Decision(word, reason, math.expm1(center), math.expm1(low), math.expm1(high), level, count, "process",
                        detail)

    if count < 2:
        return said("inconclusive", "few_units", f"{count} pair of processes gives no interval")
    if -bound <= low and high <= bound:
        return said("same", "inside_zone")
    if low > bound or high < -bound:
        least = least_pairs(1 - level)
        if count < least:
            return said("inconclusive", "few_units", f"{count} pairs of processes where {least} are needed to be sure")
        return said("slower" if low > bound else "faster", "beyond_zone")
    return said("inconclusive", "straddles_zone")


def decide_metric(
    base: Floats, head: Floats, better: Better, threshold: float, relative: bool, level: float,
    deterministic: bool = True,
) -> Decision:
    """Whether a metric got worse, from its values on both sides, paired by seed in the same order.

    The change is the mean of head - base, divided by |mean of base| where ``relative``; its interval is Student's over
    the paired differences. One pair is exact (``deterministic``) or too few. Equal arrays are ``same``, ``identical``.
    A value that is finite on the base and not on the head is ``worse``; anything else not finite is ``undefined``. A
    metric without a better direction is ``same`` or ``inconclusive``. A change from a base of exactly 0 is infinite
    where ``relative``. Raises ValueError where the lengths differ.
    """
    raise NotImplementedError


def holm(
    comparisons: Sequence[Comparison], alpha: float, again: Callable[[Comparison, float], Decision],
) -> tuple[Comparison, ...]:
    """The comparisons, with the bad words among the gating ones kept only where Holm's procedure at ``alpha`` does.

    ``again(comparison, level)`` decides once more at another level.
    """
    raise NotImplementedError


def one_sided(comparisons: Sequence[Comparison]) -> str | None:
    """A sentence where the changes in time go one way only, more than chance explains."""
    raise NotImplementedError


@dataclass(frozen=True)
class Sequential:
    """When to stop measuring one number: planned looks at growing numbers of process pairs.

    Over all looks together, a change is said of equal sides with probability ``alpha`` at most, and ``same`` of sides
    that differ by the zone with probability ``same_alpha`` / 2 at most.
    """

    zone: float
    alpha: float = 0.01
    same_alpha: float = 0.10
    looks: tuple[int, ...] = (4, 6, 8, 12)

    def next_look(self, pairs: int) -> int | None:
        """The number of pairs to measure until the next look, in total; None after the last."""
        return next((look for look in self.looks if look > pairs), None)

    def look(self, rounds: Floats) -> Decision | None:
        """What is decided after these rounds, [process pairs, rounds] of log(head / base); None: measure more."""
        raise NotImplementedError

    def finish(self, rounds: Floats) -> Decision:
        """What can be said when measuring ends here, planned or not: :meth:`look`'s word or ``budget_spent``."""
        raise NotImplementedError

    def again(self, rounds: Floats, level: float) -> Decision:
        """The same rounds at another error rate over all looks, 1 - ``level``: what Holm's procedure asks for."""
        raise NotImplementedError
