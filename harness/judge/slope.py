"""The log-log slope of a metric along an axis."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from harness.declare.estimate_spec import Slope, arms_of
from harness.declare.suite import Estimate
from harness.judge.contrasts import Question
from harness.judge.sample import TIMED, NotEstimable, units_of
from harness.judge.stats.bootstrap import RESAMPLES, Floats, as_rounds, median_spread, nested_medians
from harness.judge.stats.intervals import UNBOUNDED, Bounds, around, t_interval

if TYPE_CHECKING:
    import pandas as pd


def slope(spec: Slope, question: Question) -> Estimate:
    """Least-squares slope of log(metric) on log(axis), a common one for all settings of the other axes.

    Trials: one slope per seed, t interval over seeds (one seed alone: from the scatter about the line). Speed: points
    are cells measured at different times, so they are not paired; the interval is the wider of the spread of the cells'
    medians carried through the fit and the scatter of the medians about the line.
    """
    arms = arms_of(spec.of)
    if len(arms) > 1:
        raise NotEstimable("best(...) has no meaning in a slope")
    if spec.against not in question.experiment.axes:
        raise NotEstimable(f"the experiment has no axis '{spec.against}'")
    units = units_of(question.table, spec.slope, arms, question.experiment)
    x, y = _logs(units.keys[spec.against], spec.against), _logs(units.values[arms[0]], spec.slope)
    rows = units.keys.assign(x=x, y=y)
    others = [axis for axis in question.experiment.axes if axis != spec.against]
    rows["group"] = [json.dumps(row, default=str) for row in rows[others].astype(object).to_numpy().tolist()]
    if rows.groupby("group")["x"].nunique().min() < 2:
        raise NotEstimable(f"a slope needs at least two values of '{spec.against}'")
    if not np.isfinite(rows["y"]).all():
        return Estimate(math.nan, *UNBOUNDED, 0, question.level, "point", f"'{spec.slope}' is not positive everywhere")
    return _speed_slope(rows, spec, question) if question.speed else _trial_slope(rows, question)


def _logs(values: npt.ArrayLike, name: str) -> Floats:
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise NotEstimable(f"'{name}' has values that are not numbers") from error
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(np.where(numbers > 0, numbers, np.nan)))


def _trial_slope(rows: pd.DataFrame, question: Question) -> Estimate:
    unit = question.unit or "seed"
    if unit not in rows.columns:
        raise NotEstimable(f"unit '{unit}' is neither an axis nor seed nor cell")
    points = [part.groupby(["group", "x"], sort=True)["y"].mean().reset_index() for _, part in rows.groupby(unit)]
    slopes = np.array([_fit(part)[0] for part in points])
    if len(slopes) == 1:
        low, high = _scatter_bounds(points[0], question.level)
        return Estimate(float(slopes[0]), low, high, len(points[0]), question.level, "point", "scatter about the line")
    low, high = t_interval(slopes, question.level)
    method = f"t interval over the slopes of {len(slopes)} {unit}s"
    return Estimate(float(np.sort(slopes).mean()), low, high, len(slopes), question.level, unit, method)


def _speed_slope(rows: pd.DataFrame, spec: Slope, question: Question) -> Estimate:
    cells = rows.groupby(["group", "x", "cell"], sort=True)
    points = cells["y"].median().reset_index()
    value, weights = _fit(points)
    low, high = _scatter_bounds(points, question.level)
    if spec.slope in TIMED:
        spreads = np.array([_cell_spread(part) for _, part in cells])
        terms = weights**2 * spreads[:, 0]
        variance = float(terms.sum())
        freedom = variance**2 / float((terms**2 / spreads[:, 1]).sum()) if variance > 0 else 1.0
        inner = around(value, variance, freedom, question.level)
        low, high = (inner if len(points) - points["group"].nunique() < 2
                     else (min(low, inner[0]), max(high, inner[1])))
    method = "spread of the cells' medians and scatter about the line, whichever is wider"
    return Estimate(value, low, high, len(points), question.level, "point", method)


def _cell_spread(part: pd.DataFrame) -> tuple[float, float]:
    rounds = as_rounds(part["y"].to_numpy(float), part["process"].to_numpy())
    return median_spread(rounds, nested_medians(rounds, RESAMPLES // 4)[1])


def _fit(points: pd.DataFrame) -> tuple[float, Floats]:
    """(slope, weights): the slope is weights @ y, with an intercept for each group."""
    x = (points["x"] - points.groupby("group")["x"].transform("mean")).to_numpy(float)
    if not float(x @ x) > 0:
        raise NotEstimable("a slope needs at least two different values of its axis")
    weights = x / float(x @ x)
    return float(weights @ points["y"].to_numpy(float)), weights


def _scatter_bounds(points: pd.DataFrame, level: float) -> Bounds:
    """Least-squares interval from the residuals; unbounded without a point to spare."""
    value, weights = _fit(points)
    freedom = len(points) - points["group"].nunique() - 1
    if freedom < 1:
        return UNBOUNDED
    y = (points["y"] - points.groupby("group")["y"].transform("mean")).to_numpy(float)
    x = (points["x"] - points.groupby("group")["x"].transform("mean")).to_numpy(float)
    residual = y - value * x
    return around(value, float(residual @ residual) / freedom * float(weights @ weights), freedom, level)
