"""A run from request to verdicts: plan, order, both lanes, the journal, and an orderly end whatever happens.

This process plans, schedules and writes. It never imports torch and never runs a suite's code.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.declare.catalog import Catalog
from harness.errors import LitmusError
from harness.plan.budget import Durations, breadth_first, fit
from harness.plan.cell import Cell
from harness.plan.machine import this_machine
from harness.plan.plan import Plan, Request, make_plan
from harness.records.record import Record
from harness.records.store import RUN_FILE, RunInfo, read_run_info, write_records, write_run_info
from harness.run import about
from harness.run.engine.base import RunEngine
from harness.run.engine.choice import EngineChoice, open_engine
from harness.run.interrupt import until_interrupted
from harness.run.journal import Journal, latest
from harness.run.judging import EarlyVerdicts, judge_folder
from harness.run.lanes import Cancelled, run_cell, trial_lane
from harness.run.oracles import ask
from harness.run.progress import Progress
from harness.run.protocol import blank_record
from harness.run.yardsticks import Yardsticks, devices_of

BUDGET = "budget"


@dataclass(frozen=True)
class RunOptions:
    """How to run. ``out`` is a new folder, ``resume`` an existing run's; ``jobs`` trial cells go side by side.

    Without an ``engine`` a new run takes this machine, a resumed one what it had.
    """

    out: Path | None = None
    resume: Path | None = None
    jobs: int | None = None
    budget_s: float | None = None
    command: str = ""
    engine: EngineChoice | None = None


@dataclass(frozen=True)
class RunResult:
    """What a run left. ``counts`` maps status to records; ``verdicts`` is empty where the run was interrupted."""

    folder: Path
    counts: Mapping[str, int]
    interrupted: bool
    verdicts: Sequence[Mapping[str, Any]]


def run(
    root: Path, request: Request, options: RunOptions, progress: Progress, engine: RunEngine | None = None
) -> RunResult:
    """Run ``request``, or go on with ``options.resume`` as it was asked for then; ``engine`` goes before its choice.

    Every finished record is safe before the next one starts. Raises LitmusError where the request names nothing, or
    the folder cannot be written, is in use or holds another run.
    """
    before = _resumed_info(options.resume) if options.resume else None
    if before is not None:
        request = about.request_of(before)
    with nullcontext(engine) if engine else closing(_opened(root, request, options, before)) as running:
        plan = make_plan(root, request, running.machine)
        folder = options.resume or options.out or about.default_folder(root, running.machine, request.profile)
        with Journal(folder, options.command) as journal:
            _refuse_other_run(folder, options)
            info = about.run_info(root, folder, request, options.command, running, plan, before)
            return _Session(root, plan, info, options, journal, running, progress).run()


def _opened(root: Path, request: Request, options: RunOptions, before: RunInfo | None) -> RunEngine:
    suites = [entry.name for entry, _ in Catalog(root).select(request.selectors)]
    choice = options.engine or (EngineChoice.of(before.engine) if before else EngineChoice())
    return open_engine(choice, root, suites, options.jobs)


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
        self, root: Path, plan: Plan, info: RunInfo, options: RunOptions, journal: Journal, engine: RunEngine,
        progress: Progress,
    ) -> None:
        self.root, self.plan, self.info = root, plan, info
        self.journal, self.engine, self.progress = journal, engine, progress
        self.folder, self.budget_s = journal.folder, options.budget_s
        self.began_s = time.monotonic()
        self.durations = Durations.load(root, engine.machine.key)
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
        with until_interrupted(self._interrupt):
            try:
                if todo:
                    self.engine.ready()
                todo = self._proven(todo)
                self._early = EarlyVerdicts(self.engine, self.root, self._judge_bytes(), todo)
                self._timing_lane([cell for cell in todo if cell.kind == "speed"])
                for suite in self._early.timing_is_over():
                    self._judge_early(suite)
                trial_lane(self.engine, [cell for cell in todo if cell.kind == "trial"], self._one,
                           self.engine.devices)
            except Cancelled:
                self.interrupted = True
            finally:
                self.durations.save(self.root)
            return self._finish()

    def _notes(self) -> None:
        for text in self.journal.notes:
            self.progress.note(text)
        for name, why in self.info.engine.get("left_out", {}).items():
            self.progress.note(f"{name} is left out: {why}")
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

    def _proven(self, cells: list[Cell]) -> list[Cell]:
        """Correct before anything else: where an oracle disagrees, every arm of the suite is wrong and none is run."""
        suites = list(dict.fromkeys(cell.suite for cell in cells))
        with ThreadPoolExecutor(self.engine.slots, thread_name_prefix="oracle") as pool:
            answers = dict(zip(suites, pool.map(partial(ask, self.engine, self.root), suites), strict=True))
        for cell in cells:
            fault = answers[cell.suite].fault
            if fault:
                for arm in self._left(cell):
                    self._keep(blank_record(cell, arm, "wrong", fault, started_at=time.time()))
        return [cell for cell in cells if answers[cell.suite].fault is None]

    def _timing_lane(self, cells: list[Cell]) -> None:
        """Speed cells, one after another, nothing else of this run beside them; the canary before and after."""
        planned = [cell for cell in self.plan.cells if cell.kind == "speed"]
        if not planned or (not cells and self.info.canary is not None):
            return
        yardsticks = Yardsticks(self.engine, self.root, self._keep, self.progress.note)
        occasion, devices = Yardsticks.next_occasion(self._records.values()), devices_of(planned)
        if cells:
            yardsticks.canary(occasion, devices)
        if not self.info.ceilings:
            self._tell(ceilings=yardsticks.ceilings(planned))
        for cell in cells:
            self._one(cell)
        yardsticks.canary(occasion + 1, devices)
        self._tell(canary=Yardsticks.summary(self._records.values()))

    def _tell(self, **changes: Any) -> None:
        """Update run.json at once: a run that is killed later keeps it."""
        self.info = self.info.model_copy(update=changes)
        write_run_info(self.folder, self.info)

    def _one(self, cell: Cell) -> None:
        left, estimate_s = self._left(cell), self.durations.estimate_s(cell)
        begin_s = time.monotonic()
        if self.budget_s is not None and begin_s - self.began_s + estimate_s > self.budget_s:
            self._skip(cell, self._budget_reason())
            self._early.finished(cell)
            return
        with self._lock:
            self.progress.started(cell)
        run_cell(self.engine, self.root, cell, left, self._keep, self._note)
        seconds = time.monotonic() - begin_s
        with self._lock:
            if len(left) == len(cell.arms):
                self.durations.remember(cell, seconds)
            self.progress.finished(cell, seconds)
            complete = self._early.finished(cell)
        if complete:
            self._judge_early(complete)

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
        self._tell(finished_at=time.time(), counts=dict(counts), engine=self.engine.about())
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
        try:
            return judge_folder(self.engine, self.root, self.folder, self._judge_bytes())
        except Cancelled:
            self.interrupted = True
            return []

    def _judge_early(self, suite: str) -> None:
        self._early.judge(suite, self.info, self._planned_records(), self._show)

    def _show(self, verdict: Mapping[str, Any]) -> None:
        with self._lock:
            self.progress.judged(verdict)

    def _judge_bytes(self) -> int:
        return this_machine().memory_bytes // 2  # every engine judges here


def _final(record: Record | None) -> bool:
    """Whether the arm was really tried: a skip that the plan or the budget wrote has never started."""
    return record is not None and (record.status != "skipped" or record.started_at > 0)
