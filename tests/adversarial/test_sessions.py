"""Whole runs that are killed, resumed, run twice, or meet a full disk, through the command line."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

import harness
from harness.plan.plan import Request
from harness.records.record import Record
from harness.records.store import read_run_info, read_verdicts
from harness.run.journal import read_journal
from harness.run.progress import Silent
from harness.run.session import RunOptions, RunResult, run

# Every call leaves a line in a file beside the project, so that a cell that runs twice is seen.
BODY = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        time.sleep(0.05)
        with open(Path(suite.file).parents[3] / "calls.txt", "a") as file:
            file.write(f"{arm} {point['n']} {seed}\\n")
        return {"m": point["n"] + seed * 0.125 + (0.5 if arm == "b" else 0.0)}
"""
EXPERIMENT = {"arms": ["a", "b"], "axes": {"n": [1, 2]}, "seeds": 6}
CLAIMS = [
    {"id": "b_is_larger", "statement": "s", "experiment": "t", "supported_if": "> 0.2", "refuted_if": "< 0.2",
     "estimate": {"difference": "m", "of": "b", "minus": "a"}},
    {"id": "a_is_below_one", "statement": "s", "experiment": "t", "supported_if": "< 1", "refuted_if": "> 1",
     "estimate": {"mean": "m", "of": "a"}},
]


@pytest.fixture(scope="module")
def finished(new_project, engine) -> Path:
    """A project with a finished run in ``out``; never changed."""
    project = new_project(BODY, claims=CLAIMS, **EXPERIMENT)
    run(project.root, Request(), RunOptions(out=project.root / "out"), Silent(), engine)
    return project.root


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """The finished project, free to be damaged."""
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.fixture
def project(make_suite) -> Path:
    """The same project, nothing run yet."""
    return make_suite(BODY, claims=CLAIMS, **EXPERIMENT).root


@pytest.fixture
def resume(engine):
    """resume(root): go on with the run in ``out``; its notes and the result."""

    def go_on(root: Path) -> tuple[list[str], RunResult]:
        progress = Silent()
        result = run(root, Request(), RunOptions(resume=root / "out"), progress, engine)
        return progress.notes, result

    return go_on


@pytest.fixture
def litmus(mark):
    """litmus(root, "run", ...): the command line in a project, as a started process."""

    def start(root: Path, *words: str, **options) -> subprocess.Popen:
        path = str(Path(harness.__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": path, "LITMUS_ROOT": str(root), "COLUMNS": "400"}
        return subprocess.Popen([sys.executable, "-m", "harness", *words], cwd=root, env=environment,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)

    return start


def ended(process: subprocess.Popen, seconds: float = 90) -> tuple[int, str]:
    text, _ = process.communicate(timeout=seconds)
    return process.returncode, text


def calls(root: Path) -> Counter:
    file = root / "calls.txt"
    return Counter(file.read_text().split("\n")[:-1]) if file.exists() else Counter()


def records_of(root: Path) -> list[Record]:
    return read_journal(root / "out" / "journal.jsonl")[0]


def wait_for_records(root: Path, number: int) -> None:
    deadline = time.monotonic() + 60
    journal = root / "out" / "journal.jsonl"
    while not journal.exists() or journal.read_bytes().count(b"\n") < number:
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.01)


def only(allowed: set[int], marked) -> dict[int, str]:
    """What is running besides ``allowed``, after a while for it to end."""
    deadline = time.monotonic() + 10
    while set(marked()) - allowed and time.monotonic() < deadline:
        time.sleep(0.05)
    return {pid: command for pid, command in marked().items() if pid not in allowed}


def test_a_whole_run(finished):
    assert calls(finished) == Counter({f"{arm} {n} {seed}": 1 for arm in "ab" for n in (1, 2) for seed in range(6)})
    assert [verdict["verdict"] for verdict in read_verdicts(finished / "out")] == ["supported", "refuted"]
    info = read_run_info(finished / "out")
    assert info.counts == {"ok": 24}
    assert info.finished_at >= info.started_at
    assert set(info.cards) == {"x/y"}
    assert len(info.volatile["load_average"]) == 3
    assert info.machine["key"]


def test_killed_and_resumed_equals_unbroken(finished, project, litmus, resume, marked):
    allowed = set(marked())
    process = litmus(project, "run", "--out", "out", "--jobs", "2")
    wait_for_records(project, 7)
    process.kill()
    ended(process)
    assert not only(allowed, marked)
    before, called = records_of(project), calls(project)
    assert 7 <= len(before) < 24

    resume(project)
    after = records_of(project)
    assert after[: len(before)] == before
    assert sorted(Counter((record.cell, record.arm) for record in after).values()) == [1] * 24
    for record in before:
        name = f"{record.arm} {record.point['n']} {record.seed}"
        assert calls(project)[name] == called[name] == 1
    assert read_verdicts(project / "out") == read_verdicts(finished / "out")
    assert read_run_info(project / "out").counts == {"ok": 24}


def test_resuming_a_finished_run_runs_nothing(copy, resume):
    before = (copy / "out" / "journal.jsonl").read_bytes()
    resume(copy)
    assert (copy / "out" / "journal.jsonl").read_bytes() == before
    assert sorted(calls(copy).values()) == [1] * 24


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(project, litmus, marked):
    allowed = set(marked())
    process = litmus(project, "run", "--out", "out", "--jobs", "1")
    wait_for_records(project, 3)
    process.send_signal(signal.SIGINT)
    code, text = ended(process)
    assert code == 130, text
    assert "--resume" in text
    assert not only(allowed, marked)
    assert read_run_info(project / "out").counts == {"ok": len(records_of(project))}
    assert 3 <= len(records_of(project)) < 24
    assert not read_verdicts(project / "out")


def test_two_runs_into_one_folder(project, litmus):
    first = litmus(project, "run", "--out", "out", "--jobs", "1")
    wait_for_records(project, 1)
    code, text = ended(litmus(project, "run", "--out", "out"))
    assert code == 2
    assert "another run is writing into this folder" in text
    assert f"process {first.pid}" in text
    code, text = ended(first)
    assert code == 0, text
    assert read_run_info(project / "out").counts == {"ok": 24}


def test_a_folder_that_holds_a_run_is_not_written_over(copy, litmus):
    before = (copy / "out" / "journal.jsonl").read_bytes()
    code, text = ended(litmus(copy, "run", "--out", "out"))
    assert code == 2
    assert "already holds a run" in text
    assert (copy / "out" / "journal.jsonl").read_bytes() == before


def test_a_folder_that_cannot_be_written(project, litmus):
    (project / "file").write_text("not a folder")
    code, text = ended(litmus(project, "run", "--out", "file/out"))
    assert code == 2
    assert "the results cannot be written" in text
    assert "Traceback" not in text


def test_a_full_disk_stops_the_run_and_resume_goes_on(project, litmus, resume, marked):
    """RLIMIT_FSIZE gives EFBIG where a full disk gives ENOSPC; both take the same path."""
    allowed = set(marked())
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (6000, 6000))
    code, text = ended(litmus(project, "run", "--out", "out", "--jobs", "2", preexec_fn=limit))
    assert code == 2, text
    assert "the file may not grow" in text
    assert "records are safe" in text
    assert "--resume out" in text
    assert not only(allowed, marked)
    before, _, torn = read_journal(project / "out" / "journal.jsonl")
    assert before and not torn
    resume(project)
    assert records_of(project)[: len(before)] == before
    assert read_run_info(project / "out").counts == {"ok": 24}


def test_a_torn_line_is_cut_off_kept_and_its_arm_run_again(copy, resume):
    journal = copy / "out" / "journal.jsonl"
    data = journal.read_bytes()
    journal.write_bytes(data[:-40])
    notes, _ = resume(copy)
    assert any("torn" in note for note in notes)
    assert len(records_of(copy)) == 24
    assert (copy / "out" / "journal.torn").read_bytes() == data.splitlines()[-1][:-39] + b"\n"
    assert sorted(calls(copy).values()) == [1] * 23 + [2]


def test_a_damaged_line_in_the_middle_is_named(copy, litmus):
    journal = copy / "out" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[4] = b'{"cell": "half a\n'
    journal.write_bytes(b"".join(lines))
    code, text = ended(litmus(copy, "run", "--resume", "out"))
    assert code == 2
    assert "the journal is damaged" in text
    assert "journal.jsonl, line 5" in text
    assert journal.read_bytes() == b"".join(lines)


def test_changed_code_is_said_and_the_new_cells_run(copy, resume):
    suite = copy / "suites" / "x" / "y" / "suite.py"
    suite.write_text(suite.read_text().replace("0.5 if", "0.25 if"))
    notes, result = resume(copy)
    assert any("12 cells of this run belong to other code" in note for note in notes)
    assert sorted(calls(copy).values()) == [2] * 24
    assert result.counts == {"ok": 24}


def test_budget_skips_are_recorded_and_run_when_resumed_without_it(project, engine, resume):
    result = run(project, Request(), RunOptions(out=project / "out", budget_s=10.0), Silent(), engine)
    assert result.counts["skipped"] > 0
    assert result.counts["ok"] > 0
    assert sum(result.counts.values()) == 24
    reasons = {record.reason for record in records_of(project) if record.status == "skipped"}
    assert reasons == {"budget: does not fit into 10 s"}
    assert resume(project)[1].counts == {"ok": 24}
    assert sorted(calls(project).values()) == [1] * 24


def test_the_request_is_kept_and_resumed(project, engine, resume):
    request = Request(("x/y:t[n=1]",), seeds=2)
    assert run(project, request, RunOptions(out=project / "out"), Silent(), engine).counts == {"ok": 4}
    assert resume(project)[1].counts == {"ok": 4}
    info = read_run_info(project / "out")
    assert (info.selectors, info.seeds, info.profile) == (["x/y:t[n=1]"], 2, "small")
