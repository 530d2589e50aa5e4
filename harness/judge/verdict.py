"""Verdicts: what the records say about a claim, by the rule its card wrote down before the run.

A claim is an intersection-union test: supported when every part at every point is, each at its own 95 %; refuted when
one of them is, at the level of Holm's first step. ``points: any`` mirrors this inside a part. What did not run decides
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.declare.arithmetic import Condition
from harness.declare.card import Card, Claim, Experiment, Part, Requirement
from harness.declare.catalog import Catalog
from harness.declare.estimate_spec import Custom, Equivalence, Exact
from harness.declare.suite import Estimate, EstimateFunction, NotTestable
from harness.errors import LitmusError
from harness.judge.decide import Canary, basis_of, decide, is_timed, rule_of, sentence
from harness.judge.estimates import compute
from harness.judge.evidence import Evidence, Place, point_text
from harness.judge.outcome import ClaimVerdict, Interval, PartVerdict
from harness.judge.sample import NotEstimable
from harness.judge.stats.holm import first_step_level
from harness.records.store import COLUMNS, Verdict, load_records, read_run_info, write_verdicts

if TYPE_CHECKING:
    import pandas as pd

Lookup = Callable[[str], EstimateFunction]
_ALPHA = 0.05
_UNREAD = ("stderr_tail", "repro", "first_call_ns", "prepare_ns")


@dataclass(frozen=True)
class _Judge:
    """What all claims of one suite share."""

    evidence: Evidence
    canary: Canary
    custom: Lookup

    def estimate(self, need: Part | Requirement, claim: Claim, place: Place, level: float) -> Estimate:
        """The estimate at one place. Raises NotEstimable with the reason where there is none."""
        spec = need.estimate
        experiment = self.evidence.experiment(_experiment_name(need, claim))
        if claim.unit and claim.unit not in place.table.columns:
            raise NotEstimable(f"unit '{claim.unit}' is neither an axis nor seed nor cell")
        try:
            found = compute(spec, place.table.copy(), experiment, level, unit=claim.unit,
                            constants=self.evidence.constants, custom=self.custom)
        except NotTestable as error:
            raise NotEstimable(str(error) or "its question cannot be asked on this machine") from error
        except NotEstimable:
            raise
        except Exception as error:
            if not isinstance(spec, Custom):
                raise
            # An author's function may fail in any way; that is the claim's fate, not the run's.
            raise NotEstimable(f"estimate '{spec.custom}' failed: {type(error).__name__}: {error}") from error
        return _at_level(found, level, spec.custom) if isinstance(spec, Custom) else found


def judge_suite(
    name: str,
    card: Card,
    records: pd.DataFrame,
    constants: Mapping[str, float],
    canary: Mapping[str, Any] | None,
    custom: Lookup,
) -> list[ClaimVerdict]:
    """A verdict for every claim of ``card``, in its order, from the records of suite ``name`` (others are ignored).

    ``records`` are one run's, with the sample columns; ``constants`` the machine's; ``canary`` the run's summary, with
    ``floor`` (a ratio minus one) and ``alarm``; ``custom`` finds the suite's own estimates. What one of them
    raises becomes ``not run`` with the reason.
    """
    mine = records[records["suite"] == name]
    other = sorted(set(mine["card_version"]) - {card.version})
    if other:
        reason = f"records are of card version {other[0]}, the card is version {card.version}"
        return [_verdict(name, claim, "not run", reason) for claim in card.claims]
    judge = _Judge(Evidence(card, mine, constants), Canary.read(canary), custom)
    return [_judge_claim(name, claim, judge) for claim in card.claims]


def judge_run(folder: Path, root: Path, custom_of: Callable[[str], Lookup]) -> list[ClaimVerdict]:
    """Judge every suite of a run by the cards below ``root``, and write ``verdicts.json`` beside the records.

    ``custom_of(suite)`` is called only when a claim needs one of the suite's own estimates. A suite whose card is gone
    has no claims and no verdicts. Raises LitmusError for unreadable records or cards.
    """
    info = read_run_info(folder)
    records = load_records(folder, [column for column in COLUMNS if column not in _UNREAD])
    verdicts: list[ClaimVerdict] = []
    suites = set(info.cards) | set(records["suite"].unique())
    for entry in Catalog(root):
        if entry.name not in suites:
            continue
        mine = records[records["suite"] == entry.name]
        if entry.name in info.cards:  # a resumed run may hold records of older code beside the new ones
            current = mine[mine["code"] == info.cards[entry.name]["code"]]
            mine = mine if current.empty else current
        verdicts += judge_suite(entry.name, entry.card, mine, info.constants(), info.canary,
                                _deferred(custom_of, entry.name))
    write_verdicts(folder, [verdict.to_dict() for verdict in verdicts])
    return verdicts


def _deferred(custom_of: Callable[[str], Lookup], suite: str) -> Lookup:
    """The suite's own estimates, its module loaded at the first question and not before."""
    loaded = cache(custom_of)

    def lookup(name: str) -> EstimateFunction:
        return loaded(suite)(name)

    return lookup


def _judge_claim(suite: str, claim: Claim, judge: _Judge) -> ClaimVerdict:
    unmet = _unmet_requirement(claim, judge)
    if unmet:
        return _verdict(suite, claim, "not run", unmet)
    parts = [(part, *_places(part, claim, judge)) for part in claim.resolved_parts()]
    # In how many ways a claim can be refuted: by each place of a part, or by all places of an `any` part together.
    chances = sum(1 if part.points == "any" else len(places) for part, places, _ in parts)
    found: list[PartVerdict] = []
    outcomes: list[Verdict] = []
    for part, places, fault in parts:
        mine = ([_part_verdict(part, claim, {}, "not run", fault)] if fault else
                [_judge_place(part, claim, place, judge, _levels(part, len(places), chances)) for place in places])
        found += mine
        outcomes.append(_combined([item.verdict for item in mine], any_point=part.points == "any"))
    outcome = _combined(outcomes, any_point=False)
    return _verdict(suite, claim, outcome, _claim_reason(outcome, found, len(parts)), found)


def _experiment_name(need: Part | Requirement, claim: Claim) -> str:
    name = need.experiment or claim.experiment
    assert name is not None  # Card checks it
    return name


def _places(need: Part | Requirement, claim: Claim, judge: _Judge) -> tuple[list[Place], str]:
    """The places of a part, or none and the reason."""
    try:
        return judge.evidence.places(need, _experiment_name(need, claim), claim.unit), ""
    except NotEstimable as error:
        return [], str(error)
    except LitmusError as error:
        return [], f"{error.problem}: {error.value}"


def _unmet_requirement(claim: Claim, judge: _Judge) -> str | None:
    for need in claim.requires:
        places, fault = _places(need, claim, judge)
        if fault:
            return fault
        level = 1 - (2 * _ALPHA if isinstance(need.estimate, Equivalence) else _ALPHA)
        region = Condition.parse(need.holds_if, dict(judge.evidence.constants))
        try:
            estimates = [judge.estimate(need, claim, place, level) for place in places]
        except NotEstimable as error:
            return str(error)
        holds = [region.holds_for(item.low, item.high) for item in estimates]
        if not (any(holds) if need.points == "any" else all(holds)):
            first = estimates[holds.index(False)]
            return f"{need.otherwise} ({first.point:.4g} [{first.low:.4g}, {first.high:.4g}], needs {need.holds_if})"
    return None


def _levels(part: Part, places: int, chances: int) -> tuple[float, float]:
    """(support, refute) levels: TOST takes the 90 % interval, and a part that any place supports pays for each."""
    alpha = 2 * _ALPHA if isinstance(part.estimate, Equivalence) else _ALPHA
    support = first_step_level(places, alpha) if part.points == "any" else 1 - alpha
    return support, first_step_level(chances, _ALPHA)


def _judge_place(part: Part, claim: Claim, place: Place, judge: _Judge, levels: tuple[float, float]) -> PartVerdict:
    experiment = judge.evidence.experiment(_experiment_name(part, claim))
    timed = is_timed(part.estimate, experiment)
    try:
        estimate = judge.estimate(part, claim, place, levels[0])
        second = estimate if levels[0] == levels[1] else judge.estimate(part, claim, place, levels[1])
    except NotEstimable as error:
        return _part_verdict(part, claim, place.point, "not run", str(error), cells=place.cells)
    refute = Interval(second.low, second.high, second.level)
    rule = rule_of(part, experiment, judge.evidence.constants, judge.canary.floor)
    verdict = decide(estimate, refute, rule)
    reason = sentence(part.estimate, estimate, refute, rule, verdict, basis_of(estimate, place.table))
    bar = _too_few_seeds(part, claim, experiment, place) or (judge.canary.fault if timed else None)
    if bar:
        verdict, reason = "inconclusive", f"{bar}; {reason}"
    return _part_verdict(part, claim, place.point, verdict, reason, estimate, refute, place.cells)


def _too_few_seeds(part: Part, claim: Claim, experiment: Experiment, place: Place) -> str | None:
    if experiment.kind != "trial" or isinstance(part.estimate, Exact):
        return None
    unit = claim.unit or "seed"
    have = int(place.table[unit].nunique())
    return None if have >= claim.min_seeds else f"needs {claim.min_seeds} {unit}s, has {have}"


def _at_level(estimate: Estimate, level: float, name: str) -> Estimate:
    if estimate.low != estimate.high and abs(estimate.level - level) > 1e-9:
        raise NotEstimable(f"estimate '{name}' failed: it was asked for the level {level:.6g} and gave one at "
                           f"{estimate.level:.6g}; return Estimate(..., level=level)")
    return estimate


def _combined(verdicts: Sequence[Verdict], *, any_point: bool) -> Verdict:
    """One verdict from several: what did not run decides first, then one refutation, then unanimous support."""
    one, every = ("supported", "refuted") if any_point else ("refuted", "supported")
    if "not run" in verdicts:
        return "not run"
    if one in verdicts:
        return "supported" if any_point else "refuted"
    if all(verdict == every for verdict in verdicts):
        return "refuted" if any_point else "supported"
    return "inconclusive"


def _claim_reason(outcome: Verdict, found: Sequence[PartVerdict], parts: int) -> str:
    deciding = [item for item in found if item.verdict == outcome] or list(found)
    first = deciding[0]
    if len(found) == 1:
        return first.reason
    names = ([f"part {first.id}"] if parts > 1 else []) + ([point_text(first.point)] if first.point else [])
    at = f"{', '.join(names)}: " if names else ""
    how = {"supported": "hold", "refuted": "fail", "inconclusive": "are open", "not run": "cannot be made"}[outcome]
    return f"{len(deciding)} of {len(found)} tests {how}, the first: {at}{first.reason}"


def _verdict(
    suite: str, claim: Claim, verdict: Verdict, reason: str, parts: Sequence[PartVerdict] = ()
) -> ClaimVerdict:
    return ClaimVerdict(suite, claim.id, verdict, reason, dict(claim.scale), claim.note, tuple(parts))


def _part_verdict(
    part: Part, claim: Claim, point: dict[str, Any], verdict: Verdict, reason: str, estimate: Estimate | None = None,
    refute: Interval | None = None, cells: tuple[str, ...] = (),
) -> PartVerdict:
    supported_if, refuted_if = part.rule()
    return PartVerdict(part.id or claim.id, _experiment_name(part, claim), dict(point), estimate, refute, supported_if,
                       refuted_if, verdict, reason, cells)


__all__ = ["ClaimVerdict", "Interval", "PartVerdict", "judge_run", "judge_suite"]
