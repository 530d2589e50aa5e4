"""One stored cell again, in the foreground: its output, its traceback and a debugger go to the terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness.declare.card import PROFILES
from harness.errors import LitmusError
from harness.plan.cell import Cell
from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan
from harness.records.record import Record
from harness.run.engine.local import environment
from harness.run.protocol import Lines, blank_record, cell_job, decode, record_from
from harness.run.stage import Page

_CHUNK = 1 << 16


def repro(root: Path, name: str, arms: tuple[str, ...] = ()) -> list[Record]:
    """Run the cell ``name`` (its id, or its label for seed 0) attached to this terminal; ``arms`` only, if given.

    There is no limit of time or memory here, and a speed cell runs its first process only. Returns one record per
    arm. Raises LitmusError where no plan and no stored run has such a cell, or its code has changed since.
    """
    cell = find_cell(root, name)
    wanted = arms or cell.arms
    job_fd, page_fd = os.memfd_create("litmus-job"), Page.create()
    job = replace(cell_job(cell, str(root), wanted), argument={"unlimited": True})
    os.write(job_fd, job.to_json().encode())
    os.lseek(job_fd, 0, os.SEEK_SET)
    reading, writing = os.pipe()
    fds = (job_fd, writing, page_fd)
    command = [sys.executable, "-m", "harness.run.worker", *map(str, fds)]
    process = subprocess.Popen(command, cwd=root, env=environment(root), pass_fds=fds)
    for fd in fds:
        os.close(fd)
    records = [replace(record, cell=cell.id) for record in _records(reading)]
    code = process.wait()
    told = {record.arm for record in records}
    reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return records + [blank_record(cell, arm, "crashed", reason) for arm in wanted if arm not in told]


def _records(fd: int) -> Iterator[Record]:
    lines = Lines()
    with os.fdopen(fd, "rb", buffering=0) as file:
        while data := file.read(_CHUNK):
            for line in lines.feed(data):
                message = decode(line)
                if message["kind"] == "record":
                    yield record_from(message["record"])


def find_cell(root: Path, name: str) -> Cell:
    """The cell with this id, in today's plans or with a stored run's seed; or the first cell a label selects."""
    if ":" in name:
        return _by_label(root, name)
    for profile in PROFILES:
        for cell in _planned(root, (), profile):
            if cell.id == name:
                return cell
    return _by_record(root, name)


def _planned(root: Path, selectors: tuple[str, ...], profile: Any) -> list[Cell]:
    plan = make_plan(root, Request(selectors, profile), this_machine())
    return [*plan.cells, *(skip.cell for skip in plan.skipped)]


def _by_label(root: Path, label: str) -> Cell:
    refusal: LitmusError | None = None
    for profile in ("small", "smoke", "full"):
        try:
            return _planned(root, (label,), profile)[0]
        except LitmusError as error:
            refusal = refusal or error
    assert refusal is not None  # the loop ran
    raise refusal


def _by_record(root: Path, cell_id: str) -> Cell:
    from harness.records.store import find_runs

    for run in find_runs(root):
        table = run.records()
        rows = table[table["cell"].astype(str) == cell_id]
        if len(rows):
            return _as_today(root, {str(key): value for key, value in rows.iloc[0].items()}, cell_id)
    raise LitmusError("no such cell", value=cell_id, expected="a cell's id from a record, or its label",
                      next_step="see the failures of a run with: litmus report")


def _as_today(root: Path, row: dict[str, Any], cell_id: str) -> Cell:
    """The record's question asked of today's code; refused where that would be another question."""
    selector = f"{row['suite']}:{row['experiment']}"
    for cell in _planned(root, (selector,), row["profile"]):
        again = replace(cell, point=json.loads(row["point"]), seed=int(row["seed"]), device=str(row["device"]))
        if again.id == cell_id:
            return again
    label = selector + f"[{','.join(f'{axis}={value}' for axis, value in json.loads(row['point']).items())}]"
    raise LitmusError("the cell's code, card or tuned values have changed since", value=cell_id,
                      expected="the code of the run: see 'commit' in its run.json",
                      next_step=f"check that commit out, or ask today's code: litmus repro '{label}'")
