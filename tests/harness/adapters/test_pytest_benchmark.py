"""A pytest session over a small project: what is proved, timed, skipped, failed and stored."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from harness.adapters.in_process import prove
from harness.adapters.pytest_benchmark import (
    Bench,
    pytest_benchmark_compare_machine_info,
    pytest_benchmark_update_machine_info,
    speed_cases,
)
from harness.errors import LitmusError
from harness.plan.machine import this_machine
from harness.plan.plan import Request
from harness.run.worker import load_suite

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def session(project):
    """session(*options): (exit code, output, the stored JSON or None) of pytest over the project's speed cells."""
    for name in ("conftest.py", "test_speed.py"):
        shutil.copy(ROOT / "tests" / "benchmarks" / name, project / name)

    def run(*options):
        stored = project / "stored.json"
        words = [sys.executable, "-m", "pytest", "-q", "-rsf", "-p", "no:cacheprovider", f"--rootdir={project}",
                 f"--benchmark-json={stored}", "--benchmark-max-time=0.002", "--benchmark-min-rounds=2", *options]
        # Not a worker of the session that runs this test, or pytest-benchmark would time nothing.
        own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
        environment = {**own, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([*words, str(project)], capture_output=True, text=True, check=False, cwd=project,
                              env=environment, timeout=120)
        text = stored.read_text() if stored.exists() else ""
        return done.returncode, done.stdout + done.stderr, json.loads(text) if text else None

    return run


def test_only_the_right_arm_is_timed(session):
    code, output, stored = session("--benchmark-only")
    assert code == 1
    (kept,) = stored["benchmarks"]
    assert kept["params"] == {"case": "x/y/t/n=8,threads=1/cpu/right"}
    assert kept["group"] == "x/y:t[n=8,threads=1] on cpu"
    noted = kept["extra_info"]
    assert 0 <= noted["error"] <= noted["tolerance"] == 1e-12
    assert (noted["device"], noted["input_bytes"], noted["bytes_moved"]) == ("cpu", 64, 128.0)
    assert (noted["card_version"], noted["point"]) == (3, {"n": 8, "threads": 1})
    assert stored["machine_info"]["litmus"]["machine"]["key"] == this_machine().key
    assert "torch" in stored["machine_info"]["litmus"]["software"]
    assert "wrong: before being timed: error" in output and "exceeds the tolerance 1e-12" in output
    assert "crashed: ValueError: no such thing" in output
    assert "wrong: after being timed" in output, "the stale result is found without being timed"
    assert "peer is not installed" in output


def test_the_options_choose_the_cells_and_without_timing_the_tests_are_of_correctness(session):
    code, output, stored = session("--benchmark-disable", "--litmus-profile=small", "--litmus-select=y:t[n=64]")
    assert code == 1 and "1 passed" in output and "3 failed" in output and "1 skipped" in output
    assert not stored or not stored["benchmarks"]


def test_every_arm_of_every_speed_cell_is_a_case(project):
    cases = speed_cases(project, Request(profile="small"))
    assert len(cases) == 2 * 5 and len({case.id for case in cases}) == 10
    assert {case.cell.experiment for case in cases} == {"t"}
    with pytest.raises(LitmusError, match="no such suite"):
        speed_cases(project, Request(selectors=("z",)))


def test_a_proof_gives_calls_for_the_right_arms_alone(project):
    cell = speed_cases(project, Request(profile="smoke"))[0].cell
    proved = prove(cell, load_suite(project, "x/y"))
    assert {arm: record.status for arm, record in proved.records.items()} == {
        "right": "ok", "wrong": "wrong", "broken": "crashed", "absent": "skipped", "stale": "wrong",
    }
    assert proved.benches.keys() == {"right"} and len(proved.benches["right"].bound) == 2
    assert proved.call("right")() is None


def test_the_arms_of_a_cell_share_one_proof(project):
    cases = speed_cases(project, Request(profile="small"))
    bench = Bench(project)
    assert bench.proved(cases[0].cell) is bench.proved(cases[4].cell)
    assert bench.proved(cases[5].cell) is not bench.proved(cases[0].cell)


def test_a_cell_the_plan_leaves_out_is_skipped_with_its_reason(project):
    (case, *_) = speed_cases(project, Request(profile="smoke"))
    left_out = type(case)(case.cell, case.arm, "no CUDA device is visible")
    with pytest.raises(pytest.skip.Exception, match="no CUDA device"):
        Bench(project).run(left_out, None)


def test_times_of_another_machine_are_no_base():
    info = {}
    pytest_benchmark_update_machine_info(info)
    pytest_benchmark_compare_machine_info(info, {"machine_info": info})
    for other in ({}, {"litmus": {"machine": {"key": "another-1c-1g"}}}):
        with pytest.raises(pytest.UsageError, match="two machines"):
            pytest_benchmark_compare_machine_info(info, {"machine_info": other})
