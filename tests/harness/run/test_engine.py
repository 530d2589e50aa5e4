"""The local engine: limits, fresh interpreters, cancelling, one thread, nothing heavy in the parent."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness.errors import LitmusError
from harness.run.engine.local import LocalEngine
from harness.run.lanes import Cancelled, run_cell
from harness.run.protocol import Ending, Limits, cell_job

BODY = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        return {"m": float(os.getpid())}
"""
SLEEPS = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        time.sleep(60)
        return {"m": 0.0}
"""


def job_of(root, cells, **limits):
    cell = cells(root)[0]
    job = cell_job(cell, str(root), cell.arms)
    return replace(job, limits=replace(job.limits, **limits))


def test_messages_come_in_order_and_the_end_says_done(write_suite, engine, cells):
    messages = []
    ending = engine.execute(job_of(write_suite(BODY), cells), messages.append)
    assert ending == Ending("done")
    assert [(message["kind"], message["record"]["arm"]) for message in messages] == [("record", "a"), ("record", "b")]


def test_a_fresh_interpreter_runs_the_same_job(write_suite, engine, cells):
    messages = []
    job = replace(job_of(write_suite(BODY), cells), fresh=True)
    assert engine.execute(job, messages.append) == Ending("done")
    assert [message["record"]["status"] for message in messages] == ["ok", "ok"]


def test_loading_a_suite_has_its_own_limit(write_suite, engine, cells):
    job = job_of(write_suite("time.sleep(60)"), cells, startup_s=0.5)
    ending = engine.execute(job, lambda message: None)
    assert (ending.status, ending.arm, ending.reason) == ("timeout", None, "took longer to load than 0.5 s")


def test_preparing_has_its_own_limit(write_suite, engine, cells):
    body = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        suite.prepare("slow", {}, lambda config: time.sleep(60))
    """
    ending = engine.execute(job_of(write_suite(body), cells, prepare_s=0.5), lambda message: None)
    assert (ending.status, ending.arm) == ("timeout", "a")
    assert ending.reason == "preparing took longer than 0.5 s"


def test_an_error_in_the_listener_ends_the_worker_and_goes_on(write_suite, engine, cells):
    def refuse(message):
        raise LitmusError("the disk is full")

    with pytest.raises(LitmusError, match="disk is full"):
        engine.execute(job_of(write_suite(BODY), cells), refuse)
    assert engine.execute(job_of(write_suite(BODY), cells), lambda message: None) == Ending("done")


def test_cancelling_ends_what_runs_and_refuses_what_comes(write_suite, cells, tmp_path):
    root = write_suite(SLEEPS)
    endings = []
    with LocalEngine(tmp_path, slots=1) as engine:
        engine.ready()
        job = job_of(root, cells)
        thread = threading.Thread(target=lambda: endings.append(engine.execute(job, lambda message: None)))
        thread.start()
        time.sleep(0.3)
        engine.cancel()
        thread.join(10)
        assert [ending.status for ending in endings] == ["cancelled"]
        assert engine.execute(job, lambda message: None).status == "cancelled"
        with pytest.raises(Cancelled):
            run_cell(engine, root, cells(root)[0], ("a",), endings.append, lambda text: None)
    assert len(endings) == 1


def test_trials_have_one_thread_and_equal_hashes(write_suite, run_records):
    body = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        import numba, threadpoolctl
        x = torch.ones(400, 400) @ torch.ones(400, 400)
        np.ones((400, 400)) @ np.ones((400, 400))
        pools = [pool["num_threads"] for pool in threadpoolctl.threadpool_info()]
        found = torch.get_num_threads(), numba.get_num_threads(), max(pools)
        assert found == (1, 1, 1), found
        assert torch.are_deterministic_algorithms_enabled()
        assert len(os.listdir("/proc/self/task")) <= 2, os.listdir("/proc/self/task")
        return {"m": float(hash("litmus") % 1000003)}
    """
    records = run_records(write_suite(body, seeds=2))
    assert [(record.status, record.reason) for record in records] == [("ok", None)] * 4
    assert len({record.metrics["m"] for record in records}) == 1


def test_each_arm_has_its_own_peak_of_memory(write_suite, run_records):
    body = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        held = np.ones((64 if arm == "a" else 4) << 17)
        return {"m": float(held[0])}
    """
    large, small = run_records(write_suite(body))
    assert 64 << 20 <= large.peak_bytes < 96 << 20
    assert small.peak_bytes < 16 << 20


def test_the_zygote_has_one_thread(engine):
    engine.ready()
    assert len(list(Path(f"/proc/{engine._zygote.process.pid}/task").iterdir())) == 1


def test_preloading_what_suites_use_starts_no_thread(tmp_path):
    modules = ["scipy.stats", "sklearn.datasets", "sklearn.datasets.load_digits", "pandas", "antigravity", "no_module"]
    with LocalEngine(tmp_path, 1, modules) as engine:
        engine.ready()
        pid = engine._zygote.process.pid
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
        loaded = Path(f"/proc/{pid}/maps").read_text()
    assert "scipy/stats" in loaded
    assert "sklearn" in loaded


def test_tuned_values_reach_the_trial(write_suite, engine, cells):
    body = """
    @suite.trial("t")
    def t(arm, point, seed, device, tuned):
        return {"m": tuned["lr"]}
    """
    tune = {"metric": "m", "grid": {"a": {"lr": [0.1]}, "b": {"lr": [0.2]}}}
    root = write_suite(body, tune=tune)
    (root / "suites" / "x" / "y" / "tuned.yaml").write_text(
        "experiments: {t: {command: c, commit: c, code: c, metric: m, seeds: [1], point: {}, arms: {"
        "a: {values: {lr: 0.1}, trials: []}, b: {values: {lr: 0.2}, trials: []}}}}")
    records = []
    (cell,) = cells(root)
    run_cell(engine, root, cell, cell.arms, records.append, lambda text: None)
    assert [record.metrics for record in records] == [{"m": 0.1}, {"m": 0.2}]
    assert [record.tuned for record in records] == [{"lr": 0.1}, {"lr": 0.2}]


def test_a_worker_process_that_cannot_start_is_refused(tmp_path, monkeypatch):
    broken = tmp_path / "torch"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ImportError('libtorch is broken')")
    with LocalEngine(tmp_path, slots=1) as engine, pytest.raises(LitmusError, match="cannot start") as refusal:
        engine.ready()
    assert "libtorch is broken" in str(refusal.value)


def test_the_parent_imports_nothing_heavy():
    code = ("import sys, harness.run.session, harness.run.tune, harness.run.validate, harness.run.repro, "
            "harness.run.lanes, harness.run.speed; print({'torch', 'numba'} & set(sys.modules))")
    path = str(Path(harness.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=path, check=True)
    assert done.stdout.strip() == "set()"


def test_limits_survive_the_protocol(write_suite, cells):
    job = job_of(write_suite(BODY), cells)
    assert type(job).from_json(job.to_json()) == job
    assert isinstance(job.limits, Limits)
