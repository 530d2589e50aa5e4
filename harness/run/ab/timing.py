"""The speed cells of two sides: process pair after process pair, until every number is decided or the time is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from harness.declare.gate import Gate
from harness.judge.compare import Decision, Sequential
from harness.judge.comparison import Comparison
from harness.judge.stats.bootstrap import Floats
from harness.records.record import Record
from harness.run.ab.accuracy import LEVEL, Metrics
from harness.run.ab.identity import said_of
from harness.run.ab.pair import BASE, HEAD, ROLES, CellPair, Fault, PairResult

Measure = Callable[[CellPair, dict[str, list[str]], int], PairResult]
TIME, ERROR = "time", "error"
# Pairs that may break without an arm to blame, beyond the planned ones.
_SPARE_PAIRS = 3


@dataclass
class Number:
    """The time of one arm at one point: the log ratios of its pairs, and what they say so far."""

    arm: str
    rule: Sequential
    gates: bool
    pairs: list[list[float]] = field(default_factory=list)
    call_ns: dict[str, list[float]] = field(default_factory=lambda: {role: [] for role in ROLES})
    decision: Decision | None = None

    @property
    def rounds(self) -> Floats:
        """[pairs, rounds], NaN where a pair has fewer rounds."""
        width = max(map(len, self.pairs), default=1)
        table = np.full((len(self.pairs), width), np.nan)
        for row, pair in zip(table, self.pairs, strict=True):
            row[: len(pair)] = pair
        return table

    def add(self, result: PairResult) -> None:
        """One more pair."""
        self.pairs.append(result.rounds[self.arm])
        for role, value in result.call_ns[self.arm].items():
            self.call_ns[role].append(value)
        self.decision = self.rule.look(self.rounds)

    def said(self) -> Decision:
        """The decision, or what ends without one."""
        return self.decision or self.rule.finish(self.rounds)


@dataclass
class CellState:
    """One cell on both sides on its way to a decision."""

    cells: CellPair
    numbers: dict[str, Number]
    faults: dict[str, dict[str, Fault]] = field(default_factory=lambda: {role: {} for role in ROLES})
    records: dict[str, list[dict[str, Record]]] = field(default_factory=lambda: {role: [] for role in ROLES})
    unchecked: set[str] = field(default_factory=set)
    attempts: int = 0
    seconds: list[float] = field(default_factory=list)

    @property
    def open(self) -> list[Number]:
        """The numbers that need more pairs."""
        return [number for arm, number in self.numbers.items()
                if number.decision is None and not self._faulty(arm) and arm not in self.unchecked]

    def _faulty(self, arm: str) -> bool:
        return any(arm in self.faults[role] for role in ROLES)

    def wanted(self) -> dict[str, list[str]]:
        """The arms to run, by role; none where the cell is finished.

        An arm that one side cannot run is asked of the other until it has answered.
        """
        wanted = {role: [number.arm for number in self.open] for role in ROLES}
        for role, other in ((BASE, HEAD), (HEAD, BASE)):
            wanted[role] += [arm for arm in self.faults[other]
                             if arm not in self.faults[role] and not self._right(role, arm)]
        most = max((number.rule.looks[-1] for number in self.numbers.values()), default=0) + _SPARE_PAIRS
        faulty = {arm for role in ROLES for arm in self.faults[role]}
        return wanted if self.attempts < most + len(faulty) else {role: [] for role in ROLES}

    @property
    def is_open(self) -> bool:
        """Whether another pair would tell anything."""
        return any(self.wanted().values())

    def _right(self, role: str, arm: str) -> bool:
        return any(records[arm].status == "ok" for records in self.records[role] if arm in records)

    def take(self, result: PairResult, seconds: float) -> None:
        """What a pair gave."""
        self.attempts += 1
        self.seconds.append(seconds)
        self.unchecked |= result.unchecked
        for role in ROLES:
            self.faults[role] |= result.faults[role]
            self.records[role].append(result.records[role])
        for number in self.open:
            if number.arm in result.rounds:
                number.add(result)

    def comparisons(self, gate: Gate) -> Iterator[tuple[Comparison, Number | Metrics | None]]:
        """What is said of each arm's time, with the number behind it, and of its error."""
        for arm, number in self.numbers.items():
            if arm in self.unchecked:
                continue
            if self._faulty(arm):
                yield self._broken(arm, number.gates), None
                continue
            data = self._other_data(arm)
            if data is not None:
                yield said_of(self.cells.head, arm, TIME, "data", data), None
                continue
            comparison = _with_sides(said_of(self.cells.head, arm, TIME, "few_units", gates=number.gates), number)
            yield number.said().onto(comparison), number
            error = self._error(arm, gate)
            if error is not None:
                yield error.decided(LEVEL), error

    def _broken(self, arm: str, gates: bool) -> Comparison:
        """Whose fault it is; the base's where neither can run it, for then the head has lost nothing."""
        faults = {role: self.faults[role][arm] for role in ROLES if arm in self.faults[role]}
        detail = "; ".join(f"{role} {fault}" for role, fault in faults.items())
        if BASE not in faults:
            return said_of(self.cells.head, arm, TIME, "head_status", detail, gates)
        return said_of(self.cells.head, arm, TIME, "no_load" if faults[BASE].cannot_load else "base_status", detail)

    def _other_data(self, arm: str) -> str | None:
        """What the sides' data are where they differ."""
        for base, head in zip(self.records[BASE], self.records[HEAD], strict=True):
            if arm in base and arm in head and base[arm].data != head[arm].data:
                return f"base {base[arm].data}, head {head[arm].data}"
        return None

    def _error(self, arm: str, gate: Gate) -> Metrics | None:
        """The largest error of each pair's proofs, both sides on the same inputs."""
        pairs = [(base[arm].error, head[arm].error)
                 for base, head in zip(self.records[BASE], self.records[HEAD], strict=True)
                 if arm in base and arm in head]
        known = np.array([(base, head) for base, head in pairs if base is not None and head is not None], float)
        if not len(known):
            return None
        cell = self.cells.head
        threshold, relative = gate.threshold(cell.suite, cell.experiment, ERROR)
        gates = gate.gates(cell.suite, cell.experiment, arm, ERROR)
        comparison = replace(said_of(cell, arm, ERROR, "few_units", gates=gates), unit="process")
        sides = known[:, 0], known[:, 1]
        return Metrics(_replaced(comparison, threshold, relative, *(side.mean() for side in sides)), *sides)


def measure_all(
    states: Sequence[CellState], measure: Measure, deadline_s: float, tell: Callable[[CellState, int, int], None],
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Breadth-first, one pair of every open cell after another, until all are decided or it is ``deadline_s``.

    After two pairs of each it is known what they take: if not all can come to the first look in time, those that can
    go on, in order, for a decision on some is worth more than on none.
    """
    left = [state for state in states if state.is_open]
    sweep = 0
    while left and now() < deadline_s:
        for state in left:
            if now() >= deadline_s:
                return
            begin_s = now()
            result = measure(state.cells, state.wanted(), state.attempts)
            state.take(result, now() - begin_s)
            tell(state, sum(not item.is_open for item in states), len(states))
        sweep += 1
        left = [state for state in left if state.is_open]
        if sweep == 2:
            left = _affordable(left, deadline_s - now())


def _affordable(states: Sequence[CellState], left_s: float) -> list[CellState]:
    """Those that reach their first look within ``left_s``, in order; at least one."""
    kept: list[CellState] = []
    for state in states:
        looks = (number.rule.next_look(0) or 0 for number in state.open)
        cost_s = max(0, max(looks, default=0) - state.attempts) * min(state.seconds)
        if not kept or cost_s <= left_s:
            kept.append(state)
            left_s -= cost_s
    return kept


def _with_sides(comparison: Comparison, number: Number) -> Comparison:
    base, head = (median(number.call_ns[role]) / 1e9 if number.call_ns[role] else None for role in ROLES)
    return _replaced(comparison, number.rule.zone, True, base, head)


def _replaced(
    comparison: Comparison, threshold: float, relative: bool, base: float | None, head: float | None
) -> Comparison:
    finite = [None if value is None or not math.isfinite(value) else float(value) for value in (base, head)]
    return replace(comparison, threshold=threshold, relative=relative, base=finite[0], head=finite[1])
