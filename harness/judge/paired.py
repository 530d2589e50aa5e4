"""Metrics of two stored runs, paired by seed: many at once, with the words of ``decide_metric``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import special

from harness.errors import LitmusError
from harness.judge.compare import Better, Decision, decide_metric
from harness.judge.comparison import Word
from harness.judge.stats.bootstrap import Floats
from harness.records.shapes import number

Threshold = tuple[float, bool]


def read_objects(texts: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON objects in ``texts``, read as one. Raises LitmusError where one is something else."""
    try:
        values: list[Any] = json.loads("[" + ",".join(texts) + "]")
    except (ValueError, RecursionError):
        values = []
    if len(values) != len(texts) or not all(isinstance(value, dict) for value in values):
        raise LitmusError("a record is damaged", key="metrics", expected="a JSON object in each record",
                          next_step="make the run again with: litmus run")
    return values


def decide_many(
    base: Floats, head: Floats, bounds: Sequence[tuple[int, int]], better: Better, threshold: Threshold, level: float,
    deterministic: bool,
) -> list[Decision | None]:
    """:func:`decide_metric` for each slice [first, last) of values; None where neither side has a number there.

    Plain cases (equal, inside the zone, across a bound) are told for all slices of a length at once.
    """
    known = ~(np.isnan(base) & np.isnan(head))
    found: list[Decision | None] = [None] * len(bounds)
    by_length: dict[int, list[int]] = {}
    for index, (first, last) in enumerate(bounds):
        if last > first and known[first:last].any():
            by_length.setdefault(last - first, []).append(index)
    for length, places in by_length.items():
        starts = np.array([bounds[index][0] for index in places])
        rows = starts[:, None] + np.arange(length)
        plain = _plain(base[rows], head[rows], threshold, level)
        for index, decision in zip(places, plain, strict=True):
            first, last = bounds[index]
            found[index] = decision or decide_metric(base[first:last], head[first:last], better, *threshold, level,
                                                     deterministic)
    return found


def _plain(base: Floats, head: Floats, threshold: Threshold, level: float) -> list[Decision | None]:
    """Decisions of rows of [places, seeds] that need no look at the direction; None for the others."""
    zone, relative = threshold
    count = base.shape[1]
    same = (base == head).all(axis=1)
    finite = np.isfinite(base).all(axis=1) & np.isfinite(head).all(axis=1)
    with np.errstate(all="ignore"):
        differences = np.sort(head - base, axis=1)
        center = (head - base).mean(axis=1)
        middle = differences.mean(axis=1)
        spread = np.sqrt(differences.var(axis=1, ddof=1) / count) if count > 1 else np.full(len(base), np.nan)
        half = special.stdtrit(max(count - 1, 1), (1 + level) / 2) * spread
        scale = np.abs(base.mean(axis=1)) if relative else np.ones(len(base))
        center, low, high = center / scale, (middle - half) / scale, (middle + half) / scale
    usable = finite & ~same & (scale > 0) & (count > 1)
    inside = usable & (-zone <= low) & (high <= zone)
    across = usable & ~inside & ~((low > zone) | (high < -zone))
    found: list[Decision | None] = [None] * len(base)
    for index in np.flatnonzero(same & finite):
        found[index] = Decision("same", "identical", 0.0, 0.0, 0.0, level, count, "seed")
    numbers = np.stack([center, low, high], axis=1).tolist()
    for index in np.flatnonzero(inside):
        found[index] = _told("same", "inside_zone", numbers[index], level, count)
    for index in np.flatnonzero(across):
        found[index] = _told("inconclusive", "straddles_zone", numbers[index], level, count)
    return found


def _told(word: Word, reason: str, numbers: Sequence[float], level: float, count: int) -> Decision:
    change, low, high = numbers
    return Decision(word, reason, change, low, high, level, count, "seed")


def column(rows: Sequence[Mapping[str, Any]], name: str) -> Floats:
    """One metric of many records, NaN where it is absent or no number."""
    values = [row.get(name) for row in rows]
    if set(map(type, values)) != {float}:
        values = [number(value) for value in values]
    return np.array(values, dtype=float)


def means(values: Floats, bounds: Sequence[tuple[int, int]]) -> list[float | None]:
    """The mean of each slice [first, last) of ``values``, of slices one after the other; None where it is no number."""
    if not len(values):
        return [None] * len(bounds)
    first = np.array([start for start, _ in bounds])
    count = np.array([end - start for start, end in bounds])
    total = np.add.reduceat(values, np.minimum(first, len(values) - 1))
    with np.errstate(all="ignore"):
        found = np.where(count > 0, total / count, np.nan)
    return [value if math.isfinite(value) else None for value in found.tolist()]
