"""What a page shows of a trial experiment: each arm's metrics over seeds, and learning curves with bands."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.judge.tidy import objects
from harness.records.shapes import number

if TYPE_CHECKING:
    import pandas as pd

MAX_CURVE_POINTS = 120


@dataclass(frozen=True)
class TrialRow:
    """One metric of one arm at one point over seeds: every seed's value, their mean and its 95 % t interval.

    ``failed`` counts seeds whose value is not finite (a diverged run); they are shown as a count, not averaged.
    """

    point: Mapping[str, Any]
    device: str
    arm: str
    metric: str
    values: tuple[float, ...]
    mean: float
    low: float
    high: float
    failed: int


@dataclass(frozen=True)
class CurveRow:
    """One series metric of one arm at one point: median and 10 %..90 % band over ``n`` seeds, thinned to 120 steps."""

    point: Mapping[str, Any]
    device: str
    arm: str
    metric: str
    n: int
    step: tuple[int, ...]
    low: tuple[float, ...]
    middle: tuple[float, ...]
    high: tuple[float, ...]


def trial_rows(records: pd.DataFrame, scalars: Sequence[str]) -> list[TrialRow]:
    """Rows for the scalar metrics of one experiment's ``ok`` records."""
    rows = []
    for (point, device, arm), seeds in _by_place(records).items():
        for metric in scalars:
            found = [number(item[metric]) for item in seeds if isinstance(item.get(metric), int | float)]
            if found:
                finite = [value for value in found if math.isfinite(value)]
                mean, low, high = mean_interval(finite)
                rows.append(TrialRow(json.loads(point), device, arm, metric, tuple(finite), mean, low, high,
                                     len(found) - len(finite)))
    return rows


def curve_rows(records: pd.DataFrame, series: Sequence[str]) -> list[CurveRow]:
    """Rows for the series metrics of one experiment's ``ok`` records; shorter seeds end earlier."""
    rows = []
    for (point, device, arm), seeds in _by_place(records).items():
        for metric in series:
            found = [[number(value) for value in item[metric]] for item in seeds
                     if isinstance(item.get(metric), list) and item[metric]]
            if found:
                step, low, middle, high = _band(found)
                rows.append(CurveRow(json.loads(point), device, arm, metric, len(found), step, low, middle, high))
    return rows


def mean_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t; the interval is as wide as the line for fewer than two values."""
    if not values:
        return (float("nan"),) * 3
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, -math.inf, math.inf
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return mean, mean - half, mean + half


def _by_place(records: pd.DataFrame) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    kept = records.loc[(records["status"] == "ok").to_numpy()]
    places: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    metrics = objects(kept["metrics"])
    for point, device, arm, found in zip(kept["point"], kept["device"], kept["arm"], metrics, strict=True):
        places.setdefault((str(point), str(device), str(arm)), []).append(found)
    return places


def _band(
    series: Sequence[Sequence[float]],
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
    length = max(map(len, series))
    table = np.full((len(series), length), np.nan)
    for row, values in zip(table, series, strict=True):
        row[: len(values)] = values
    table[~np.isfinite(table)] = np.nan
    at = np.unique(np.linspace(0, length - 1, min(length, MAX_CURVE_POINTS)).round().astype(int))
    at = at[np.isfinite(table[:, at]).any(axis=0)]
    low, middle, high = np.nanquantile(table[:, at], (0.1, 0.5, 0.9), axis=0) if len(at) else np.empty((3, 0))
    return tuple((at + 1).tolist()), tuple(low.tolist()), tuple(middle.tolist()), tuple(high.tolist())
