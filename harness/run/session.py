"""A run from request to verdicts: plan, order, both lanes, the journal, and an orderly end whatever happens.

This process plans, schedules and writes. It never imports torch and never runs a suite's code.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import LitmusError
from harness.plan.budget import Durations, breadth_first, fit
from harness.plan.cell import Cell
from harness.plan.code import library_modules
from harness.plan.machine import Machine, this_machine
from harness.plan.plan import Plan, Request, make_plan
from harness.records.record import Record
from harness.records.store import RUN_FILE, RunInfo, read_run_info, write_records, write_run_info
from harness.run import about
from harness.run.engine.base import Engine
from harness.run.engine.local import LocalEngine
from harness.run.journal import Journal, latest
from harness.run.lanes import Cancelled, run_cell
from harness.run.progress import Progress
from harness.run.protocol import Job, Limits, blank_record
from harness.run.yardsticks import Yardsticks

BUDGET = "budget"
_JUDGE_LIMIT_S = 1800.0


@dataclass(frozen=True)
class RunOptions:
    """How to run. ``out`` is a new folder, ``resume`` an existing run's; ``jobs`` trial cells go side by side."""

    out: Path | None = None
    resume: Path | None = None
    jobs: int | None = None
    budget_s: float | None = None
    command: str = ""


@dataclass(frozen=True)
class RunResult:
    """What a run left. ``counts`` maps status to records; ``verdicts`` is empty where the run was interrupted."""

    folder: Path
    counts: Mapping[str, int]
    interrupted: bool
    verdicts: Sequence[Mapping[str, Any]]


def run(
    root: Path, request: Request, options: RunOptions, progress: Progress, engine: Engine | None = None
) -> RunResult:
    """Run ``request``, or go on with ``options.resume`` as it was asked for then; ``engine``: this machine.

    Every finished record is safe before the next one starts. Raises LitmusError where the request names nothing, or
    the folder cannot be written, is in use or holds another run.
    """
    machine = this_machine()
    before = _resumed_info(options.resume) if options.resume else None
    if before is not None:
        request = about.request_of(before)
    plan = make_plan(root, request, machine)
    folder = options.resume or options.out or about.default_folder(root, machine, request.profile)
    with Journal(folder, options.command) as journal:
        _refuse_other_run(folder, options)
        with nullcontext(engine) if engine else _local(root, options, machine, plan) as running:
            info = about.run_info(root, folder, request, options.command, machine, plan, before)
            return _Session(root, plan, info, options, machine, journal, running, progress).run()


def _local(root: Path, options: RunOptions, machine: Machine, plan: Plan) -> LocalEngine:
    suites = {cell.suite for cell in plan.cells}
    preload = {module for name in suites for module in library_modules(root, root / "suites" / name)}
    engine = LocalEngine(root, options.jobs or machine.cores, preload)
    engine.warm()  # its libraries load while the run is described
    return engine


def _resumed_info(folder: Path) -> RunInfo:
    info = read_run_info(folder)
    if not (folder / "journal.jsonl").exists():
        raise LitmusError("this run's journal is not here, so it cannot go on", where=folder,
                          expected="journal.jsonl, which stays on the machine that made the run",
                          next_step="start a new run with: litmus run")
    return info


def _refuse_other_run(folder: Path, options: RunOptions) -> None:
    if options.resume is None and (folder / RUN_FILE).exists():
        if (folder / "journal.jsonl").stat().st_size == 0:
            (folder / "journal.jsonl").unlink()
        raise LitmusError("the folder already holds a run", where=folder, key="--out",
                          expected="a folder without a run in it",
                          next_step=f"go on with it: litmus run --resume {folder}, or choose another folder")


class _Session:
    """The state of one run; everything that many threads touch is behind ``_lock``."""

    def __init__(
        self, root: Path, plan: Plan, info: RunInfo, options: RunOptions, machine: Machine, journal: Journal,
        engine: Engine, progress: Progress,
    ) -> None:
        self.root, self.plan, self.info, self.machine = root, plan, info, machine
        self.journal, self.engine, self.progress = journal, engine, progress
        self.folder, self.budget_s = journal.folder, options.budget_s
        self.began_s = time.monotonic()
        self.durations = Durations.load(root, machine.key)
        self.interrupted = False
        self._lock = threading.RLock()
        self._records = {(record.cell, record.arm): record for record in latest(journal.records)}

    def run(self) -> RunResult:
        write_run_info(self.folder, self.info)
        self._notes()
        todo = breadth_first(cell for cell in self.plan.cells if self._left(cell))
        self.progress.planned(Plan(tuple(todo), self.plan.skipped))
        for skip in self.plan.skipped:
            self._skip(skip.cell, skip.reason)
        todo = self._within_budget(todo)
        with _until_interrupted(self._interrupt):
            try:
                if todo:
                    self.engine.ready()
                self._timing_lane([cell for cell in todo if cell.kind == "speed"])
                self._trial_lane([cell for cell in todo if cell.kind == "trial"])
            except Cancelled:
                self.interrupted = True
            finally:
                self.durations.save(self.root)
            return self._finish()

    def _notes(self) -> None:
        for text in self.journal.notes:
            self.progress.note(text)
        known = {cell.id for cell in self.plan.cells} | {skip.cell.id for skip in self.plan.skipped}
        known |= Yardsticks.cells_in(self._records.values())
        stale = {record.cell for record in self._records.values()} - known
        if stale:
            self.progress.note(f"{len(stale)} cells of this run belong to other code, cards or tuned values; "
                               "their records stay in the journal and are not judged")

    def _interrupt(self) -> None:
        self.interrupted = True
        self.engine.cancel()

    def _left(self, cell: Cell) -> list[str]:
        """The arms of ``cell`` without a final record; a speed cell is measured whole or not at all."""
        left = [arm for arm in cell.arms if not _final(self._records.get((cell.id, arm)))]
        return list(cell.arms) if left and cell.kind == "speed" else left

    def _within_budget(self, cells: list[Cell]) -> list[Cell]:
        if self.budget_s is None:
            return cells
        kept, dropped = fit(cells, self.budget_s, self.durations, self.engine.slots)
        for cell in dropped:
            self._skip(cell, self._budget_reason())
        return kept

    def _budget_reason(self) -> str:
        return f"{BUDGET}: does not fit into {self.budget_s:g} s"

    def _timing_lane(self, cells: list[Cell]) -> None:
        """Speed cells, one after another, nothing else of this run beside them; the canary before and after."""
        planned = [cell for cell in self.plan.cells if cell.kind == "speed"]
        if not planned or (not cells and self.info.canary is not None):
            return
        yardsticks = Yardsticks(self.engine, self.root, self._keep, self.progress.note)
        occasion = Yardsticks.next_occasion(self._records.values())
        if cells:
            yardsticks.canary(occasion)
        if not self.info.ceilings:
            self._tell(ceilings=yardsticks.ceilings(planned))
        for cell in cells:
            self._one(cell)
        yardsticks.canary(occasion + 1)
        self._tell(canary=Yardsticks.summary(self._records.values()))

    def _tell(self, **changes: Any) -> None:
        """Update run.json at once: a run that is killed later keeps it."""
        self.info = self.info.model_copy(update=changes)
        write_run_info(self.folder, self.info)

    def _trial_lane(self, cells: list[Cell]) -> None:
        """Trial cells side by side, one thread each."""
        with ThreadPoolExecutor(self.engine.slots, thread_name_prefix="lane") as pool:
            futures = [pool.submit(self._one, cell) for cell in cells]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self.engine.cancel()
                for future in futures:
                    future.cancel()
                raise

    def _one(self, cell: Cell) -> None:
        left, estimate_s = self._left(cell), self.durations.estimate_s(cell)
        begin_s = time.monotonic()
        if self.budget_s is not None and begin_s - self.began_s + estimate_s > self.budget_s:
            self._skip(cell, self._budget_reason())
            return
        with self._lock:
            self.progress.started(cell)
        run_cell(self.engine, self.root, cell, left, self._keep, self._note)
        seconds = time.monotonic() - begin_s
        with self._lock:
            if len(left) == len(cell.arms):
                self.durations.remember(cell, seconds)
            self.progress.finished(cell, seconds)

    def _note(self, text: str) -> None:
        with self._lock:
            self.progress.note(text)

    def _keep(self, record: Record) -> None:
        """Journal first, then tell: what the user saw as done is done."""
        with self._lock:
            self.journal.append(record)
            self._records[record.cell, record.arm] = record
            self.progress.recorded(record)

    def _skip(self, cell: Cell, reason: str) -> None:
        for arm in cell.arms:
            known = self._records.get((cell.id, arm))
            if known is None or (not _final(known) and known.reason != reason):
                self._keep(blank_record(cell, arm, "skipped", reason))

    def _finish(self) -> RunResult:
        """Records and run.json first, for they cannot be made again; then the verdicts."""
        records = self._planned_records()
        counts: Counter[str] = Counter(record.status for record in records)
        write_records(self.folder, [*records, *Yardsticks.records_in(self._records.values())])
        self._tell(finished_at=time.time(), counts=dict(counts))
        verdicts = [] if self.interrupted else self._judge()
        for verdict in verdicts:
            self.progress.judged(verdict)
        result = RunResult(self.folder, dict(counts), self.interrupted, verdicts)
        self.progress.done(result)
        return result

    def _planned_records(self) -> list[Record]:
        cells = [*self.plan.cells, *(skip.cell for skip in self.plan.skipped)]
        found = (self._records.get((cell.id, arm)) for cell in cells for arm in cell.arms)
        return [record for record in found if record is not None]

    def _judge(self) -> list[dict[str, Any]]:
        """In a worker: a custom estimate is suite code."""
        limits = Limits(arm_s=_JUDGE_LIMIT_S, startup_s=_JUDGE_LIMIT_S, memory_bytes=self.machine.memory_bytes // 2)
        job = Job(task="judge", root=str(self.root), limits=limits, argument={"folder": str(self.folder)})
        results: list[list[dict[str, Any]]] = []
        ending = self.engine.execute(job, lambda message: results.append(message["value"]))
        if ending.status == "cancelled":
            self.interrupted = True
            return []
        if ending.status != "done":
            raise LitmusError("the records are safe, but the claims could not be judged", where=self.folder,
                              value=_last_line(ending.output_tail) or ending.reason,
                              next_step=f"mend it, then: litmus run --resume {self.folder}")
        return results[0]


def _final(record: Record | None) -> bool:
    """Whether the arm was really tried: a skip that the plan or the budget wrote has never started."""
    return record is not None and (record.status != "skipped" or record.started_at > 0)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


@contextmanager
def _until_interrupted(interrupt: Callable[[], None]) -> Iterator[None]:
    """Inside, the first Ctrl-C or SIGTERM calls ``interrupt`` and raises nothing, so that no write is torn.

    A second Ctrl-C interrupts at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before[signal.SIGINT])
        interrupt()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
