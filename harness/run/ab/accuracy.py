"""The trial cells of two sides: the same seeds on both, compared metric by metric."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import numpy as np

from harness.declare.card import Card
from harness.declare.gate import Gate, compared_metrics
from harness.judge.compare import decide_metric
from harness.judge.comparison import Comparison
from harness.judge.stats.bootstrap import Floats
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run.ab.identity import ALL, said_of
from harness.run.ab.pair import BASE, HEAD, ROLES, CellPair
from harness.run.engine.base import Engine
from harness.run.lanes import run_cell, trial_lane
from harness.run.protocol import CANNOT_LOAD

LEVEL = 0.95
Note = Callable[[str], None]


@dataclass(frozen=True)
class Metrics:
    """One metric of one arm at one point on both sides, paired by the comparison's unit in the same order."""

    comparison: Comparison
    base: Floats
    head: Floats

    def decided(self, level: float) -> Comparison:
        """The comparison with its word."""
        item = self.comparison
        said = decide_metric(self.base, self.head, item.better, item.threshold, item.relative, level)
        return replace(said.onto(item), unit=item.unit)


@dataclass
class _Lane:
    """Runs cells of both sides and keeps their records by pair and role."""

    engine: Engine
    note: Note
    found: dict[tuple[int, str], dict[str, Record]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, pairs: Sequence[CellPair], tell: Callable[[CellPair], None]) -> None:
        """All of them, as many side by side as the engine has slots. Raises Cancelled."""
        place = {id(pair.cell(role)): (index, role) for index, pair in enumerate(pairs) for role in ROLES}

        def one(cell: Cell) -> None:
            index, role = place[id(cell)]
            pair, records = pairs[index], dict[str, Record]()
            run_cell(self.engine, pair.roots[role], cell, _shared_arms(pair), partial(_keep, records), self.note)
            with self.lock:
                self.found[index, role] = records
                if all((index, each) in self.found for each in ROLES):
                    tell(pair)

        trial_lane(self.engine, [pair.cell(role) for pair in pairs for role in ROLES], one)


def _keep(records: dict[str, Record], record: Record) -> None:
    records[record.arm] = record


def run_trials(
    engine: Engine, pairs: Sequence[CellPair], note: Note, tell: Callable[[CellPair], None],
) -> list[Mapping[str, Mapping[str, Record]]]:
    """The records of each pair, by role and arm. Raises Cancelled where the engine is."""
    lane = _Lane(engine, note)
    lane.run(pairs, tell)
    return [{role: lane.found[index, role] for role in ROLES} for index in range(len(pairs))]


def compare_trials(
    pairs: Sequence[CellPair], records: Sequence[Mapping[str, Mapping[str, Record]]], cards: Mapping[str, Card],
    gate: Gate,
) -> Iterator[Comparison | Metrics]:
    """What is said of each arm and metric at each point, all its seeds together."""
    points: dict[tuple[object, ...], list[int]] = {}
    for index, pair in enumerate(pairs):
        cell = pair.head
        point = (cell.suite, cell.experiment, tuple(sorted(cell.point.items())), cell.device)
        points.setdefault(point, []).append(index)
    for members in points.values():
        pair = pairs[members[0]]
        for arm in _shared_arms(pair):
            both = [(records[index][BASE][arm], records[index][HEAD][arm]) for index in members]
            yield from _of_arm(pair, arm, both, cards[pair.head.suite], gate)


def _of_arm(
    pair: CellPair, arm: str, both: Sequence[tuple[Record, Record]], card: Card, gate: Gate
) -> Iterator[Comparison | Metrics]:
    cell = pair.head
    lost = [(base, head) for base, head in both if base.status == "ok" and head.status != "ok"]
    if lost:
        base, head = lost[0]
        gates = gate.gates(cell.suite, cell.experiment, arm, ALL)
        yield said_of(cell, arm, ALL, "head_status", f"{head.status}: {head.reason}, seed {head.seed}", gates)
        return
    good = [(base, head) for base, head in both if base.status == "ok"]
    if not good:
        base, _ = both[0]
        reason = "no_load" if (base.reason or "").startswith(CANNOT_LOAD) else "base_status"
        yield said_of(cell, arm, ALL, reason, f"{base.status}: {base.reason}")
        return
    if any(base.data != head.data for base, head in good):
        yield said_of(cell, arm, ALL, "data", f"base {good[0][0].data}, head {good[0][1].data}")
        return
    for metric, better in compared_metrics(card.experiments[cell.experiment]).items():
        sides = [np.array([cast("float", record[side].metrics[metric]) for record in good if metric in
                           record[0].metrics and metric in record[1].metrics], float) for side in (0, 1)]
        if not len(sides[0]):
            yield said_of(cell, arm, metric, "only_head")
            continue
        threshold, relative = gate.threshold(cell.suite, cell.experiment, metric)
        comparison = replace(
            said_of(cell, arm, metric, "few_units", gates=gate.gates(cell.suite, cell.experiment, arm, metric)),
            threshold=threshold, relative=relative, better=better, unit="seed", base=_mean(sides[0]),
            head=_mean(sides[1]),
        )
        yield Metrics(comparison, sides[0], sides[1])


def _shared_arms(pair: CellPair) -> list[str]:
    return [arm for arm in pair.head.arms if arm in pair.base.arms]


def _mean(values: Floats) -> float | None:
    mean = float(values.mean())
    return mean if math.isfinite(mean) else None
