"""Two stored runs against each other: what may be compared at all, and what is said about each metric."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.declare.card import Card, Experiment
from harness.declare.gate import Direction, Gate, compared_metrics, own_arms
from harness.judge.compare import Decision, decide_metric, holm, one_sided
from harness.judge.comparison import Comparison, Outcome, Word
from harness.judge.decide import Canary
from harness.judge.matching import COLUMNS, PLACE_COLUMNS, match
from harness.judge.paired import column, decide_many, means, read_objects
from harness.judge.standing import BOTH_SKIPPED, Columns, Standing
from harness.judge.stats.bootstrap import Floats
from harness.judge.stored_speed import Times
from harness.records.store import Run, RunInfo
from harness.records.table import SAMPLE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

BUILT_IN = "litmus/"  # the canary: it tells the noise, and is not itself compared
ALL = "all"  # the metric of a comparison that is about an arm as a whole


@dataclass(frozen=True)
class Side:
    """One run as read: its records without samples, and the samples of its speed records in the same order."""

    name: str
    info: RunInfo
    records: pd.DataFrame
    samples: pd.DataFrame

    @classmethod
    def load(cls, run: Run) -> Side:
        """Read a run's files. Raises LitmusError where they cannot be."""
        records = run.records(COLUMNS)
        return cls(f"{run.machine}/{run.id}", run.info, records, run.records(SAMPLE_COLUMNS, kind="speed"))

    @property
    def machine(self) -> str | None:
        """The key of the machine that it was measured on, None where run.json does not say."""
        key = self.info.machine.get("key")
        return key if isinstance(key, str) else None

    def columns(self) -> Columns:
        """The records' columns as lists, for access by row; what is absent is None, an absent error NaN."""
        found = {name: self.records[name].astype(object).tolist() for name in COLUMNS if name != "metrics"}
        for name in ("reason", "data"):
            found[name] = [value if isinstance(value, str) else None for value in found[name]]
        return found


def compare_stored(
    base: Side, head: Side, cards: Mapping[str, Card], gate: Gate, gate_stored: bool = False
) -> Outcome:
    """Every arm at every point of both runs, metric by metric.

    Metrics of trials are paired by seed and gate. Times were taken at different moments and gate only where asked to;
    see :class:`~harness.judge.stored_speed.Times` for what they are compared by. ``cards`` are those of the suites as
    they are now: a suite without one is compared, but its metrics have no direction and do not gate.
    """
    began = time.perf_counter()
    standing = Standing((base.columns(), head.columns()), match(base.records, head.records),
                        (base.machine, head.machine))
    work = _Work(base, head, cards, gate, gate_stored, standing)
    work.compare()
    found = holm(work.found, gate.alpha, work.again)
    timed = any(item.metric == "time" for item in found)
    alarms = _canary_alarms(base, head) if timed else []
    sided = one_sided(found)
    return Outcome(base.name, head.name, found, (*alarms, *([sided] if sided else ())),
                   canary_failed=bool(alarms), seconds=time.perf_counter() - began)


def _canary_alarms(*sides: Side) -> list[str]:
    canaries = [(side.name, side.info.canary) for side in sides if side.info.canary]
    return [f"{name}: {canary.get('reason') or Canary.read(canary).fault}" for name, canary in canaries
            if canary.get("alarm")]


@dataclass
class _Work:
    """The comparisons made so far, and what Holm's procedure needs to decide one anew."""

    base: Side
    head: Side
    cards: Mapping[str, Card]
    gate: Gate
    gate_stored: bool
    standing: Standing
    found: list[Comparison] = field(default_factory=list)
    _again: dict[str, Callable[[float], Decision]] = field(default_factory=dict)
    _gates: dict[tuple[str, str, str, str], bool] = field(default_factory=dict)
    _points: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.matches = self.standing.matches
        self.level = 1 - self.gate.alpha

    def compare(self) -> None:
        """Fill :attr:`found`, place by place."""
        trials: dict[tuple[str, str], list[tuple[int, int]]] = {}
        speeds: list[int] = []
        at, ok, alike = self.standing.at, self.standing.ok, self.standing.alike
        for first, last in self.matches.bounds():
            suite = at(first, "suite")
            if suite.startswith(BUILT_IN):
                continue
            why = None if alike[first:last].all() else self.standing.why_not(first, last)
            if why is not None:
                self._set_apart(first, *why)
            elif at(first, "kind") == "speed":
                speeds.append(first + int(np.argmax(ok[first:last])))
            else:
                trials.setdefault((suite, at(first, "experiment")), []).append((first, last))
        for (suite, experiment), places in trials.items():
            self._trials(suite, experiment, places)
        self._speeds(speeds)

    def again(self, item: Comparison, level: float) -> Decision:
        """The decision about ``item`` at another level."""
        return self._again[item.label](level)

    def _set_apart(self, pair: int, reason: str, detail: str) -> None:
        if reason != BOTH_SKIPPED:
            word: Word = "inconclusive" if reason == "few_units" else "incomparable"
            self.found.append(Comparison(**self._place(pair, ALL), verdict=word, reason=reason, detail=detail,
                                         better="none"))

    def _experiment(self, suite: str, name: str) -> Experiment | None:
        card = self.cards.get(suite)
        return card.experiments.get(name) if card else None

    def _may_gate(self, suite: str, name: str, arm: str, metric: str) -> bool:
        key = (suite, name, arm, metric)
        if key not in self._gates:
            experiment = self._experiment(suite, name)
            self._gates[key] = (experiment is not None and arm in own_arms(experiment)
                                and self.gate.gates(suite, name, arm, metric))
        return self._gates[key]

    def _place(self, pair: int, metric: str) -> dict[str, Any]:
        suite, name, arm, point, device = (self.standing.at(pair, key) for key in PLACE_COLUMNS)
        if point not in self._points:
            self._points[point] = json.loads(point)
        return {"suite": suite, "experiment": name, "arm": arm, "metric": metric, "point": self._points[point],
                "device": device, "gates": self._may_gate(suite, name, arm, metric)}

    def _trials(self, suite: str, name: str, places: Sequence[tuple[int, int]]) -> None:
        """All metrics of one experiment, at all its places."""
        experiment = self._experiment(suite, name)
        pairs, bounds = self._pairs(places)
        values = [read_objects(side.records["metrics"].to_numpy(dtype=object)[rows[pairs]].tolist())
                  for side, rows in ((self.base, self.matches.base), (self.head, self.matches.head))]
        directions = compared_metrics(experiment) if experiment else _scalars(values)
        exact = experiment is not None and experiment.seeds == 1
        for metric, better in directions.items():
            base, head = (column(rows, metric) for rows in values)
            self._decide(places, bounds, metric, better, base, head, exact)

    def _pairs(self, places: Sequence[tuple[int, int]]) -> tuple[Any, list[tuple[int, int]]]:
        """The pairs of the places that are ok on both sides, and where among them each place's lie."""
        pairs = np.concatenate([np.arange(first, last) for first, last in places])
        pairs = pairs[self.standing.ok[pairs]]
        starts = np.searchsorted(pairs, [first for first, _ in places]).tolist()
        return pairs, list(zip(starts, [*starts[1:], len(pairs)], strict=True))

    def _decide(
        self, places: Sequence[tuple[int, int]], bounds: Sequence[tuple[int, int]], metric: str, better: Direction,
        base: Floats, head: Floats, exact: bool,
    ) -> None:
        """One metric of one experiment; ``bounds`` say where the values of each place lie."""
        suite, name = (self.standing.at(places[0][0], key) for key in ("suite", "experiment"))
        threshold = self.gate.threshold(suite, name, metric)
        decisions = decide_many(base, head, bounds, better, threshold, self.level, exact)
        averages = zip(means(base, bounds), means(head, bounds), strict=True)
        for (first, last), (begin, end), decision, average in zip(places, bounds, decisions, averages, strict=True):
            if decision is None:
                continue
            place = self._place(first, metric)
            place["gates"] = place["gates"] and better != "none"
            alone = (last - first) - (end - begin)
            notes = [decision.detail, f"{alone} seeds without a partner left out" if alone else ""]
            item = Comparison(
                **place, verdict=decision.word, reason=decision.reason, change=decision.change, low=decision.low,
                high=decision.high, level=decision.level, n=decision.n, unit=decision.unit, relative=threshold[1],
                detail="; ".join(text for text in notes if text), threshold=threshold[0], better=better,
                base=average[0], head=average[1],
            )
            if decision.word == "worse":
                sides = base[begin:end], head[begin:end]
                self._again[item.label] = partial(_again, *sides, better, threshold, exact)
            self.found.append(item)

    def _speeds(self, pairs: Sequence[int]) -> None:
        """Time and error of every speed cell's arms."""
        peers = {(suite, name): set(experiment.fast_path.peers) for suite, card in self.cards.items()
                 for name, experiment in card.experiments.items() if experiment.fast_path}
        rows = self.standing.rows
        times = Times.read((self.base, self.head), rows, self.matches, self.standing.ok, peers)
        experiments: dict[tuple[str, str], list[int]] = {}
        for pair in pairs:
            experiments.setdefault((self.standing.at(pair, "suite"), self.standing.at(pair, "experiment")),
                                   []).append(pair)
        for (suite, name), mine in experiments.items():
            base, head = (np.array([side["error"][of[pair]] for pair in mine], dtype=float)
                          for side, of in zip(rows, (self.matches.base, self.matches.head), strict=True))
            places = [(pair, pair + 1) for pair in mine]
            self._decide(places, [(index, index + 1) for index in range(len(mine))], "error", "lower", base, head, True)
            zone = self.gate.threshold(suite, name, "time")[0]
            for pair in mine:
                self._time(pair, times, zone)

    def _time(self, pair: int, times: Times, zone: float) -> None:
        told = times.decide(pair, zone, self.level)
        place = self._place(pair, "time")
        place["gates"] = place["gates"] and self.gate_stored
        item = Comparison(**place, verdict=told.decision.word, reason=told.decision.reason, threshold=told.zone,
                          base=told.base_ns, head=told.head_ns)
        self.found.append(told.decision.onto(item))
        if self.gate_stored:
            self._again[item.label] = lambda level: times.decide(pair, zone, level).decision


def _again(base: Floats, head: Floats, better: Direction, threshold: tuple[float, bool], exact: bool,
           level: float) -> Decision:
    return decide_metric(base, head, better, *threshold, level, exact)


def _scalars(values: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Direction]:
    """The metrics of a suite without a card: every name that stands for one number; no direction is known."""
    names = {name: None for rows in values for row in rows for name, value in row.items()
             if isinstance(value, int | float)}
    return {str(name)[:200]: "none" for name in names}
