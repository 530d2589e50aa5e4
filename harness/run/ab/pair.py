"""One process pair: a fresh worker of each side, both alive, sampled in turns that are handed out here."""

from __future__ import annotations

import math
import os
import random
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run.ab.turns import Talk
from harness.run.engine.base import Engine
from harness.run.lanes import Cancelled
from harness.run.protocol import CANNOT_LOAD, PREPARE_LIMIT_S, Ending, Job, cell_job, record_from

BASE, HEAD = "base", "head"
ROLES = (BASE, HEAD)
LEAST_SAMPLE_MS = 2.0
ROUNDS, LEAST_ROUNDS = 12, 4
_ROUNDS_S = 4.0
_ORDERS = ((BASE, HEAD, HEAD, BASE), (HEAD, BASE, BASE, HEAD))
_POLL_S = 0.1


@dataclass(frozen=True)
class CellPair:
    """The same question to both sides. ``roots`` are the sides' projects."""

    base: Cell
    head: Cell
    roots: Mapping[str, Path]

    def cell(self, role: str) -> Cell:
        """The cell as ``role`` has it."""
        return self.base if role == BASE else self.head


@dataclass(frozen=True)
class Fault:
    """Why an arm is not measured on one side: a record's status, and its reason."""

    status: str
    reason: str

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"

    @property
    def cannot_load(self) -> bool:
        """Whether it is the suite's file, not the arm."""
        return self.reason.startswith(CANNOT_LOAD)


@dataclass
class PairResult:
    """What one pair gave. ``rounds`` are log(head / base) by arm; ``faults`` by role and arm.

    ``call_ns`` are median times of a call by arm and role. ``unchecked`` are arms without a result of their
    own. A pair that broke while no arm ran has neither rounds nor faults.
    """

    rounds: dict[str, list[float]] = field(default_factory=dict)
    call_ns: dict[str, dict[str, float]] = field(default_factory=dict)
    records: dict[str, dict[str, Record]] = field(default_factory=lambda: {role: {} for role in ROLES})
    faults: dict[str, dict[str, Fault]] = field(default_factory=lambda: {role: {} for role in ROLES})
    unchecked: set[str] = field(default_factory=set)


def measure_pair(
    engine: Engine, cells: CellPair, arms: Mapping[str, Sequence[str]], number: int, chance: random.Random,
    deadline_s: float = math.inf,
) -> PairResult:
    """Measure ``arms`` (by role) of pair ``number`` in up to 12 rounds of base, head, head, base or the reverse.

    Both sides draw the same inputs. An arm is sampled where both sides have proven it right. After ``deadline_s`` of
    the monotonic clock no round begins that is not needed for the least number. Raises Cancelled where the engine is.
    """
    with tempfile.TemporaryDirectory(prefix="litmus-") as place, socket.socket(socket.AF_UNIX) as listener:
        path = Path(place) / "turns"
        listener.bind(str(path))
        listener.listen(len(ROLES))
        jobs = {role: _job(cells, role, arms[role], number, str(path)) for role in ROLES}
        with _running(engine, jobs, chance) as workers:
            _meet(listener, workers)
            result = _Rounds(workers, cells, chance, deadline_s).run()
    for worker in workers.values():
        if worker.error is not None:
            raise worker.error
        if worker.ending.status == "cancelled":
            raise Cancelled
    for role, worker in workers.items():
        result.faults[role], result.records[role] = worker.faults(), worker.records
    broken = result.faults[BASE].keys() | result.faults[HEAD].keys()
    result.rounds = {arm: ratios for arm, ratios in result.rounds.items() if arm not in broken}
    if any(worker.ending.status != "done" for worker in workers.values()):
        result.rounds = {}  # its last proof is missing
    return result


def _job(cells: CellPair, role: str, arms: Sequence[str], number: int, path: str) -> Job:
    """An arm has its time twice over, once for its proofs and once for its samples.

    A worker that waits for the other side waits as long as the other may take; that one has limits of its own.
    """
    cell = cells.cell(role)
    job = cell_job(cell, str(cells.roots[role]), tuple(arms), number)
    arm_s = 2 * job.limits.arm_s
    other_s = PREPARE_LIMIT_S + job.limits.startup_s + 2 * len(arms) * max(cells.base.timeout_s, cells.head.timeout_s)
    limits = replace(job.limits, arm_s=arm_s, prepare_s=other_s)
    return replace(job, task="turns", limits=limits, argument={"socket": path, "role": role})


class _Worker:
    """The parent's view of one side: its conversation, its records and how it ended."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.job = job
        self.talk: Talk | None = None
        self.was_ready = False
        self.records: dict[str, Record] = {}
        self.ending = Ending("crashed", "it did not begin")
        self.error: BaseException | None = None
        self._engine = engine
        self.thread = threading.Thread(target=self._run, name=f"ab-{job.argument['role']}")

    def _run(self) -> None:
        try:
            self.ending = self._engine.execute(self.job, self._on_message)
        except BaseException as error:  # noqa: BLE001 - raised again by whoever waits for the pair
            self.error = error

    def _on_message(self, message: dict[str, Any]) -> None:
        if message["kind"] == "record":
            record = record_from(message["record"])
            self.records[record.arm] = record

    def receive(self) -> dict[str, Any] | None:
        """Its next message; None where it is gone."""
        return self.talk.receive() if self.talk is not None else None

    def ask(self, kind: str, **values: Any) -> dict[str, Any] | None:
        """Its answer; None where it is gone."""
        return self.receive() if self.talk is not None and self.talk.send(kind, **values) else None

    def leave(self) -> None:
        """It may prove its arms and end."""
        if self.talk is not None:
            self.talk.send("end")
            self.talk.close()

    def faults(self) -> dict[str, Fault]:
        """Which arms are not right, and why. Nobody's, where it broke between two arms after it was ready."""
        found = {arm: Fault(record.status, record.reason or "no reason given")
                 for arm, record in self.records.items() if record.status != "ok"}
        missing = [arm for arm in self.job.arms if arm not in self.records]
        ending = self.ending
        if ending.status == "done":
            return found | dict.fromkeys(missing, Fault("crashed", "the worker ended without this arm's record"))
        reason = ending.reason or ""
        if ending.last_words and ending.last_words != reason:
            reason = f"{reason}: {ending.last_words}"
        fault = Fault(ending.status, reason)
        if ending.arm in missing:
            return {**found, str(ending.arm): fault}
        return found if self.was_ready else found | dict.fromkeys(missing, fault)


@contextmanager
def _running(engine: Engine, jobs: Mapping[str, Job], chance: random.Random) -> Iterator[dict[str, _Worker]]:
    """Both workers, started in random order; at the end they are told to end, and have ended."""
    workers = {role: _Worker(engine, job) for role, job in jobs.items()}
    for role in chance.sample(ROLES, len(ROLES)):
        workers[role].thread.start()
    try:
        yield workers
    finally:
        for worker in workers.values():
            worker.leave()
        for worker in workers.values():
            worker.thread.join()


def _meet(listener: socket.socket, workers: Mapping[str, _Worker]) -> None:
    """Wait until each has called or ended, and then for what it has proven."""
    listener.settimeout(_POLL_S)
    while any(worker.talk is None and worker.thread.is_alive() for worker in workers.values()):
        try:
            conn, _ = listener.accept()
        except TimeoutError:
            continue
        conn.settimeout(None)
        talk = Talk(conn)
        hello = talk.receive()
        if hello is not None:
            workers[hello["role"]].talk = talk


class _Rounds:
    """The turns of one pair."""

    def __init__(
        self, workers: Mapping[str, _Worker], cells: CellPair, chance: random.Random, deadline_s: float
    ) -> None:
        self.workers, self.cells, self.chance, self.deadline_s = workers, cells, chance, deadline_s
        self.result = PairResult()
        self.times: dict[str, dict[str, list[float]]] = {}

    def run(self) -> PairResult:
        """Both must have called. What one side cannot do is left out; where one is gone, this ends."""
        arms = self._proven()
        agreed = self._agree(arms) if arms else None
        if agreed is None:
            return self.result
        calls, round_ns = agreed
        rounds = max(LEAST_ROUNDS, min(ROUNDS, int(_ROUNDS_S * 1e9 / max(1.0, round_ns))))
        self.times = {arm: {role: [] for role in ROLES} for arm in calls}
        done = spoiled = 0
        while done < rounds and spoiled <= rounds:
            if done >= LEAST_ROUNDS and time.monotonic() > self.deadline_s:
                break
            kept = self._round(calls)
            if kept is None:
                break
            done, spoiled = done + kept, spoiled + (not kept)
        self.result.call_ns = {arm: {role: median(times) for role, times in sides.items() if times}
                               for arm, sides in self.times.items()}
        return self.result

    def _proven(self) -> list[str]:
        """The arms that both sides have proven right and whose results are checked."""
        proven: list[dict[str, bool]] = []
        for worker in self.workers.values():
            ready = worker.receive()
            worker.was_ready = ready is not None
            proven.append(ready["arms"] if ready is not None else {})
        self.result.unchecked = {arm for arms in proven for arm, checked in arms.items() if not checked}
        return [arm for arm in proven[0] if arm in proven[1] and arm not in self.result.unchecked]

    def _agree(self, arms: Sequence[str]) -> tuple[dict[str, int], float] | None:
        """(calls of each arm in a sample, nanoseconds of a round): the larger count of the two sides, one by one."""
        least_ms = max(LEAST_SAMPLE_MS, self.cells.base.measure.min_sample_ms, self.cells.head.measure.min_sample_ms)
        core = self._core()
        answers = []
        for role in self.chance.sample(ROLES, len(ROLES)):
            answer = self.workers[role].ask("calibrate", arms=list(arms), min_sample_ns=least_ms * 1e6, core=core)
            if answer is None:
                return None
            answers.append(answer)
        calls = {arm: max(answer["calls"][arm] for answer in answers)
                 for arm in arms if all(arm in answer["calls"] for answer in answers)}
        round_ns = sum(2 * calls[arm] * answer["sample_ns"][arm] / answer["calls"][arm]
                       for arm in calls for answer in answers)
        return calls, round_ns

    def _core(self) -> int | None:
        """Work of one thread runs on one core on both sides, since two cores need not be equally fast."""
        cells = (self.cells.base, self.cells.head)
        if any(cell.device != "cpu" or cell.point.get("threads", 1) != 1 for cell in cells):
            return None
        return self.chance.choice(sorted(os.sched_getaffinity(0)))

    def _round(self, calls: dict[str, int]) -> bool | None:
        """Whether this round counts; None where a side is gone."""
        order = self.chance.sample(list(calls), len(calls))
        found: dict[str, dict[str, list[float]]] = {arm: {role: [] for role in ROLES} for arm in calls}
        for role in self.chance.choice(_ORDERS):
            answer = self.workers[role].ask("turn", order=order, calls=calls)
            if answer is None:
                return None
            if answer["spoiled"]:
                return False
            for arm, sample_ns in answer["sample_ns"].items():
                found[arm][role].append(sample_ns / calls[arm])
        for arm, sides in found.items():
            if all(len(times) == len(ROLES) for times in sides.values()):
                middle = {role: median(times) for role, times in sides.items()}
                self.result.rounds.setdefault(arm, []).append(math.log(middle[HEAD] / middle[BASE]))
                for role in ROLES:
                    self.times[arm][role].append(middle[role])
        return True
