"""A claim's test in words: what is estimated, of which cells, and what decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.declare.arithmetic import Condition
from harness.declare.card import Card, Experiment, Part, Requirement
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
)
from harness.declare.fields import is_condition
from harness.errors import LitmusError
from harness.report.numbers import axis_value

VERDICTS = ("supported", "refuted", "inconclusive", "not run")
MARKS = {"supported": "✓", "refuted": "✗", "inconclusive": "◐", "not run": "–"}
_SPEED_UNITS = {"time": "ns", "bandwidth": "B/s", "flop_rate": "FLOP/s", "error": "", "peak_bytes": "B"}
_SPEED_NAMES = {"time": "time per call", "bandwidth": "bandwidth", "flop_rate": "FLOP rate",
                "error": "relative error", "peak_bytes": "peak memory"}


@dataclass(frozen=True)
class Question:
    """One part of a claim as a reader sees it. ``unit`` is the estimate's."""

    estimate: str
    where: str
    supported_if: str
    refuted_if: str
    unit: str


def question_of(part: Part, card: Card) -> Question:
    """The words for one part of a claim."""
    supported_if, refuted_if = part.rule()
    experiment = card.experiments[part.experiment or ""]
    return Question(estimate_text(part.estimate, experiment), where_text(part, part.experiment or ""),
                supported_if, refuted_if, unit_of(part.estimate, experiment))


def requirement_text(requirement: Requirement, card: Card, inherited: str | None) -> str:
    """A precondition as a sentence."""
    name = requirement.experiment or inherited or ""
    what = estimate_text(requirement.estimate, card.experiments[name])
    where = where_text(requirement, name)
    return f"{what}, {where}, must be {requirement.holds_if}; otherwise: {requirement.otherwise}"


def metric_name(metric: str, experiment: Experiment) -> str:
    """A metric for prose."""
    return _SPEED_NAMES.get(metric, metric) if experiment.kind == "speed" else metric


def metric_unit(metric: str, experiment: Experiment) -> str:
    """A metric's unit, ``ns`` and ``B`` for the fixed ones of speed experiments."""
    if experiment.kind == "speed":
        return _SPEED_UNITS.get(metric, "")
    return experiment.metrics[metric].unit if metric in experiment.metrics else ""


def unit_of(spec: EstimateSpec, experiment: Experiment) -> str:
    """The unit of an estimate: ``×`` for ratios, the metric's for means and differences, none for the rest."""
    if isinstance(spec, Ratio):
        return "×"
    relative = isinstance(spec, Difference | Equivalence) and spec.relative
    log = isinstance(spec, Ordering) and spec.log
    if isinstance(spec, Difference | Equivalence | Mean | Exact | Ordering) and not relative and not log:
        return metric_unit(spec.metrics()[0], experiment)
    return ""


def estimate_text(spec: EstimateSpec, experiment: Experiment) -> str:
    """What is estimated, in one phrase."""
    return str(_PHRASES[type(spec)](spec, experiment))


def where_text(need: Part | Requirement, experiment: str) -> str:
    """Which cells are used, in one phrase."""
    text = f"in experiment {experiment}"
    if need.where:
        text += " where " + " and ".join(_condition_text(name, value) for name, value in need.where.items())
    return text + {"all": ", at every point", "any": ", at any one point", "pool": ", points pooled"}[need.points]


def condition(text: str | None, constants: Mapping[str, float]) -> Condition | None:
    """The region a rule names, None where there is no rule or it is not one."""
    if not text:
        return None
    try:
        return Condition.parse(text, constants)
    except LitmusError:
        return None


def _condition_text(name: str, value: Any) -> str:
    if isinstance(value, list):
        return f"{name} is one of {', '.join(axis_value(item) for item in value)}"
    if is_condition(value):
        return f"{name} {value}"
    return f"{name} = {axis_value(value)}"


def _metric(spec: Any, experiment: Experiment) -> str:
    return metric_name(spec.metrics()[0], experiment)


def _pairing(experiment: Experiment) -> str:
    return "paired by seed" if experiment.kind == "trial" else "paired by process and round"


def _ratio(spec: Ratio, experiment: Experiment) -> str:
    metric = _metric(spec, experiment)
    return f"{metric} of {spec.of} ÷ {metric} of {spec.to}, {_pairing(experiment)}"


def _difference(spec: Difference, experiment: Experiment) -> str:
    tail = f", relative to {spec.minus}" if spec.relative else ""
    return f"{_metric(spec, experiment)} of {spec.of} − {spec.minus}{tail}, {_pairing(experiment)}"


def _equivalence(spec: Equivalence, experiment: Experiment) -> str:
    tail = f", relative to {spec.to}" if spec.relative else ""
    return (f"{_metric(spec, experiment)} of {spec.of} − {spec.to}{tail}, {_pairing(experiment)}, "
            f"the same within ±{spec.within:g} (two one-sided tests)")


def _mean(spec: Mean, experiment: Experiment) -> str:
    over = "mean over seeds" if experiment.kind == "trial" else "median over rounds"
    return f"{_metric(spec, experiment)} of {spec.of}, {over}"


def _fraction(spec: Fraction, experiment: Experiment) -> str:
    return f"share of cells of {spec.of} whose {_metric(spec, experiment)} is {spec.holds_if}"


def _slope(spec: Slope, experiment: Experiment) -> str:
    return f"slope of log {_metric(spec, experiment)} on log {spec.against} for {spec.of}"


def _rank(spec: RankCorrelation, experiment: Experiment) -> str:
    first, second = (metric_name(name, experiment) for name in spec.rank_correlation)
    return f"rank correlation of {first} with {second}" + (f" for {spec.of}" if spec.of else " over all arms")


def _ordering(spec: Ordering, experiment: Experiment) -> str:
    gap = "log ratio" if spec.log else "gap"
    return f"{_metric(spec, experiment)} rises along {' < '.join(spec.rising)}: the smallest {gap} between neighbours"


def _exact(spec: Exact, experiment: Experiment) -> str:
    return f"{_metric(spec, experiment)} of {spec.of}, the same in every cell"


def _custom(spec: Custom, experiment: Experiment) -> str:
    params = ", ".join(f"{name} = {value}" for name, value in spec.params.items())
    return f"the suite's own estimate {spec.custom}" + (f" ({params})" if params else "")


_PHRASES: dict[type, Any] = {
    Ratio: _ratio, Difference: _difference, Equivalence: _equivalence, Mean: _mean, Fraction: _fraction, Slope: _slope,
    RankCorrelation: _rank, Ordering: _ordering, Exact: _exact, Custom: _custom,
}
