"""Real little projects in a temporary folder, one engine for all tests, and a look at what processes are left."""

from __future__ import annotations

import os
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.plan.cell import Cell
from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan
from harness.records.record import Record
from harness.run.engine.local import LocalEngine
from harness.run.lanes import run_cell

MARK = "LITMUS_TEST_MARK"


@dataclass(frozen=True)
class Project:
    """A root with suites below it."""

    root: Path

    def cells(self, profile: str = "small") -> list[Cell]:
        return list(make_plan(self.root, Request(profile=profile), this_machine()).cells)


def write_suite(
    root: Path, body: str, name: str = "x/y", claims: list[dict[str, Any]] | None = None, **experiment: Any
) -> Project:
    """One more suite below ``root``: the experiment ``t`` has one metric ``m`` unless ``experiment`` says otherwise.

    ``body`` is the code of a trial function of (arm, point, seed, device) after the imports.
    """
    folder = root / "suites" / name
    folder.mkdir(parents=True)
    declared = {"kind": "trial", "arms": ["before", "bad", "after"], "metrics": {"m": {"better": "lower"}},
                "timeout_s": 30, **experiment}
    card = {
        "paper": {"title": "A test", "year": 2024}, "version": 1, "summary": "Nothing real.",
        "experiments": {"t": declared},
        "claims": claims or [{
            "id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0", "refuted_if": "< 0",
            "estimate": {"mean": next(iter(declared["metrics"])), "of": declared["arms"][0]},
        }],
    }
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    (folder / "suite.py").write_text(
        "import ctypes, os, signal, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from harness.declare.suite import NotTestable, SkipArm, Suite\n"
        "suite = Suite(__file__)\n" + textwrap.dedent(body)
    )
    return Project(root)


@pytest.fixture
def make_suite(tmp_path: Path) -> Callable[..., Project]:
    """make_suite(body, **card): see :func:`write_suite`."""
    return partial(write_suite, tmp_path)


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Project]:
    """new_project(body, **card): the same for fixtures that outlive a test."""
    return lambda *body, **card: write_suite(tmp_path_factory.mktemp("project"), *body, **card)


@pytest.fixture(scope="session")
def mark() -> Iterator[str]:
    """A value in the environment of every process that the tests start, directly or not."""
    value = uuid.uuid4().hex
    before = os.environ.get(MARK)
    os.environ[MARK] = value
    yield value
    if before is None:
        del os.environ[MARK]
    else:
        os.environ[MARK] = before


def _marked(mark: str) -> dict[int, str]:
    """pid -> command line of the living processes whose environment has the mark, this one left out."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            inside = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if inside and not zombie:
            found[int(entry.name)] = command
    return found


@pytest.fixture
def marked(mark: str) -> Callable[[], dict[int, str]]:
    """marked(): pid -> command line of what the tests have running now."""
    return lambda: _marked(mark)


@pytest.fixture(scope="session")
def engine(mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(tmp_path_factory.mktemp("engine"), slots=2) as engine:
        engine.ready()
        yield engine
    deadline = time.monotonic() + 5
    while _marked(mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _marked(mark), "closing the engine leaves processes"


@pytest.fixture
def run_all(engine: LocalEngine, mark: str) -> Iterator[Callable[[Project], list[Record]]]:
    """run_all(project): the records of all its cells. At the end only the zygote is left."""

    def run(project: Project) -> list[Record]:
        records: list[Record] = []
        for cell in project.cells():
            mine: list[Record] = []
            run_cell(engine, project.root, cell, cell.arms, mine.append, lambda text: None)
            assert sorted(record.arm for record in mine) == sorted(cell.arms)
            assert {(record.cell, record.repro) for record in mine} == {(cell.id, f"litmus repro {cell.id}")}
            records += mine
        return records

    zygotes = set(_marked(mark))
    yield run
    deadline = time.monotonic() + 5
    while set(_marked(mark)) - zygotes and time.monotonic() < deadline:
        time.sleep(0.02)
    left = {pid: command for pid, command in _marked(mark).items() if pid not in zygotes}
    assert not left, "the suite left processes behind"
