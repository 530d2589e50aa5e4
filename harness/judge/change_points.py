"""Where a series changed its level: the least l1 cost by ``ruptures``, for as many levels as asv would take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from harness.judge.stats.bootstrap import Floats
from harness.judge.stats.intervals import UNBOUNDED, around

SHORTEST = 2  # runs in a level
MOST = 6  # change points in one series
_PLACES = 100


@dataclass(frozen=True)
class Level:
    """A stretch [first, last) of a series around one level: its median, with an interval for that median."""

    first: int
    last: int
    center: float
    low: float
    high: float


def starts_of_levels(values: Floats, floor: float) -> list[int]:
    """Where levels begin, the first at 0; finite ``values`` in order, ``floor`` in their units.

    The number K of levels minimizes ln(max(s_K, floor)) + 4 ln(n) / n K, where s_K is the mean distance of the n values
    to the medians of their levels (the rule that asv chooses its steps by); the levels for each K are those of least
    s_K, by dynamic programming, with at least two values each. ``floor`` is the spread that is never worth a level:
    without it any change of values that repeat exactly would be one. Fewer than four values are one level. In 200
    values and more, levels begin at multiples of n // 100 only, so that the search stays short.
    """
    n = len(values)
    if n < 2 * SHORTEST:
        return [0]
    import ruptures

    search = ruptures.Dynp(model="l1", min_size=SHORTEST, jump=max(1, n // _PLACES)).fit(values[:, None])
    price = 4 * math.log(n) / n
    best, found = math.log(max(_spread(values, [0]), floor)), [0]
    for count in range(1, min(MOST, n // SHORTEST - 1) + 1):
        if math.log(floor) + price * count >= best:
            break  # not even a perfect fit would be cheaper
        starts = [0, *search.predict(n_bkps=count)[:-1]]
        score = math.log(max(_spread(values, starts), floor)) + price * (len(starts) - 1)
        if score < best:
            best, found = score, starts
    return found


def levels(values: Floats, floor: float, level: float) -> list[Level]:
    """The levels of a series, see :func:`starts_of_levels`.

    The interval of a level of m values is its median +- t_(n-K) sqrt(pi/2 s^2 / m), the large-sample variance of a
    median of normal values; s^2 is pooled over the K levels. It does not know that the places were searched for.
    """
    starts = starts_of_levels(values, floor)
    ends = [*starts[1:], len(values)]
    parts = [values[first:last] for first, last in zip(starts, ends, strict=True)]
    freedom = len(values) - len(parts)
    pooled = sum(float(((part - part.mean()) ** 2).sum()) for part in parts) / max(freedom, 1)
    made = []
    for first, last, part in zip(starts, ends, parts, strict=True):
        center = float(np.median(part))
        bounds = around(center, math.pi / 2 * pooled / len(part), freedom, level) if freedom else UNBOUNDED
        made.append(Level(first, last, center, *bounds))
    return made


def _spread(values: Floats, starts: list[int]) -> float:
    parts = np.split(values, starts[1:])
    return float(sum(np.abs(part - np.median(part)).sum() for part in parts)) / len(values)
