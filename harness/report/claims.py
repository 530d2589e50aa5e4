"""A claim as a card: what the paper says, our test in words, the interval drawn, the verdict and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from harness.declare.card import Card, Claim
from harness.report import words
from harness.report.numbers import point_text
from harness.report.strips import Scale, bounds_of, decision_strip, estimate_text

Verdict = Mapping[str, Any]


@dataclass(frozen=True)
class PartRow:
    """One part at one point. ``strip`` and ``numbers`` are markup; ``numbers`` is empty without an estimate."""

    point: str
    verdict: str
    reason: str
    strip: Markup
    numbers: Markup
    basis: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class PartGroup:
    """All points of one part, drawn on one scale, under the test in words (None for a part the card no longer has)."""

    id: str
    test: words.Question | None
    supported_if: str
    refuted_if: str
    rows: tuple[PartRow, ...]


@dataclass(frozen=True)
class ClaimCard:
    """Everything a page shows of a claim. ``known`` is False where the card no longer has it."""

    id: str
    statement: str
    paper: Mapping[str, str]
    verdict: str
    reason: str
    scale: Mapping[str, str]
    note: str | None
    requires: tuple[str, ...]
    groups: tuple[PartGroup, ...]
    known: bool = True

    @property
    def cells(self) -> tuple[str, ...]:
        """The ids of all cells that decided, each once."""
        found = [cell for group in self.groups for row in group.rows for cell in row.cells]
        return tuple(dict.fromkeys(found))


def claim_cards(
    card: Card | None, verdicts: Sequence[Verdict], constants: Mapping[str, float], profile: str = "small"
) -> list[ClaimCard]:
    """The card's claims in its order, then verdicts of claims that the card no longer has.

    Axes with one value in the run's ``profile`` are left out of the points' names.
    """
    found = {verdict["claim"]: verdict for verdict in verdicts}
    claims = list(card.claims) if card else []
    cards = [_known(claim, card, found.pop(claim.id, None), constants, profile) for claim in claims if card]
    return cards + [_gone(verdict, constants) for verdict in found.values()]


def _known(
    claim: Claim, card: Card, verdict: Verdict | None, constants: Mapping[str, float], profile: str
) -> ClaimCard:
    by_part: dict[str, list[Verdict]] = {}
    for part in (verdict or {}).get("parts", []):
        by_part.setdefault(part["id"], []).append(part)
    groups = []
    for part in claim.resolved_parts():
        name = part.id or claim.id
        fixed = _fixed_axes(card, part.experiment or "", profile)
        groups.append(_group(name, words.question_of(part, card), by_part.pop(name, []), constants, fixed))
    groups += [_group(name, None, rows, constants) for name, rows in by_part.items()]
    return ClaimCard(
        id=claim.id, statement=claim.statement, paper=claim.paper,
        verdict=verdict["verdict"] if verdict else "not run",
        reason=verdict["reason"] if verdict else "no stored run has judged this claim",
        scale=claim.scale or (verdict or {}).get("scale") or {}, note=claim.note or (verdict or {}).get("note"),
        requires=tuple(words.requirement_text(item, card, claim.experiment) for item in claim.requires),
        groups=tuple(groups),
    )


def _gone(verdict: Verdict, constants: Mapping[str, float]) -> ClaimCard:
    by_part: dict[str, list[Verdict]] = {}
    for part in verdict["parts"]:
        by_part.setdefault(part["id"], []).append(part)
    return ClaimCard(
        id=verdict["claim"], statement=verdict["claim"].replace("_", " "), paper={}, verdict=verdict["verdict"],
        reason=verdict["reason"], scale=verdict.get("scale") or {}, note=verdict.get("note"), requires=(),
        groups=tuple(_group(name, None, rows, constants) for name, rows in by_part.items()), known=False,
    )


def _group(
    name: str, test: words.Question | None, parts: Sequence[Verdict], constants: Mapping[str, float],
    fixed: Sequence[str] = (),
) -> PartGroup:
    """The rule shown is the one the verdict was judged by; the card's where nothing was judged."""
    supported_if = parts[0]["supported_if"] if parts else test.supported_if if test else ""
    refuted_if = parts[0]["refuted_if"] if parts else test.refuted_if if test else ""
    regions = words.condition(supported_if, constants), words.condition(refuted_if, constants)
    estimates = [_numbers(part.get("estimate")) for part in parts]
    holm = [_numbers(part.get("refute_interval")) for part in parts]
    scale = Scale.over([
        *(value for item in [*estimates, *holm] if item for value in item.values()),
        *(bound for region in regions for bound in bounds_of(region)),
    ])
    unit = test.unit if test else ""
    rows = [
        PartRow(
            point=point_text({axis: value for axis, value in (part.get("point") or {}).items() if axis not in fixed}),
            verdict=part["verdict"], reason=part["reason"],
            strip=decision_strip(estimate, refute, *regions, unit, scale),
            numbers=estimate_text(estimate, unit) if estimate and math.isfinite(estimate["point"]) else Markup(""),
            basis=_basis(part), cells=tuple(part.get("cells") or ()),
        )
        for part, estimate, refute in zip(parts, estimates, holm, strict=True)
    ]
    if not rows:
        strip = decision_strip(None, None, *regions, unit, scale)
        rows = [PartRow("", "not run", "", strip, Markup(""), "", ())]
    return PartGroup(name, test, supported_if, refuted_if, tuple(rows))


def _fixed_axes(card: Card, experiment: str, profile: str) -> list[str]:
    declared = card.experiments[experiment]
    here = declared.in_profile(profile) or declared  # type: ignore[arg-type]  # a stored run's profile is one
    return [axis for axis, values in here.axes.items() if len(values) == 1]


def _numbers(stored: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Point, low and high with the infinities that JSON could not hold; None where nothing was estimated."""
    if stored is None:
        return None
    missing = {"point": math.nan, "low": -math.inf, "high": math.inf}
    return {key: missing[key] if stored[key] is None else float(stored[key]) for key in missing if key in stored}


def _basis(part: Verdict) -> str:
    estimate = part.get("estimate")
    if not estimate:
        return ""
    unit, n, cells = estimate.get("unit") or "unit", estimate["n"], len(part.get("cells") or ())
    items = [
        f"{100 * float(estimate['level']):.3g} % interval",
        f"n = {n} {unit}{'s' if n != 1 and not unit.endswith('s') else ''}",
        estimate.get("method") or "",
        f"{cells} cell{'s' if cells != 1 else ''}" if cells else "",
    ]
    return " · ".join(item for item in items if item)
