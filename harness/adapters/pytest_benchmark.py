"""Every speed cell for pytest-benchmark: proved by the harness's own check first, timed by pytest-benchmark afterwards.

A ``conftest.py`` imports the hooks and fixtures below; one test then stands for every arm of every cell. This is the
inner loop of whoever writes a kernel. Times of two arms are comparable within one group only, and nothing is judged
here: ``litmus run`` and ``litmus ab`` measure in pairs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.adapters.in_process import Proved, prove
from harness.declare.catalog import find_root
from harness.declare.suite import Suite
from harness.plan.cell import Cell
from harness.plan.machine import software, this_machine
from harness.plan.plan import Request, make_plan
from harness.records.record import Record
from harness.run.measure.threads import available_cores, limit_threads

_NOTED = ("error", "tolerance", "device", "peak_bytes", "workspace_bytes", "input_bytes", "bytes_moved", "flops")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Case:
    """One arm of one speed cell. ``reason`` says why the plan leaves the cell out on this machine."""

    cell: Cell
    arm: str
    reason: str | None = None

    @property
    def id(self) -> str:
        """The test's id, such as ``softmax/two_pass_softmax/throughput/n=4096,threads=1/cpu/two_pass``."""
        point = ",".join(f"{axis}={value}" for axis, value in self.cell.point.items()) or "-"
        return "/".join([self.cell.suite, self.cell.experiment, point, self.cell.device, self.arm])

    @property
    def group(self) -> str:
        """Experiment, point and device: only inside one cell do arms have the same work."""
        return f"{self.cell.label} on {self.cell.device}"


def speed_cases(root: Path, request: Request) -> list[Case]:
    """Every arm of every speed cell that ``request`` plans for this machine, arms of one cell in a row.

    Raises LitmusError where a selector or device names nothing.
    """
    plan = make_plan(root, request, this_machine())
    reasons = {skip.cell.id: skip.reason for skip in plan.skipped}
    cells = [*plan.cells, *(skip.cell for skip in plan.skipped)]
    return [Case(cell, arm, reasons.get(cell.id)) for cell in cells if cell.kind == "speed" for arm in cell.arms]


def noted(record: Record) -> dict[str, Any]:
    """What goes beside the times: error, tolerance, device, bytes, the cell's identity. Times are never among it."""
    return {"cell": record.cell, "card_version": record.card_version, "code": record.code, "point": dict(record.point),
            **{name: getattr(record, name) for name in _NOTED}}


class Bench:
    """What the test gets: :meth:`run` proves the case, or skips or fails the test, and only then times it.

    The proof of a cell is kept until another cell is asked for, so its arms share inputs and truth.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._suites = root, dict[str, Suite]()
        self._cell_id, self._proved = "", Proved()

    def run(self, case: Case, benchmark: Any) -> Record:
        """Time ``case`` with the fixture ``benchmark`` and return the record of its proof."""
        if case.reason is not None:
            pytest.skip(case.reason)
        record = self.proved(case.cell).records[case.arm]
        if record.status == "skipped":
            pytest.skip(record.reason or "skipped")
        if record.status != "ok":
            pytest.fail(f"{record.status}: {record.reason}\n{record.stderr_tail}".rstrip(), pytrace=False)
        limit_threads(case.cell.point.get("threads", 1))
        benchmark.extra_info.update(noted(record))
        benchmark(self._proved.call(case.arm))
        return record

    def proved(self, cell: Cell) -> Proved:
        """The proof of ``cell``."""
        if cell.id != self._cell_id:
            self._proved = Proved()  # frees the arrays of the last cell before this one allocates
            self._proved, self._cell_id = prove(cell, self._suite(cell.suite)), cell.id
        return self._proved

    def _suite(self, name: str) -> Suite:
        from harness.run.worker import load_suite

        if name not in self._suites:
            self._suites[name] = load_suite(self._root, name)
        return self._suites[name]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options to choose cells; pytest knows them where the folder of this conftest is named on the command line."""
    group = parser.getgroup("litmus", "Litmus' speed cells")
    group.addoption("--litmus-profile", choices=("smoke", "small", "full"), default="smoke",
                    help="Whose points to time (default: smoke).")
    group.addoption("--litmus-select", action="append", metavar="SELECTOR",
                    help="Only these, as for 'litmus run': SUITE[:EXPERIMENT[AXIS=VALUE,...]]. Repeatable.")
    group.addoption("--litmus-device", default="auto", help="auto, cpu, cuda or cuda:INDEX.")


def request_of(config: pytest.Config) -> Request:
    """The options as a request. In a session that has not got the options it is every suite's smoke points."""
    return Request(
        selectors=tuple(config.getoption("litmus_select", None) or ()),
        profile=config.getoption("litmus_profile", "smoke"),
        devices=(config.getoption("litmus_device", "auto"),),
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise a test that asks for ``case`` by id, so that the stored ``params`` are readable text."""
    if "case" in metafunc.fixturenames:
        cases = _cases(metafunc.config)
        values = [pytest.param(name, id=name, marks=pytest.mark.benchmark(group=case.group))
                  for name, case in cases.items()]
        metafunc.parametrize("case", values, indirect=True)


_CASES = pytest.StashKey[Mapping[str, Case]]()


def _cases(config: pytest.Config) -> Mapping[str, Case]:
    if _CASES not in config.stash:
        config.stash[_CASES] = {case.id: case for case in speed_cases(find_root(), request_of(config))}
    return config.stash[_CASES]


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Case:
    """The arm of the cell that this test is about."""
    return _cases(request.config)[request.param]


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """Proves and times cases; leaves the number of threads as a fresh process has it."""
    before = {name: os.environ.get(name) for name in _THREADS}
    yield Bench(find_root())
    limit_threads(available_cores())
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Add the fingerprint that runs carry: the machine with its key, and the software."""
    machine_info["litmus"] = {"machine": this_machine().to_dict(), "software": software()}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_compare_machine_info(
    machine_info: Mapping[str, Any], compared_benchmark: Mapping[str, Any]
) -> None:
    """Refuse ``--benchmark-compare`` with a file of another machine. Raises pytest.UsageError."""
    here = this_machine().key
    there = compared_benchmark["machine_info"].get("litmus", {}).get("machine", {}).get("key")
    if there != here:
        raise pytest.UsageError(f"the stored times are of machine {there or 'unknown'}, this is {here}: times of two "
                                "machines say nothing about the code (see: litmus ab)")


__all__ = [
    "Bench",
    "Case",
    "bench",
    "case",
    "noted",
    "pytest_addoption",
    "pytest_benchmark_compare_machine_info",
    "pytest_benchmark_update_machine_info",
    "pytest_generate_tests",
    "request_of",
    "speed_cases",
]
