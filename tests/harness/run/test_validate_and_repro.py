"""What ``litmus validate`` finds, and one cell again in the foreground."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness.declare.catalog import Catalog
from harness.errors import LitmusError
from harness.plan.code import code_hash
from harness.plan.plan import Request
from harness.records.record import Record
from harness.records.store import RunInfo, write_records, write_run_info
from harness.run.progress import Silent
from harness.run.repro import find_cell, repro
from harness.run.session import RunOptions, run
from harness.run.validate import validate
from harness.run.workspace import Need, stored_needs

GOOD = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        return {"m": 1.0 + float(np.random.rand())}

    @suite.oracle
    def one_is_one():
        assert 1 == 1
"""


@pytest.fixture
def checks(engine):
    """checks(root): name -> (ok, detail)."""
    return lambda root: {item.name: (item.ok, item.detail) for item in validate(root, "x/y", Silent(), engine)}


def test_a_good_suite_passes(write_suite, checks):
    found = checks(write_suite(GOOD))
    assert all(ok for ok, _ in found.values()), found
    assert set(found) == {"card", "functions", "estimates", "tuned.yaml", "oracles", "smoke run", "smoke budget",
                          "workspace", "claims", "determinism"}
    assert found["workspace"] == (True, "no arm declares one")
    assert "2 trials repeated" in found["determinism"][1]
    assert "one_is_one" in found["oracles"][1]


def test_faults_are_found_each_by_its_check(write_suite, checks):
    body = """
    @suite.trial("t")
    def t(arm, point, sed, device):
        return {"m": 1.0}

    @suite.oracle
    def never():
        assert 1 == 2, "one is not two"

    @suite.oracle
    def always():
        pass
    """
    claims = [{"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0", "refuted_if": "< 0",
               "estimate": {"custom": "spread"}}]
    found = checks(write_suite(body, claims=claims))
    assert not found["functions"][0]
    assert "sed" in found["functions"][1]
    assert found["estimates"] == (False, "no @suite.estimate('spread')")
    assert found["oracles"] == (False, "never: AssertionError: one is not two")
    assert not found["smoke run"][0]


HUNGRY = """
    from harness.declare.suite import Arm, Problem

    def hungry(x, out):
        scratch = np.ones(8 * 2**20)
        np.multiply(x, scratch[0] + 1.0, out=out)

    def modest(x, out):
        np.multiply(x, 2.0, out=out)

    @suite.speed("t")
    def t(point, rng, device):
        arms = {"modest": Arm(modest, 1.0, 1.0, workspace_bytes=0), "silent": Arm(hungry, 1.0, 1.0),
                "honest": Arm(hungry, 1.0, 1.0, workspace_bytes=8 * 8 * 2**20),
                "liar": Arm(hungry, 1.0, 1.0, workspace_bytes=0)}
        return Problem(inputs=lambda rng: (rng.random(1000),), buffers=lambda x: (np.empty_like(x),),
                       truth=lambda x: 2.0 * x, arms=arms, input_bytes=8000, tolerance=1e-9)

    @suite.oracle
    def one_is_one():
        assert 1 == 1
"""
QUICK = {"kind": "speed", "arms": ["modest", "silent", "honest", "liar"], "metrics": {},
         "measure": {"processes": 1, "rounds": 2, "min_sample_ms": 0.1},
         "claims": [{"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0", "refuted_if": "< 0",
                     "estimate": {"mean": "time", "of": "modest"}}]}


def test_an_arm_that_allocates_more_than_it_declares_is_found(write_suite, checks):
    ok, detail = checks(write_suite(HUNGRY, **QUICK))["workspace"]
    assert not ok
    assert detail.startswith("t[] liar on cpu needs 6") and "declares 0.0 MiB" in detail and ";" not in detail


def test_the_newest_stored_run_of_the_same_code_is_checked_too(write_suite):
    root = write_suite(HUNGRY, **QUICK)
    entry = Catalog(root).get("x/y")
    code = code_hash(root, entry.folder)
    common = Record(cell="c", suite="x/y", experiment="t", kind="speed", arm="liar", point={"n": 4}, seed=0,
                    device="cpu", profile="small", status="ok", card_version=1, code=code, peak_bytes=2**26)

    def store(name, code, *records):
        folder = root / "results" / "machine" / name
        write_records(folder, records)
        write_run_info(folder, RunInfo(run=name, started_at=1.0, profile="small", litmus="0",
                                       cards={"x/y": {"version": 1, "code": code}}))

    store("other", "older code", replace(common, workspace_bytes=0.0, arm="other"))
    assert stored_needs(root, entry) == []
    liar, kept = replace(common, workspace_bytes=0.0), replace(common, workspace_bytes=2.0**26, arm="kept")
    others = [replace(common, arm="silent"), replace(liar, status="crashed"), replace(liar, kind="trial"),
              replace(liar, suite="x/z")]
    store("mine", code, liar, kept, *others)
    found = stored_needs(root, entry)
    assert [need.label for need in found] == ["t[n=4] liar on cpu", "t[n=4] kept on cpu"]
    assert found[0].fault == "t[n=4] liar on cpu needs 64.0 MiB, declares 0.0 MiB beside a result of 0.0 MiB"
    assert found[1].fault is None


def test_a_result_and_small_change_are_no_workspace():
    need = Need("a", workspace_bytes=2**20, returned_bytes=2**20, peak_bytes=2**22, input_bytes=0)
    assert need.fault is None
    assert replace(need, peak_bytes=2**22 + 2**18).fault
    assert replace(need, peak_bytes=2**22 + 2**18, returned_bytes=2**21).fault is None


def test_a_trial_that_depends_on_the_process_is_not_deterministic(write_suite, checks):
    body = GOOD.replace("float(np.random.rand())", "os.getpid()")
    ok, detail = checks(write_suite(body))["determinism"]
    assert not ok
    assert "t a: m differs" in detail


def test_an_oracle_that_dies_is_a_fault_and_no_oracle_too(write_suite, checks):
    dying = checks(write_suite(GOOD.replace("assert 1 == 1", "os._exit(3)")))["oracles"]
    assert dying == (False, "one_is_one: exited with code 3 before it was finished")
    none = checks(write_suite(GOOD.split("@suite.oracle", maxsplit=1)[0]))["oracles"]
    assert not none[0]


def test_a_suite_that_cannot_be_imported_is_refused(write_suite, checks):
    with pytest.raises(LitmusError, match="cannot be loaded") as refusal:
        checks(write_suite("import no_such_module"))
    assert "no_such_module" in str(refusal.value)


def test_missing_and_old_winners_are_reported(write_suite, checks):
    body = GOOD.replace("device):", "device, tuned):")
    tune = {"metric": "m", "grid": {"a": {"lr": [0.1]}, "b": {"lr": [0.2]}}}
    root = write_suite(body, tune=tune)
    ok, detail = checks(root)["tuned.yaml"]
    assert not ok
    assert "no winner for a, b" in detail
    (root / "suites" / "x" / "y" / "tuned.yaml").write_text(
        "experiments: {t: {command: c, commit: c, code: older, metric: m, seeds: [1], point: {}, arms: {"
        "a: {values: {lr: 0.1}, trials: []}, b: {values: {lr: 0.2}, trials: []}}}}")
    ok, detail = checks(root)["tuned.yaml"]
    assert ok
    assert "older code" in detail


NOISY = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        print("this is", arm, "at", point["n"], "seed", seed)
        if arm == "b":
            os.kill(os.getpid(), 11)
        return {"m": 1.0}
"""


@pytest.fixture
def noisy(write_suite) -> Path:
    return write_suite(NOISY, axes={"n": [1, 2]}, seeds=2)


def test_a_cell_is_run_attached_to_the_terminal(noisy, cells):
    cell = cells(noisy)[-1]
    code = ("from pathlib import Path; from harness.run.repro import repro\n"
            f"print([(r.arm, r.status, r.reason, r.cell) for r in repro(Path({str(noisy)!r}), {cell.id!r})])")
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "this is a at 2 seed 1" in done.stdout
    assert "this is b at 2 seed 1" in done.stdout
    assert f"[('a', 'ok', None, '{cell.id}'), ('b', 'crashed', 'killed by SIGSEGV', '{cell.id}')]" in done.stdout


def test_cells_are_found_by_id_by_label_and_in_stored_runs(noisy, cells, engine):
    cell = cells(noisy)[-1]
    assert find_cell(noisy, cell.id) == cell
    assert find_cell(noisy, "x/y:t[n=2]").point == {"n": 2}
    folder = noisy / "results" / "machine" / "one"
    run(noisy, Request(seeds=4), RunOptions(out=folder), Silent(), engine)
    from harness.records.store import load_records

    table = load_records(folder)
    extra = table[table["seed"] == 3].iloc[0]
    assert find_cell(noisy, extra["cell"]).seed == 3
    suite = noisy / "suites" / "x" / "y" / "suite.py"
    suite.write_text(suite.read_text() + "changed = 1\n")
    with pytest.raises(LitmusError, match="have changed since"):
        find_cell(noisy, extra["cell"])
    with pytest.raises(LitmusError, match="no such cell"):
        find_cell(noisy, "0123456789abcdef")


def test_only_the_arms_asked_for_are_run(noisy, cells, capfd):
    (record,) = repro(noisy, cells(noisy)[0].id, ("a",))
    assert (record.arm, record.status) == ("a", "ok")
    assert "this is a at 1 seed 0" in capfd.readouterr().out
