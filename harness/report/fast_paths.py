"""The fast paths of all runs, gathered by op and experiment; for each device of each machine one run speaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.declare.card import Card, Experiment
from harness.judge.decide import Canary
from harness.judge.evidence import Evidence
from harness.records.store import Run, RunInfo, evidence_order
from harness.records.table import COLUMNS, RECORDS_FILE
from harness.report.experiments import arm_slots
from harness.report.fast_figures import ratio_figures
from harness.report.fast_rows import COMPARED, FastRow, fast_rows
from harness.report.figures import Figure
from harness.report.lines import Line, Result

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[str, str]  # machine, device


@dataclass(frozen=True)
class Source:
    """The run that a device's rows come from. ``canary`` tells its noise, ``where`` names the device for a reader."""

    result: Result
    device: str
    where: str
    canary: Canary

    @property
    def run(self) -> Run:
        """The run."""
        return self.result.run


@dataclass(frozen=True)
class Absence:
    """An arm, or a device, without any result, and how its records ended: ``skipped: torch is not installed``."""

    name: str
    endings: tuple[str, ...]


@dataclass(frozen=True)
class ArmKey:
    """An arm's name and colour."""

    arm: str
    slot: int


@dataclass(frozen=True)
class Block:
    """One experiment: its arms that are ours and their peers at every point, on the device of every source.

    ``wheres`` names each row's device: one word for each pair of machine and device.
    """

    line: Line
    card: Card
    name: str
    rows: tuple[FastRow, ...]
    sources: tuple[Source, ...]
    absences: tuple[Absence, ...]
    wheres: Mapping[Place, str]

    @property
    def experiment(self) -> Experiment:
        """The experiment as the card has it."""
        return self.card.experiments[self.name]

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Our arms that have a result somewhere, in the card's order."""
        have = {item.arm for row in self.rows for item in row.ours if item.speed is not None}
        return tuple(arm for arm in self.experiment.arms if arm in have)

    @property
    def peers(self) -> tuple[str, ...]:
        """The peers, in the card's order."""
        return tuple(self.experiment.fast_path.peers) if self.experiment.fast_path else ()

    @cached_property
    def slots(self) -> dict[str, int]:
        """The colour of each arm, as on the paper's page."""
        return arm_slots(self.card, self.name)

    @cached_property
    def figures(self) -> tuple[Figure, ...]:
        """The ratio to the best peer over size, a panel for each device and each value of the other axes."""
        infos = {source.run.machine: source.run.info for source in self.sources}
        return ratio_figures(self.rows, self.arms, self.slots, self.wheres, infos)

    @property
    def legend(self) -> tuple[ArmKey, ...]:
        """The drawn arms for the figures' legend."""
        return tuple(ArmKey(arm, self.slots[arm]) for arm in self.arms)

    @property
    def other_cache(self) -> str:
        """What the times of the other cache state are called; empty where none was measured."""
        judged = next((row.cache for row in self.rows if row.cache), "")
        return {"cold": "warm L2", "warm": "cold L2"}.get(judged, "")

    def where(self, row: FastRow) -> str:
        """The row's device for a reader."""
        return self.wheres[(row.machine, row.device)]

    def tally(self, arm: str) -> list[tuple[str, int]]:
        """(word, at how many points) for one arm against its best peer."""
        results = [row.of(arm) for row in self.rows]
        found = Counter(item.best.word for item in results if item and item.best and item.best.word)
        return [(word, found[word]) for word in COMPARED if found[word]]


@dataclass(frozen=True)
class Op:
    """Every experiment that a card calls a fast path of this op."""

    name: str
    blocks: tuple[Block, ...]


def fast_paths(found: Sequence[Line]) -> list[Op]:
    """The ops by name; each experiment with the newest results of every device of every machine, smoke runs last.

    An experiment without any record is left out.
    """
    gathered: dict[tuple[str, str], _Gathered] = {}
    for run, results in _by_run(found):
        records = _Records(run)
        for line, result in results:
            for name in _declared(line):
                gathered.setdefault((line.suite, name), _Gathered(line, name)).add(result, records)
    ops: dict[str, list[Block]] = {}
    for line in found:
        for name, op in _declared(line).items():
            block = gathered[(line.suite, name)].block() if (line.suite, name) in gathered else None
            if block is not None:
                ops.setdefault(op, []).append(block)
    return [Op(name, tuple(ops[name])) for name in sorted(ops)]


def _declared(line: Line) -> dict[str, str]:
    """Experiment to op, for the fast paths of a card."""
    experiments = line.card.experiments if line.card else {}
    return {name: item.fast_path.op for name, item in experiments.items() if item.fast_path is not None}


def _by_run(found: Sequence[Line]) -> Iterator[tuple[Run, list[tuple[Line, Result]]]]:
    """The runs in the order in which they are believed, with their results of suites that have fast paths."""
    results: dict[Run, list[tuple[Line, Result]]] = {}
    for line in found:
        for result in line.results if _declared(line) else ():
            results.setdefault(result.run, []).append((line, result))
    for run in evidence_order(list(results)):
        yield run, results[run]


class _Records:
    """A run's records: first only how they ended, everything else when a device is shown."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def endings(self, suite: str, experiment: str) -> dict[str, list[tuple[str, str, str]]]:
        """(arm, status, reason) of an experiment's records by device."""
        found: dict[str, list[tuple[str, str, str]]] = {}
        for row in self._brief.get((suite, experiment), []):
            found.setdefault(row[0], []).append(row[1:])
        return found

    def latest(self, line: Line) -> pd.DataFrame:
        """A suite's records, each question answered by its latest cell."""
        assert line.card is not None  # only lines with a card have fast paths
        own = self._whole.loc[(self._whole["suite"] == line.suite).to_numpy()]
        return Evidence(line.card, own, self.run.info.constants()).records

    @cached_property
    def _brief(self) -> dict[tuple[str, str], list[tuple[str, str, str, str]]]:
        found: dict[tuple[str, str], list[tuple[str, str, str, str]]] = {}
        if not (self.run.folder / RECORDS_FILE).is_file():
            return found
        table = self.run.records(("suite", "experiment", "device", "arm", "status", "reason")).drop_duplicates()
        for suite, experiment, *ending in table.astype(object).itertuples(index=False):
            device, arm, status, reason = (item if isinstance(item, str) else "" for item in ending)
            found.setdefault((str(suite), str(experiment)), []).append((device, arm, status, reason))
        return found

    @cached_property
    def _whole(self) -> pd.DataFrame:
        return self.run.records([name for name in COLUMNS if name != "stderr_tail"])


@dataclass
class _Gathered:
    """One experiment on its way to a block."""

    line: Line
    name: str
    rows: list[FastRow] = field(default_factory=list)
    results: dict[Place, Result] = field(default_factory=dict)
    endings: dict[Place, list[tuple[str, str, str]]] = field(default_factory=dict)
    infos: dict[Place, RunInfo] = field(default_factory=dict)

    def add(self, result: Result, records: _Records) -> None:
        """Take from a run the devices that have a result in it and none yet."""
        assert self.line.card is not None  # as above
        run = result.run
        fresh = []
        for device, endings in records.endings(self.line.suite, self.name).items():
            place = (run.machine, device)
            self.infos.setdefault(place, run.info)
            if place in self.results:
                continue
            if any(status == "ok" for _, status, _ in endings):
                self.results[place], self.endings[place] = result, endings
                fresh.append(device)
            else:
                self.endings.setdefault(place, endings)
        if fresh:
            experiment = self.line.card.experiments[self.name]
            rows = fast_rows(self.name, experiment, records.latest(self.line), run.info, run.machine)
            self.rows += [row for row in rows if row.device in fresh]

    def block(self) -> Block | None:
        """The block, None where no record was found. Rows of one point stand together."""
        assert self.line.card is not None  # as above
        if not self.endings:
            return None
        wheres = _wheres(self.infos)
        points = list(dict.fromkeys(repr(dict(row.point)) for row in self.rows))
        rows = sorted(self.rows, key=lambda row: points.index(repr(dict(row.point))))
        sources = [
            Source(result, place[1], wheres[place], Canary.read(result.run.info.canary))
            for place, result in self.results.items()
        ]
        return Block(self.line, self.line.card, self.name, tuple(rows), tuple(sources),
                     tuple(self._absences(wheres)), wheres)

    def _absences(self, wheres: Mapping[Place, str]) -> Iterator[Absence]:
        for place, endings in self.endings.items():
            if place not in self.results:
                yield Absence(wheres[place], _distinct(endings))
        shown = [ending for place in self.results for ending in self.endings[place]]
        for arm in dict.fromkeys(arm for arm, _, _ in shown):
            own = [ending for ending in shown if ending[0] == arm]
            if all(status != "ok" for _, status, _ in own):
                yield Absence(arm, _distinct(own))


def _distinct(endings: Sequence[tuple[str, str, str]]) -> tuple[str, ...]:
    texts = (f"{status}: {reason or 'no reason was recorded'}" for _, status, reason in endings)
    return tuple(dict.fromkeys(texts))


def _wheres(infos: Mapping[Place, RunInfo]) -> dict[Place, str]:
    """A device's name, with its id where the machine has several; with the machine's key where that is not unique."""
    names = {}
    for (machine, device), info in infos.items():
        known = {item.get("id"): item.get("name") for item in info.machine.get("devices") or []}
        name = known.get(device) or (info.machine.get("cpu") if device == "cpu" else None)
        names[(machine, device)] = device if not name else name if device == "cpu" else f"{name} ({device})"
    return {
        place: f"{name}, {place[0]}" if list(names.values()).count(name) > 1 else name
        for place, name in names.items()
    }
