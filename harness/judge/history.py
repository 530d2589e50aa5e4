"""What a suite measured over a series of stored runs: values with intervals by run, and where a level changed.

Runs are comparable on one machine, in one profile, of one card version and data set, over the same seeds and peers;
where one of these differs, the series is cut. Change points only locate: a run's times know nothing of what changed
between runs, so nothing here fails a command.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.declare.card import Card, Experiment
from harness.declare.gate import Direction, compared_metrics
from harness.judge.change_points import Level, levels
from harness.judge.measured import CANARY, RATIO, Measured, Place, measured
from harness.records.store import Run

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.95
# The spread around a level that is never worth another level, on the series' scale (logarithms, or shares of its size).
_FLOORS = {"time": 2e-3, RATIO: 2e-3, "error": 0.05}
_FLOOR = 1e-4

Word = Literal["better", "worse", "changed"]


@dataclass(frozen=True)
class Moment:
    """One run, as a place in time; ``started_at`` in seconds since the epoch."""

    run: str
    started_at: float
    commit: str | None
    dirty: bool
    software: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def revision(self) -> str:
        """The commit's first ten digits, with a plus where files were changed; ``no commit`` where none is known."""
        return (self.commit[:10] + ("+" if self.dirty else "")) if self.commit else "no commit"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"run": self.run, "started_at": self.started_at, "commit": self.commit, "dirty": self.dirty}


@dataclass(frozen=True)
class ChangePoint:
    """A level that ended with the run ``before`` and another that began with ``after``.

    ``start`` and ``end`` are (low, center, high) of the two levels in the series' unit. ``change`` is end / start - 1,
    of the centers, for times and errors and end - start otherwise (``relative`` tells which). ``machine_changed`` is
    None where nothing tells; ``peer_change`` is what the peers' times (the canary's where a cell has none) did
    meanwhile, as a ratio minus one. ``software`` are the libraries whose versions differ between the two runs.
    """

    before: Moment
    after: Moment
    start: tuple[float, float, float]
    end: tuple[float, float, float]
    change: float
    relative: bool
    word: Word
    machine_changed: bool | None = None
    peer_change: float | None = None
    software: tuple[str, ...] = ()

    @property
    def size(self) -> float:
        """How large the change is, for order: the distance of logarithms, or relative to where it started."""
        if self.relative:
            return abs(math.log1p(self.change)) if self.change > -1 else math.inf
        return abs(self.change) / max(abs(self.start[1]), 1e-300)

    def to_dict(self) -> dict[str, Any]:
        """Every field, for JSON."""
        return {**asdict(self), "before": self.before.to_dict(), "after": self.after.to_dict()}


@dataclass(frozen=True)
class Series:
    """One metric of one arm at one place, over the ``moments`` of a machine and profile.

    ``values`` has one entry per moment, None where the run has no such number. ``stretches`` are index ranges
    [first, last) of moments whose values may be compared with each other. ``ours`` is False for a peer or yardstick,
    whose code the suite does not own.
    """

    place: Place
    better: Direction
    unit: str
    ours: bool
    moments: tuple[Moment, ...]
    values: tuple[Measured | None, ...]
    stretches: tuple[tuple[int, int], ...]
    changes: tuple[ChangePoint, ...]

    @property
    def known(self) -> int:
        """How many runs have a value."""
        return sum(value is not None for value in self.values)

    def to_dict(self) -> dict[str, Any]:
        """Every field, for JSON."""
        values = [None if value is None else
                  {"run": moment.run, "center": value.center, "low": value.low, "high": value.high, "n": value.n}
                  for moment, value in zip(self.moments, self.values, strict=True)]
        return {**asdict(self.place), "better": self.better, "unit": self.unit, "ours": self.ours, "values": values,
                "stretches": [list(item) for item in self.stretches],
                "changes": [item.to_dict() for item in self.changes]}


class History:
    """Collects runs, one table in memory at a time; then :meth:`series` tells what they say together."""

    def __init__(self, cards: Mapping[str, Card]) -> None:
        self._cards = cards
        self._moments: dict[tuple[str, str], dict[str, tuple[Moment, set[str]]]] = {}
        self._found: dict[Place, dict[str, Measured]] = {}

    def add(self, run: Run, records: pd.DataFrame, only: Collection[str] | None = None) -> None:
        """Take in a run's records (:data:`harness.judge.measured.COLUMNS`), of some suites only where they are named.

        Raises LitmusError where they are damaged.
        """
        info = run.info
        machine = machine_of(run)
        if only is not None:
            records = records[records["suite"].isin([*only, CANARY])]
        moment = Moment(run.id, info.started_at, info.commit, info.dirty, info.software)
        suites = {str(name) for name in records["suite"].unique()} - {CANARY}
        self._moments.setdefault((machine, info.profile), {})[run.id] = (moment, suites)
        for place, value in measured(records, machine, info.profile, self._cards, LEVEL):
            self._found.setdefault(place, {})[run.id] = value

    def series(self, suite: str) -> list[Series]:
        """Every series of the suite with values of at least two runs, by machine, profile and place."""
        made = []
        for place, found in self._found.items():
            if place.suite == suite and len(found) > 1:
                item = self._series(place, found)
                if item.known > 1:
                    made.append(item)
        return sorted(made, key=lambda item: (item.place.machine, item.place.profile))

    def _series(self, place: Place, found: Mapping[str, Measured]) -> Series:
        known = self._moments[place.machine, place.profile].values()
        moments = sorted((moment for moment, suites in known if place.suite in suites),
                         key=lambda moment: (moment.started_at, moment.run))
        values = [found.get(moment.run) for moment in moments]
        card = self._cards.get(place.suite)
        experiment = card.experiments.get(place.experiment) if card else None
        better, unit = _direction(place.metric, experiment)
        stretches = _stretches([value.cut if value else None for value in values])
        ours = all(value.ours for value in values if value)
        changes = [change for first, last in stretches
                   for change in _changes(place.metric, better, ours, moments[first:last], values[first:last])]
        return Series(place, better, unit, ours, tuple(moments), tuple(values), tuple(stretches), tuple(changes))


def machine_of(run: Run) -> str:
    """The key of the machine that a run was measured on: run.json's, the folder's name where it has none."""
    key = run.info.machine.get("key")
    return key if isinstance(key, str) and key else run.machine


def worst_first(series: Sequence[Series]) -> list[tuple[Series, ChangePoint]]:
    """All change points: what got worse in our own code, what has no direction, what the machine did, what improved."""
    def rank(item: tuple[Series, ChangePoint]) -> tuple[int, float]:
        one, change = item
        if change.word == "better":
            return 3, -change.size
        if change.machine_changed or not one.ours:
            return 2, -change.size
        return (0 if change.word == "worse" else 1), -change.size

    return sorted(((item, change) for item in series for change in item.changes), key=rank)


def _direction(metric: str, experiment: Experiment | None) -> tuple[Direction, str]:
    if metric in ("time", RATIO):
        return "lower", "ns" if metric == "time" else "×"
    if metric == "error":
        return "lower", ""
    if experiment is None or experiment.kind == "speed":
        return "none", ""
    unit = experiment.metrics[metric].unit if metric in experiment.metrics else ""
    return compared_metrics(experiment).get(metric, "none"), unit or ""


def _stretches(cuts: Sequence[Hashable | None]) -> list[tuple[int, int]]:
    """Ranges of equal cuts; a moment without a value (None) belongs to the range that it interrupts."""
    found: list[tuple[int, int]] = []
    first, current = 0, None
    for index, cut in enumerate(cuts):
        if cut is None:
            continue
        if current is not None and cut != current:
            found.append((first, index))
            first = index
        current = cut
    return [*found, (first, len(cuts))]


def _changes(
    metric: str, better: Direction, ours: bool, moments: Sequence[Moment], values: Sequence[Measured | None]
) -> Iterator[ChangePoint]:
    kept = [(moment, value) for moment, value in zip(moments, values, strict=True) if value is not None]
    if len(kept) < 2:
        return
    centers = np.array([value.center for _, value in kept])
    relative = metric in _FLOORS and bool((centers > 0).all())
    size = 1.0 if relative else float(np.abs(centers).max()) or 1.0
    scaled = np.log(centers) if relative else centers / size
    found = levels(scaled, _FLOORS.get(metric, _FLOOR), LEVEL)
    for one, other in itertools.pairwise(found):
        start, end = _span(one, relative, size), _span(other, relative, size)
        move = other.center - one.center
        change = math.expm1(move) if relative else end[1] - start[1]
        peer = _peer_move(kept, one, other) if metric == "time" else None
        machine = None if peer is None else bool(peer * move > 0 and abs(peer) >= abs(move) / 2)
        before, after = kept[one.last - 1][0], kept[other.first][0]
        yield ChangePoint(
            before, after, start, end, change, relative, _word(move, better), machine,
            None if peer is None else math.expm1(peer), _software(before, after))


def _span(level: Level, relative: bool, size: float) -> tuple[float, float, float]:
    numbers = (level.low, level.center, level.high)
    low, center, high = (_exp(item) if relative else item * size for item in numbers)
    return low, center, high


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _peer_move(kept: Sequence[tuple[Moment, Measured]], one: Level, other: Level) -> float | None:
    """How much the log time of the peers moved between two levels, None where a level has none."""
    sides = [[value.peer_log_ns for _, value in kept[level.first:level.last] if value.peer_log_ns is not None]
             for level in (one, other)]
    return float(np.median(sides[1]) - np.median(sides[0])) if all(sides) else None


def _word(move: float, better: Direction) -> Word:
    if better == "none":
        return "changed"
    return "better" if (move < 0) == (better == "lower") else "worse"


def _software(before: Moment, after: Moment) -> tuple[str, ...]:
    names = sorted({*before.software, *after.software})
    pairs = [(name, before.software.get(name, "none"), after.software.get(name, "none")) for name in names]
    return tuple(f"{name} {old} → {new}" for name, old, new in pairs if old != new)

