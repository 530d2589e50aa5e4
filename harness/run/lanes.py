"""One cell from its first worker to its last record: whoever breaks a worker is blamed, the others are run again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.plan.budget import side_by_side
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run.engine.base import Engine
from harness.run.protocol import Ending, blank_record, cell_job, record_from, repro_line
from harness.run.stage import TOGETHER

Emit = Callable[[Record], None]
Note = Callable[[str], None]
# Endings after which to try again would give the same.
_NOBODY_BROKE = ("done", "missing")


class Cancelled(Exception):
    """The engine was told to stop; the cell is not finished and what it did not record is not recorded."""


@dataclass
class _Attempt:
    """One worker of a cell: the arms it recorded and how it ended."""

    records: dict[str, Record] = field(default_factory=dict)
    ending: Ending = field(default_factory=lambda: Ending("done"))

    def left(self, arms: Sequence[str]) -> list[str]:
        """Those of ``arms`` that it did not record."""
        return [arm for arm in arms if arm not in self.records]


def trial_lane(
    engine: Engine, cells: Iterable[Cell], run: Callable[[Cell], None], devices: Mapping[str, int] | None = None
) -> None:
    """``run`` every cell, as many side by side as the engine has slots; those of a CUDA device one after another.

    ``devices`` says of which there are several, see :class:`harness.run.engine.base.RunEngine`.
    The first error cancels the engine and is raised once nothing runs any more.
    """

    def in_turn(group: Sequence[Cell]) -> None:
        for cell in group:
            run(cell)

    with ThreadPoolExecutor(engine.slots, thread_name_prefix="lane") as pool:
        futures = [pool.submit(in_turn, group) for group in side_by_side(cells, devices or {})]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            engine.cancel()
            for future in futures:
                future.cancel()
            raise


def run_cell(engine: Engine, root: Path, cell: Cell, arms: Sequence[str], emit: Emit, note: Note) -> None:
    """Run ``arms`` of ``cell`` and emit exactly one record for each. Raises Cancelled when the engine is cancelled."""
    if cell.kind == "trial":
        _run_trial(engine, root, cell, arms, emit, note)
    else:
        _run_speed(engine, root, cell, arms, emit, note)


def _run_trial(engine: Engine, root: Path, cell: Cell, arms: Sequence[str], emit: Emit, note: Note) -> None:
    left, number = list(arms), 1
    while left:
        attempt = _attempt(engine, root, cell, left, 0, note, partial(_emit_as, emit, number))
        left = attempt.left(left)
        for arm in _broken_in(attempt, left):
            _emit_as(emit, number, _broken(cell, arm, attempt.ending))
            left.remove(arm)
        number += 1


def _broken_in(attempt: _Attempt, left: Sequence[str]) -> list[str]:
    """Which of the arms without a record get the ending's status; the others are run again.

    The arm it was in; nobody if it broke between two arms; all if it did not get as far as an arm.
    """
    arm = attempt.ending.arm
    if arm is not None and arm in left:
        return [arm]
    return [] if attempt.records and attempt.ending.status not in _NOBODY_BROKE else list(left)


def _run_speed(engine: Engine, root: Path, cell: Cell, arms: Sequence[str], emit: Emit, note: Note) -> None:
    """The processes one after another; an arm that is not ok in one is left out of the following ones."""
    from harness.run.speed import merge

    partials: dict[str, list[Record]] = {arm: [] for arm in arms}
    alive = list(arms)
    for process in range(cell.measure.processes):
        for arm, record in _speed_process(engine, root, cell, alive, process, note).items():
            partials[arm].append(record)
        alive = [arm for arm in alive if partials[arm][-1].status == "ok"]
        if not alive:
            break
    for arm in arms:
        emit(merge(partials[arm]))


def _speed_process(
    engine: Engine, root: Path, cell: Cell, arms: Sequence[str], process: int, note: Note
) -> dict[str, Record]:
    """One record for each of ``arms``, measured together; arms that break the worker are found and left out."""
    found: dict[str, Record] = {}
    left = list(arms)
    while left:
        attempt = _attempt(engine, root, cell, left, process, note)
        missing = attempt.left(left)
        if attempt.ending.status in _NOBODY_BROKE or not missing:
            broken = missing
            found.update(attempt.records)
        else:  # what it did record was interleaved with the arm that broke, and must be paired with the others anew
            broken = _culprits(engine, root, cell, left, process, attempt, note)
        found.update({arm: _broken(cell, arm, attempt.ending) for arm in broken})
        left = [arm for arm in left if arm not in found]
    return found


def _culprits(
    engine: Engine, root: Path, cell: Cell, arms: Sequence[str], process: int, attempt: _Attempt, note: Note
) -> list[str]:
    """Which arms broke the worker: never none. When it broke while all were timed together, each is tried alone."""
    missing, arm = attempt.left(arms), attempt.ending.arm
    if arm == TOGETHER and len(arms) > 1:
        alone = {name: _attempt(engine, root, cell, [name], process, note) for name in arms}
        return [name for name, tried in alone.items() if tried.ending.status != "done"] or list(arms)
    if arm is not None and arm in missing:
        return [arm]
    return missing if arm in (None, TOGETHER) else missing[:1]  # between two arms: the next in order


def _emit_as(emit: Emit, number: int, record: Record) -> None:
    emit(replace(record, attempt=number))


def _attempt(
    engine: Engine, root: Path, cell: Cell, arms: Sequence[str], process: int, note: Note, emit: Emit | None = None
) -> _Attempt:
    attempt = _Attempt()

    def on_message(message: dict[str, Any]) -> None:
        if message["kind"] == "note":
            note(f"{cell.label}: {message['text']}")
        elif message["kind"] == "record":
            record = replace(record_from(message["record"]), cell=cell.id, repro=repro_line(cell))
            attempt.records[record.arm] = record
            if emit is not None:
                emit(record)

    attempt.ending = engine.execute(cell_job(cell, str(root), tuple(arms), process), on_message)
    if attempt.ending.status == "cancelled":
        raise Cancelled
    return attempt


def _broken(cell: Cell, arm: str, ending: Ending) -> Record:
    if ending.status == "missing":  # never begun, so a resumed run tries it again
        return blank_record(cell, arm, "skipped", ending.reason, worker=ending.worker)
    now = time.time()
    if ending.status == "done":
        return blank_record(cell, arm, "crashed", "the worker ended without this arm's record", started_at=now,
                            worker=ending.worker)
    assert ending.status != "cancelled"  # _attempt raises
    return blank_record(cell, arm, ending.status, ending.reason, stderr_tail=ending.output_tail, started_at=now,
                        worker=ending.worker)
