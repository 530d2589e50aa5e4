"""A decision is about a whole interval: does it lie in the region, and how to say so in one sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from harness.declare.arithmetic import Condition
from harness.declare.card import Experiment, Part
from harness.declare.estimate_spec import Custom, Difference, Equivalence, EstimateSpec, Exact, Ordering, Ratio, kind_of
from harness.declare.suite import Estimate
from harness.judge.outcome import Interval
from harness.judge.sample import TIMED
from harness.records.store import Verdict

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rule:
    """The regions that decide, and a clause saying how the A/A floor narrowed them ("" where it did not)."""

    supported: Condition
    refuted: Condition
    clause: str = ""


@dataclass(frozen=True)
class Canary:
    """What the A/A canary of a run allows: equal code shows a |log ratio| up to ``floor``; a ``fault`` bars timing."""

    floor: float
    fault: str | None

    @classmethod
    def read(cls, summary: Mapping[str, Any] | None) -> Canary:
        """From ``run.json`` (``floor`` there is a ratio minus one); no canary, or one that alarmed, is a ``fault``."""
        found = summary or {}
        floor = found.get("floor")
        if not isinstance(floor, int | float) or not math.isfinite(floor) or floor < 0:
            return cls(0.0, "no verdict on time, since this run measured no A/A floor")
        if found.get("alarm"):
            fault = f"no verdict on time, since the A/A canary alarmed: equal code differed by up to {floor:.2%}"
            return cls(math.log1p(floor), fault)
        return cls(math.log1p(floor), None)


def is_timed(spec: EstimateSpec, experiment: Experiment) -> bool:
    """Whether the estimate rests on measured time."""
    if experiment.kind != "speed":
        return False
    return isinstance(spec, Custom) or any(metric in TIMED for metric in spec.metrics())


def rule_of(part: Part, experiment: Experiment, constants: Mapping[str, float], floor: float) -> Rule:
    """The regions of ``part``; bounds nearer to "equal" than the A/A floor move to the floor's far side.

    A region only ever shrinks: with a floor of 1 %, ``> 1.00`` becomes ``> 1.01`` and ``inside [0.995, 1.005]`` can
    hold for nothing. This is max(card's threshold, floor) for the comparison of two arms' times.
    """
    supported, refuted = (Condition.parse(text, dict(constants)) for text in part.rule())
    zone = _zone(part.estimate, floor) if is_timed(part.estimate, experiment) and floor > 0 else None
    if zone is None:
        return Rule(supported, refuted)
    narrow = Rule(_narrowed(supported, *zone), _narrowed(refuted, *zone))
    if (narrow.supported, narrow.refuted) == (supported, refuted):
        return narrow
    return replace(narrow, clause=f"; bounds within the A/A floor of {math.expm1(floor):.2%} were moved to it")


def _zone(spec: EstimateSpec, floor: float) -> tuple[float, float] | None:
    """What equal arms may show by the estimate, at most."""
    if isinstance(spec, Ratio):
        return math.exp(-floor), math.exp(floor)
    if isinstance(spec, Ordering) and spec.log:
        return -floor, floor
    if isinstance(spec, Difference | Equivalence) and spec.relative:
        return math.expm1(-floor), math.expm1(floor)
    return None


def _narrowed(region: Condition, low: float, high: float) -> Condition:
    def moved(bound: float, to: float) -> float:
        return to if low < bound < high else bound

    if region.kind in (">", ">="):
        return replace(region, low=moved(region.low, high), high=moved(region.high, high))
    if region.kind in ("<", "<="):
        return replace(region, low=moved(region.low, low), high=moved(region.high, low))
    if region.kind == "inside":
        return replace(region, low=moved(region.low, high), high=moved(region.high, low))
    if region.kind == "outside":
        return replace(region, low=moved(region.low, low), high=moved(region.high, high))
    return region


def decide(estimate: Estimate, refute: Interval, rule: Rule) -> Verdict:
    """``supported`` when the estimate's interval lies in its region, ``refuted`` when ``refute`` lies in the other."""
    supported = rule.supported.holds_for(estimate.low, estimate.high)
    refuted = rule.refuted.holds_for(refute.low, refute.high)
    if supported == refuted:  # neither, or both because the card's regions overlap
        return "inconclusive"
    return "supported" if supported else "refuted"


def sentence(spec: EstimateSpec, estimate: Estimate, refute: Interval, rule: Rule, verdict: Verdict, basis: str) -> str:
    """Why, in one sentence with the numbers; ``basis`` says how many units stand behind them."""
    name = noun(spec)
    if isinstance(spec, Exact) and estimate.low == estimate.high:
        return _exact_sentence(estimate, rule, verdict)
    if math.isnan(estimate.point):
        return f"the {name} is undefined, since a value is not finite or out of its domain ({basis})"
    if math.isinf(estimate.low) and math.isinf(estimate.high):
        why = f": {estimate.method}" if isinstance(spec, Exact) else ""
        return f"{name} {_number(estimate.point)} has no bounded interval ({basis}){why}"
    head = f"{name} {_number(estimate.point)}, "
    mine = _interval(estimate.low, estimate.high, estimate.level)
    other = _interval(refute.low, refute.high, refute.level)
    if verdict == "supported":
        body = f"{mine} lies wholly {_region(rule.supported)}"
    elif verdict == "refuted":
        body = f"{other} lies wholly {_region(rule.refuted)}"
    elif rule.supported.holds_for(estimate.low, estimate.high):
        body = f"{mine} lies both {_region(rule.supported)} and {_region(rule.refuted)}: the card's regions overlap"
    elif mine == other:
        body = f"{mine} lies neither wholly {_region(rule.supported)} nor wholly {_region(rule.refuted)}"
    else:
        body = f"{mine} is not wholly {_region(rule.supported)}, and {other} not wholly {_region(rule.refuted)}"
    return f"{head}{body} ({basis}){rule.clause}"


def _exact_sentence(estimate: Estimate, rule: Rule, verdict: Verdict) -> str:
    count = f"{estimate.n} cells agree" if estimate.n > 1 else "1 cell"
    if verdict == "inconclusive":
        return (f"value {_number(estimate.point)} is neither {_region(rule.supported)} nor {_region(rule.refuted)} "
                f"({count})")
    region = rule.supported if verdict == "supported" else rule.refuted
    return f"value {_number(estimate.point)} is {_region(region)} ({count})"


def noun(spec: EstimateSpec) -> str:
    """What the number is called in a sentence."""
    kind = kind_of(spec) or "estimate"
    if isinstance(spec, Custom):
        return spec.custom.replace("_", " ")
    if isinstance(spec, Difference | Equivalence):
        return "relative difference" if spec.relative else "difference"
    return {"rank_correlation": "rank correlation", "ordering": "smallest gap", "exact": "value"}.get(kind, kind)


def basis_of(estimate: Estimate, table: pd.DataFrame) -> str:
    """``24 rounds in 3 processes``, ``5 seeds``; an estimate over several cells says how many."""
    text = f"{estimate.n} {estimate.unit}" + ("" if estimate.n == 1 else "s")
    if estimate.unit != "round":
        return text
    count = len(table.drop_duplicates(["cell", "process"]))
    cells = table["cell"].nunique()
    return f"{text} in {count} process" + ("" if count == 1 else "es") + (f" of {cells} cells" if cells > 1 else "")


def _interval(low: float, high: float, level: float) -> str:
    return f"{100 * level:.4g} % interval [{_number(low)}, {_number(high)}]"


def _number(value: float) -> str:
    return f"{value:.4g}"


def _region(region: Condition) -> str:
    words = {">": "above", ">=": "at or above", "<": "below", "<=": "at or below", "==": "at"}
    if region.kind in words:
        return f"{words[region.kind]} {region.low:.6g}"
    if region.kind == "inside" and region.low > region.high:
        return "inside the card's band, of which the A/A floor leaves nothing"
    return f"{region.kind} [{region.low:.6g}, {region.high:.6g}]"
