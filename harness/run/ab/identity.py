"""Which cells the two sides have in common, which of them changed, and what can be said without measuring."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.declare.card import Card
from harness.declare.catalog import Catalog, Selector
from harness.declare.gate import own_arms
from harness.declare.tuned import load_tuned
from harness.errors import LitmusError
from harness.judge.comparison import Comparison
from harness.plan.cell import Cell
from harness.plan.machine import Machine
from harness.plan.plan import Request, make_plan
from harness.run.ab.pair import BASE, HEAD, ROLES, CellPair
from harness.run.ab.worktree import Side

Key = tuple[str, str, str, str, str, int]
ALL = "*"


@dataclass(frozen=True)
class Planned:
    """One side's plan: cells by what they ask, cards by suite, and the suites that this harness cannot read."""

    cells: Mapping[Key, Cell]
    cards: Mapping[str, Card]
    unreadable: Mapping[str, str]


@dataclass(frozen=True)
class Matched:
    """What is to be measured, what is said already, and how many equal cells were left out."""

    pairs: tuple[CellPair, ...]
    settled: tuple[Comparison, ...]
    unchanged: int
    cards: Mapping[str, Card]


@dataclass
class _Found:
    cells: dict[Key, Cell] = field(default_factory=dict)
    cards: dict[str, Card] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def match(base: Side, head: Side, request: Request, machine: Machine, everything: bool) -> Matched:
    """Plan both sides and pair their cells; with ``everything`` the equal ones are measured too.

    A cell changed where its code, its tuned values or its arms differ. Raises LitmusError where the selection names
    nothing on either side.
    """
    base_plan, head_plan = (_plan(side.root, request, machine) for side in (base, head))
    refusals = [*head_plan[1], *base_plan[1]]
    plans = {BASE: base_plan[0], HEAD: head_plan[0]}
    if not any(plan.cells or plan.unreadable for plan in plans.values()):
        raise refusals[0] if refusals else _nothing(head.root, request)
    roots = {BASE: base.root, HEAD: head.root}
    settled = list(_unreadable(plans))
    versions = list(_versions(plans))
    settled += versions
    unread = {item.suite for item in settled}
    common = [key for key in plans[HEAD].cells if key in plans[BASE].cells and key[0] not in unread]
    settled += _lonely(plans, unread)
    pairs = [CellPair(plans[BASE].cells[key], plans[HEAD].cells[key], roots) for key in common]
    for pair in pairs:
        settled += _lonely_arms(pair)
    wanted = tuple(pair for pair in pairs if everything or _changed(pair))
    return Matched(wanted, tuple(settled), len(pairs) - len(wanted), {**plans[BASE].cards, **plans[HEAD].cards})


def _plan(root: Path, request: Request, machine: Machine) -> tuple[Planned, list[LitmusError]]:
    """Suite by suite, so that one that cannot be read hides no other; with the refusals of the selection."""
    found, refusals = _Found(), []
    chosen = [Selector.parse(text) for text in request.selectors] or [Selector(ALL, None, ())]
    for entry in Catalog(root):
        taking = [selector for selector in chosen if selector.takes_suite(entry)]
        if not taking:
            continue
        try:
            found.cards[entry.name] = entry.card
            load_tuned(entry.folder / "tuned.yaml")
        except LitmusError as error:
            found.cards.pop(entry.name, None)
            found.unreadable[entry.name] = " ".join([error.problem, *filter(None, [error.key])])
            continue
        for selector in taking:
            try:
                plan = make_plan(root, replace(request, selectors=(_text(entry.name, selector),)), machine)
            except LitmusError as error:
                refusals.append(error)
                continue
            found.cells |= {_key(cell): cell for cell in plan.cells}
    return Planned(found.cells, found.cards, found.unreadable), refusals


def _text(suite: str, selector: Selector) -> str:
    """``selector`` narrowed to one suite."""
    if selector.experiment is None:
        return suite
    point = ",".join(f"{axis}={value}" for axis, value in selector.point)
    return f"{suite}:{selector.experiment}" + (f"[{point}]" if point else "")


def _nothing(root: Path, request: Request) -> LitmusError:
    """No suite matches: the catalog says it best; or there are none."""
    try:
        Catalog(root).select(request.selectors)
    except LitmusError as error:
        return error
    return LitmusError("neither revision has a suite", where=root, expected="a suite in suites/",
                       next_step="list them with: litmus ls")


def _key(cell: Cell) -> Key:
    return cell.suite, cell.experiment, cell.kind, json.dumps(dict(cell.point), sort_keys=True), cell.device, cell.seed


def _changed(pair: CellPair) -> bool:
    """Limits and the way of measuring are this command's own, so they make no difference."""
    return any(getattr(pair.base, name) != getattr(pair.head, name) for name in ("code", "arms", "tuned"))


def _unreadable(plans: Mapping[str, Planned]) -> Iterator[Comparison]:
    """A suite that only the head cannot read is a regression; else there is nothing to compare."""
    for suite in sorted(plans[BASE].unreadable.keys() | plans[HEAD].unreadable.keys()):
        reasons = {role: plans[role].unreadable[suite] for role in ROLES if suite in plans[role].unreadable}
        detail = "; ".join(f"{role}: {reason}" for role, reason in reasons.items())
        if HEAD in reasons and suite in plans[BASE].cards:
            yield whole(suite, "head_status", detail, gates=True)
        else:
            yield whole(suite, "no_load", detail)


def _versions(plans: Mapping[str, Planned]) -> Iterator[Comparison]:
    base, head = plans[BASE].cards, plans[HEAD].cards
    for suite in sorted(base.keys() & head.keys()):
        if base[suite].version != head[suite].version:
            yield whole(suite, "card_version", f"{base[suite].version} on the base, {head[suite].version} on the head")


def whole(suite: str, reason: str, detail: str, gates: bool = False) -> Comparison:
    """What is said of a suite altogether."""
    return Comparison(suite, ALL, ALL, ALL, "incomparable", reason, device=ALL, detail=detail, gates=gates)


def _lonely(plans: Mapping[str, Planned], leave_out: set[str]) -> Iterator[Comparison]:
    """Cells of one side, one comparison for all seeds of a point."""
    for role, other, reason in ((BASE, HEAD, "only_base"), (HEAD, BASE, "only_head")):
        points = {key[:-1]: cell for key, cell in plans[role].cells.items()
                  if key not in plans[other].cells and key[0] not in leave_out}
        # Further seeds of a point that both have are no new question.
        known = {key[:-1] for key in plans[other].cells}
        for point, cell in points.items():
            if point not in known:
                yield said_of(cell, ALL, ALL, reason)


def _lonely_arms(pair: CellPair) -> Iterator[Comparison]:
    if pair.head.seed != 0:
        return
    for cell, others, reason in ((pair.base, pair.head.arms, "only_base"), (pair.head, pair.base.arms, "only_head")):
        for arm in cell.arms:
            if arm not in others:
                yield said_of(cell, arm, ALL, reason)


def said_of(cell: Cell, arm: str, metric: str, reason: str, detail: str = "", gates: bool = False) -> Comparison:
    """That ``arm`` of ``cell`` cannot be compared, and why."""
    return Comparison(cell.suite, cell.experiment, arm, metric, "incomparable", reason, point=dict(cell.point),
                      device=cell.device, detail=detail, gates=gates)


def arms_of_ours(pair: CellPair, card: Card) -> list[str]:
    """The arms that both sides have and that are this project's: not the peers that a fast path is held against."""
    ours = own_arms(card.experiments[pair.head.experiment])
    return [arm for arm in pair.head.arms if arm in pair.base.arms and arm in ours]
