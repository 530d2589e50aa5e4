"""From the tidy rows of a point to one estimate with an interval: one function per kind of ``estimate:`` block.

A non-finite value makes an interval unbounded, so that no claim is decided by accident; only ``fraction`` counts it, by
its condition (NaN satisfies none: count failures with a 0/1 metric).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from harness.declare.arithmetic import Condition
from harness.declare.estimate_spec import (
    Custom,
    Difference,
    Equivalence,
    EstimateSpec,
    Exact,
    Fraction,
    Mean,
    Ordering,
    RankCorrelation,
    Ratio,
    Slope,
    arms_of,
)
from harness.declare.suite import Estimate, EstimateFunction
from harness.judge.contrasts import Question, difference, mean, ordering, ratio
from harness.judge.sample import TIMED, NotEstimable, units_of
from harness.judge.slope import slope
from harness.judge.stats.intervals import spearman_interval, wilson

if TYPE_CHECKING:
    import pandas as pd

    from harness.declare.card import Experiment


def compute(
    spec: EstimateSpec,
    table: pd.DataFrame,
    experiment: Experiment,
    level: float,
    *,
    unit: str | None = None,
    constants: Mapping[str, float] | None = None,
    custom: Callable[[str], EstimateFunction] | None = None,
) -> Estimate:
    """The estimate of ``spec`` at confidence ``level`` from tidy rows (see :func:`harness.judge.tidy.tidy`).

    Units are paired by cell and unit; where one lacks an arm, NotEstimable says so and nothing is dropped. Rows of
    several points are pooled: values of one seed are averaged over the points first, speed cells count their processes
    as different ones. ``unit`` names another independent unit, see :func:`harness.judge.sample.to_sample`.
    """
    question = Question(table, experiment, level, unit)
    if isinstance(spec, Custom):
        if custom is None:
            raise NotEstimable(f"no estimate '{spec.custom}' is registered")
        return checked(custom(spec.custom)(table, level, **spec.params))
    if isinstance(spec, Fraction):
        return fraction(spec, question, Condition.parse(spec.holds_if, dict(constants or {})))
    return _BY_KIND[type(spec)](spec, question)


def fraction(spec: Fraction, question: Question, condition: Condition) -> Estimate:
    """Wilson's interval for the share of cells whose metric satisfies the condition (speed: the cell's median).

    Cells count as independent.
    """
    values = _per_cell(question, spec.fraction, _one_arm(spec.of))["value"].to_numpy(float)
    count = sum(condition.holds(float(value)) for value in values)
    low, high = wilson(count, len(values), question.level)
    return Estimate(count / len(values), low, high, len(values), question.level, "cell", "Wilson interval over cells")


def exact(spec: Exact, question: Question) -> Estimate:
    """The value on which every cell agrees, an interval without width; unbounded where cells disagree."""
    values = np.sort(_per_cell(question, spec.exact, _one_arm(spec.of))["value"].to_numpy(float))
    agree = values[0] == values[-1]
    if agree:
        value = float(values[0])
        return Estimate(value, value, value, len(values), question.level, "cell", "exact: every cell agrees")
    method = f"exact: the cells disagree, from {values[0]:.6g} to {values[-1]:.6g}"
    return Estimate(float(np.median(values)), -math.inf, math.inf, len(values), question.level, "cell", method)


def rank_correlation(spec: RankCorrelation, question: Question) -> Estimate:
    """Spearman's rho over the cells of one arm (or of all arms), interval by Fisher's z.

    Where cells lie at several points, seeds repeat those points: rho is over all cells, but n counts points (times
    arms), not cells.
    """
    first, second = spec.rank_correlation
    arms = arms_of(spec.of) if spec.of else sorted(question.table["arm"].unique())
    x, y = (_joined(question, name, arms) for name in (first, second))
    a, b = x["value"].to_numpy(float), y["value"].to_numpy(float)
    points = len(set(x["place"]))
    n = points if points > len(arms) else len(a)
    defined = np.isfinite(a).all() and np.isfinite(b).all() and np.ptp(a) > 0 and np.ptp(b) > 0
    rho = float(stats.spearmanr(a, b).statistic) if defined else math.nan
    low, high = spearman_interval(rho, n, question.level)
    if math.isnan(rho):
        low, high = -math.inf, math.inf
    unit = "cell" if n == len(a) else "point"
    return Estimate(rho, low, high, n, question.level, unit, f"Spearman's rho over {len(a)} cells, Fisher z")


def checked(estimate: object) -> Estimate:
    """``estimate`` if it is one, with its interval the right way round; TypeError or ValueError otherwise."""
    if not isinstance(estimate, Estimate):
        raise TypeError(f"it returned {type(estimate).__name__}, not an Estimate")
    if not 0 < estimate.level < 1:
        raise ValueError(f"its level is {estimate.level}, not between 0 and 1")
    if estimate.low > estimate.high:
        raise ValueError(f"its interval [{estimate.low:g}, {estimate.high:g}] is upside down")
    return estimate


def _one_arm(reference: str) -> str:
    arms = arms_of(reference)
    if len(arms) > 1:
        raise NotEstimable("best(...) has no meaning in this estimate")
    return arms[0]


def _per_cell(question: Question, metric: str, arm: str) -> pd.DataFrame:
    """One row per cell: ``cell``, ``place`` (its point and arm), ``value`` (the median over a timed cell's rounds)."""
    import pandas as pd

    units = units_of(question.table, metric, [arm], question.experiment)
    axes = units.keys[list(question.experiment.axes)].astype(object).to_numpy().tolist()
    rows = pd.DataFrame({
        "cell": units.keys["cell"], "place": [json.dumps([arm, *row], default=str) for row in axes],
        "value": units.values[arm],
    })
    if question.speed and metric in TIMED:
        rows = rows.groupby(["cell", "place"], sort=True)["value"].median().reset_index()
    return rows.sort_values(["cell", "place"], kind="stable")


def _joined(question: Question, metric: str, arms: list[str]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([_per_cell(question, metric, arm) for arm in arms], ignore_index=True)


_BY_KIND: dict[type[Any], Callable[[Any, Question], Estimate]] = {
    Ratio: ratio,
    Difference: difference,
    Equivalence: difference,
    Mean: mean,
    Ordering: ordering,
    Slope: slope,
    RankCorrelation: rank_correlation,
    Exact: exact,
}
