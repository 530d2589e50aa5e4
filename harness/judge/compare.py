"""Head against base in one number: pure functions from arrays to a word with its reason and interval."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from harness.judge.comparison import BAD, Comparison, Word
from harness.judge.stats.bootstrap import Floats
from harness.judge.stats.holm import holm as holm_adjusted
from harness.judge.stats.intervals import t_interval
from harness.judge.stats.sequential import least_pairs, shares

Numbers = tuple[float | None, float | None, float | None]  # change, low, high
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
    ``change``, ``low`` and ``high`` are head / base - 1, None where unbounded. Pairs with no round are left out; an
    infinite ratio is ``undefined``.
    """
    rounds = rounds[~np.isnan(rounds).all(axis=1)]
    count = len(rounds)
    if np.isinf(rounds).any():
        return Decision("inconclusive", "undefined", None, None, None, level, count, "process",
                        "a time is zero or not finite")
    medians = process_medians(rounds)
    center = float(medians.mean()) if count else math.nan
    return speed_word(center, *t_interval(medians, level), zone, level, count)


def process_medians(rounds: Floats) -> Floats:
    """The median of each row of [processes, rounds] over what is not NaN; every row must hold a number."""
    ordered = np.sort(rounds, axis=1)  # NaN last
    counts = (~np.isnan(rounds)).sum(axis=1)
    row = np.arange(len(rounds))
    return np.asarray((ordered[row, (counts - 1) // 2] + ordered[row, counts // 2]) / 2)


def speed_word(center: float, low: float, high: float, zone: float, level: float, count: int) -> Decision:
    """The word about a log ratio with interval [low, high] over ``count`` units, see :func:`decide_speed`."""
    bound = math.log1p(zone)

    def said(word: Word, reason: str, detail: str = "") -> Decision:
        return Decision(word, reason, _relative(center), _relative(low), _relative(high), level, count, "process",
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


def _relative(log_ratio: float) -> float | None:
    """The ratio minus 1; None where it is not known or no float."""
    return math.expm1(log_ratio) if log_ratio < math.log(sys.float_info.max) and log_ratio > -math.inf else None


def decide_metric(
    base: Floats, head: Floats, better: Better, threshold: float, relative: bool, level: float,
    deterministic: bool = True,
) -> Decision:
    """Whether a metric got worse, from its values on both sides, paired by seed in the same order.

    The change is the mean of head - base, divided by |mean of base| where ``relative``; its interval is Student's over
    the paired differences. ``worse`` and ``better`` when the whole interval lies beyond ``threshold``, ``same`` when it
    lies within. One pair is exact, or too few where not ``deterministic``. Equal arrays are ``same``, ``identical``.
    A metric without a better direction that changed is ``inconclusive``. A value that is finite on the base and not on
    the head is ``worse`` in either direction; otherwise values that are not finite are ``undefined``. A relative change
    from a base of mean 0 is infinite. Raises ValueError where the lengths differ.
    """
    base, head = np.asarray(base, float), np.asarray(head, float)
    if base.shape != head.shape or base.ndim != 1:
        raise ValueError(f"not paired: {base.shape} values on the base, {head.shape} on the head")
    count = len(base)

    def said(word: Word, reason: str, detail: str = "", numbers: Numbers = (None, None, None)) -> Decision:
        change, low, high = numbers
        return Decision(word, reason, change, low, high, level, count, "seed", detail)

    if count == 0:
        return said("inconclusive", "few_units", "no pair of values")
    if np.array_equal(base, head, equal_nan=True):
        return said("same", "identical", "", (0.0, 0.0, 0.0) if np.isfinite(base).all() else (None, None, None))
    if not (np.isfinite(base).all() and np.isfinite(head).all()):
        lost = int((np.isfinite(base) & ~np.isfinite(head)).sum())
        if lost and better != "none":
            return said("worse", "beyond_zone", f"finite on the base and not on the head for {lost} of {count} seeds")
        return said("inconclusive", "undefined")
    numbers = _metric_change(base, head, relative, level)
    if count == 1 and not deterministic:
        return said("inconclusive", "few_units", "1 seed gives no interval", (numbers[0], None, None))
    return said(*_metric_word(numbers[1], numbers[2], better, threshold), numbers)


def _metric_change(base: Floats, head: Floats, relative: bool, level: float) -> tuple[float, float, float]:
    """(change, low, high) of paired finite values."""
    differences = head - base
    mean = float(differences.mean())
    low, high = (mean, mean) if len(base) == 1 else t_interval(differences, level)
    scale = abs(float(base.mean())) if relative else 1.0
    if scale > 0:
        return mean / scale, low / scale, high / scale
    mean, low, high = (math.copysign(math.inf, value) if value else 0.0 for value in (mean, low, high))
    return mean, low, high


def _metric_word(low: float, high: float, better: Better, threshold: float) -> tuple[Word, str, str]:
    if -threshold <= low and high <= threshold:
        return "same", "inside_zone", ""
    if not (low > threshold or high < -threshold):
        return "inconclusive", "straddles_zone", ""
    if better == "none":
        return "inconclusive", "one_direction", "it changed, and no direction is better"
    return ("worse" if (low > threshold) == (better == "lower") else "better"), "beyond_zone", ""


def holm(
    comparisons: Sequence[Comparison], alpha: float, again: Callable[[Comparison, float], Decision],
) -> tuple[Comparison, ...]:
    """The comparisons, where bad words of gating ones stay only if Holm's procedure keeps them.

    Then the probability that any gating comparison of equal sides is called bad is ``alpha`` at most. ``again`` decides
    a comparison anew at another level; the p value is the least error rate, 1 - level, at which the word still stands.
    The family is every gating comparison that could be decided, except where both sides gave the same numbers, which
    leaves nothing to chance. A word that stays gets its interval at the level of its
    step if that is higher than its own; one that goes becomes ``inconclusive``, ``not_after_holm``, with the interval
    at the level that it missed. Good words are labels that gate nothing, and are not tested.
    """
    family = [i for i, item in enumerate(comparisons)
              if item.gates and item.verdict != "incomparable" and item.reason != "identical"]
    p = np.array([_least_error(comparisons[i], alpha, again) if comparisons[i].verdict in BAD else 1.0 for i in family])
    adjusted = holm_adjusted(p)
    found = list(comparisons)
    missed: float | None = None
    for rank, place in enumerate(np.argsort(p, kind="stable")):
        index = family[place]
        item = comparisons[index]
        if item.verdict not in BAD:
            break
        level = 1 - alpha / (len(family) - rank)
        if adjusted[place] <= alpha:
            found[index] = again(item, level).onto(item) if level > item.level else item
            continue
        missed = missed or level
        lost = again(item, missed)
        detail = f"{item.verdict} at the level {item.level:.4g}, not at {missed:.6g}"
        found[index] = replace(lost, word="inconclusive", reason="not_after_holm", detail=detail).onto(item)
    return tuple(found)


def _least_error(item: Comparison, most: float, again: Callable[[Comparison, float], Decision]) -> float:
    """The least error rate from LEAST_ERROR to ``most`` at which the word stands, by bisection; 1 if it never does."""

    def stands(log_error: float) -> bool:
        return again(item, 1 - math.exp(log_error)).word == item.verdict

    low, high = math.log(LEAST_ERROR), math.log(most)
    if not stands(high):
        return 1.0
    if stands(low):
        return LEAST_ERROR
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if stands(middle) else (middle, high)
    return math.exp(high)


def one_sided(comparisons: Sequence[Comparison]) -> str | None:
    """A sentence where the times that moved went one way more often than chance explains, else None.

    A time moved when its interval excludes 0. At least 8 must have, and an exact two-sided sign test must give
    p < 0.001 (11 of 11, say): separate changes seldom agree, a machine, a build or an environment does that to all.
    """
    bounds = [(item.low, item.high) for item in comparisons if item.metric == "time" and item.verdict != "incomparable"]
    slower = sum(low is not None and low > 0 for low, _ in bounds)
    faster = sum(high is not None and high < 0 for _, high in bounds)
    moved = slower + faster
    if moved < _SIDED_LEAST or _sign_test(slower, moved) >= _SIDED_P:
        return None
    most, word = (slower, "slower") if slower > faster else (faster, "faster")
    return (f"{most} of the {moved} times that moved got {word}: rather than so many separate changes, suspect one "
            "cause common to all, such as the machine, the build or the environment of one side")


def _sign_test(slower: int, moved: int) -> float:
    from scipy import stats  # half a second to import, and seldom needed

    return float(stats.binomtest(slower, moved).pvalue)


@dataclass(frozen=True)
class Sequential:
    """When to stop measuring one number: planned looks at growing numbers of process pairs.

    Over all looks together a change is said of equal sides with probability ``alpha`` at most, and ``same`` of sides
    that differ by the zone with probability ``same_alpha`` / 2 at most. Each look spends its share of both
    (:func:`~harness.judge.stats.sequential.shares`), so intervals hold at all looks at once, and decisions carry that
    level: 1 - ``alpha``, and 1 - ``same_alpha`` for ``same``. For words that are to survive Holm's procedure over k
    gating comparisons give :func:`cell_alpha`.
    """

    zone: float
    alpha: float = 0.01
    same_alpha: float = 0.10
    looks: tuple[int, ...] = (4, 6, 8, 12)

    def next_look(self, pairs: int) -> int | None:
        """The number of pairs in total at the look after ``pairs``; None after the last."""
        return next((look for look in self.looks if look > pairs), None)

    def look(self, rounds: Floats) -> Decision | None:
        """What is decided after these rounds, [process pairs, rounds] of log(head / base); None: measure more.

        Pairs with no round do not count. Between planned looks it is always None; at the last one ``inconclusive``,
        ``straddles_zone`` or ``few_units`` where nothing else is. ``undefined`` ends at a look, since no pair mends it.
        """
        pairs = _pairs(rounds)
        if pairs not in self.looks and pairs < self.looks[-1]:
            return None
        found = self._decided(rounds, pairs)
        return found if found.word != "inconclusive" or found.reason == "undefined" or pairs >= self.looks[-1] else None

    def finish(self, rounds: Floats) -> Decision:
        """What is said where measuring ends here, at a planned look or before it: a word, or else ``budget_spent``."""
        pairs = _pairs(rounds)
        found = self._decided(rounds, pairs)
        if found.word != "inconclusive" or found.reason == "undefined" or pairs >= self.looks[-1]:
            return found
        detail = f"{pairs} of {self.looks[-1]} planned process pairs"
        return replace(found, reason="budget_spent", detail=detail)

    def again(self, rounds: Floats, level: float) -> Decision:
        """Whether there is a change at another ``level`` over all looks, for Holm's procedure."""
        share = self._share(_pairs(rounds))
        return replace(decide_speed(rounds, self.zone, 1 - (1 - level) * share), level=level)

    def _decided(self, rounds: Floats, pairs: int) -> Decision:
        changed = self.again(rounds, 1 - self.alpha)
        if changed.word in ("slower", "faster") or changed.reason == "undefined":
            return changed
        same = decide_speed(rounds, self.zone, 1 - self.same_alpha * self._share(pairs))
        return replace(same, level=1 - self.same_alpha) if same.word == "same" else changed

    def _share(self, pairs: int) -> float:
        """The part of the error rate of the look at ``pairs``, or of the next planned one; the last after it."""
        place = min(int(np.searchsorted(self.looks, pairs)), len(self.looks) - 1)
        return float(shares(self.looks)[place])


def _pairs(rounds: Floats) -> int:
    return int((~np.isnan(rounds).all(axis=1)).sum())


def cell_alpha(gating: int, alpha: float = 0.05, most: float = 0.01) -> float:
    """The error rate of one of ``gating`` numbers with which a bad word survives Holm's procedure at ``alpha``."""
    return min(most, alpha / max(1, gating))
