"""A little real project and one engine for the tests of this room."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
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


@pytest.fixture
def write_suite(tmp_path: Path) -> Callable[..., Path]:
    """write_suite(body, claims=None, **experiment): a project whose suite ``x/y`` has one trial experiment ``t``.

    ``body`` is the code after ``suite = Suite(__file__)``; the experiment's only metric is ``m``.
    """

    def write(body: str, claims: list[dict[str, Any]] | None = None, **experiment: Any) -> Path:
        folder = tmp_path / "suites" / "x" / "y"
        folder.mkdir(parents=True, exist_ok=True)
        declared = {"kind": "trial", "arms": ["a", "b"], "metrics": {"m": {"better": "lower"}}, **experiment}
        card = {
            "paper": {"title": "A test", "year": 2024}, "version": 1, "summary": "Nothing real.",
            "experiments": {"t": declared},
            "claims": claims or [{"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0",
                                  "refuted_if": "< 0", "estimate": {"mean": "m", "of": declared["arms"][0]}}],
        }
        (folder / "card.yaml").write_text(yaml.safe_dump(card))
        (folder / "suite.py").write_text(
            "import os, sys, time\nfrom pathlib import Path\nimport numpy as np\nimport torch\n"
            "from harness.declare.suite import Estimate, SkipArm, Suite\n"
            "HERE = Path(__file__).parent\nsuite = Suite(__file__)\n" + textwrap.dedent(body)
        )
        return tmp_path

    return write


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with LocalEngine(tmp_path_factory.mktemp("engine"), slots=2) as engine:
        yield engine


@pytest.fixture
def run_records(engine: LocalEngine) -> Callable[[Path], list[Record]]:
    """run_records(root): the records of all cells of the project, in order; notes are appended to ``notes``."""

    def run(root: Path, notes: list[str] | None = None) -> list[Record]:
        records: list[Record] = []
        for cell in planned(root):
            run_cell(engine, root, cell, cell.arms, records.append, (notes if notes is not None else []).append)
        return records

    return run


def planned(root: Path) -> tuple[Cell, ...]:
    return make_plan(root, Request(), this_machine()).cells


@pytest.fixture
def cells() -> Callable[[Path], tuple[Cell, ...]]:
    """cells(root): what the profile ``small`` plans."""
    return planned
