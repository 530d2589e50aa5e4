"""Trials that misbehave: each ends as its own status, the arms beside it are right, and nothing is left running."""

from __future__ import annotations

import math
import time

import pytest

from harness.run.engine.local import LocalEngine
from harness.run.lanes import run_cell

# What the arm `bad` does, the status it gets, and words of the reason.
CASES = {
    "segfault": ("ctypes.string_at(0)", "crashed", "SIGSEGV"),
    "abort": ("os.abort()", "crashed", "SIGABRT"),
    "raise": ("raise ValueError('the matrix is singular')", "crashed", "ValueError: the matrix is singular"),
    "sys.exit": ("sys.exit(0)", "crashed", "SystemExit"),
    "os._exit": ("os._exit(0)", "crashed", "exited with code 0"),
    "ctrl-c": ("raise KeyboardInterrupt", "crashed", "KeyboardInterrupt"),
    "memory error": ("raise MemoryError('no more')", "oom", "MemoryError"),
    "wrong name": ("return {'n': 1.0}", "crashed", "'n'"),
    "missing name": ("return {}", "crashed", "'m'"),
    "extra name": ("return {'m': 1.0, 'mm': 1.0}", "crashed", "'mm'"),
    "not a number": ("return {'m': 'one'}", "crashed", "not a number"),
    "a list": ("return {'m': [1.0, 2.0]}", "crashed", "not a number"),
    "nothing": ("return None", "crashed", "mapping"),
    "kills its own group": ("os.killpg(0, signal.SIGKILL)", "crashed", "SIGKILL"),
    "kills its parent's group": ("os.killpg(os.getpgid(os.getppid()), signal.SIGKILL); time.sleep(60)", "crashed",
                                 "supervisor"),
    "closes everything": ("os.closerange(0, 4096); return {'m': 1.0}", "crashed", "exited"),
    "peer is missing": ("raise SkipArm('bitsandbytes is not installed')", "skipped", "bitsandbytes is not installed"),
    "not testable": ("raise NotTestable('needs two machines')", "skipped", "needs two machines"),
}


def body(bad: str) -> str:
    return f"""
        @suite.trial("t")
        def t(arm, point, seed, device):
            if arm == "bad":
                {bad}
            return {{"m": 10.0 + seed}}
        """


@pytest.mark.parametrize("case", CASES)
def test_the_bad_arm_has_its_status_and_the_others_are_right(case, make_suite, run_all):
    bad, status, words = CASES[case]
    records = {record.arm: record for record in run_all(make_suite(body(bad)))}
    assert {"before", "bad", "after"} == set(records)
    assert records["bad"].status == status
    assert words in records["bad"].reason
    assert records["bad"].metrics == {}
    for arm in ("before", "after"):
        assert (records[arm].status, records[arm].metrics) == ("ok", {"m": 10.0})


def test_a_hang_is_ended_and_costs_only_its_own_time(make_suite, run_all):
    begin = time.monotonic()
    records = {record.arm: record for record in run_all(make_suite(body("time.sleep(600)"), timeout_s=2))}
    assert records["bad"].status == "timeout"
    assert records["bad"].reason == "took longer than 2 s"
    assert records["before"].status == records["after"].status == "ok"
    assert time.monotonic() - begin < 60


def test_a_hang_that_ignores_signals_is_ended(make_suite, run_all):
    deaf = "[signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; [None for _ in iter(int, 1)]"
    records = {record.arm: record for record in run_all(make_suite(body(deaf), timeout_s=2))}
    assert [records[arm].status for arm in ("before", "bad", "after")] == ["ok", "timeout", "ok"]


def test_allocating_without_end_is_oom(make_suite, run_all):
    grow = "kept = [bytes(bytearray(os.urandom(1)) * (16 << 20)) for _ in iter(int, 1)]"
    records = {record.arm: record for record in run_all(make_suite(body(grow), memory_gib=0.8))}
    assert records["bad"].status == "oom"
    assert records["bad"].reason == "used more than 0.8 GiB"
    assert records["before"].status == records["after"].status == "ok"


def test_memory_of_children_counts(make_suite, run_all):
    child = "kept = bytearray(700 << 20); kept[::4096] = b'x' * len(kept[::4096]); import time; time.sleep(60)"
    spread = f'[subprocess.Popen([sys.executable, "-c", {child!r}]) for _ in range(2)]; time.sleep(60)'
    records = {record.arm: record for record in run_all(make_suite(body(spread), memory_gib=1.2))}
    assert [records[arm].status for arm in ("before", "bad", "after")] == ["ok", "oom", "ok"]


def test_printing_megabytes_blocks_nothing_and_keeps_the_end(make_suite, run_all):
    shout = """
        for _ in range(300):
            print("x" * 100_000)
            print("y" * 1000, file=sys.stderr)
        print("the last words", flush=True)
        raise RuntimeError("enough")
    """
    inner = shout.replace("\n        ", "\n                ").strip()
    records = {record.arm: record for record in run_all(make_suite(body(inner)))}
    assert records["bad"].status == "crashed"
    assert "the last words" in records["bad"].stderr_tail
    assert "RuntimeError: enough" in records["bad"].stderr_tail
    assert len(records["bad"].stderr_tail) <= 8192
    assert records["before"].stderr_tail == records["after"].stderr_tail == ""
    assert records["after"].status == "ok"


def test_printing_does_not_spoil_a_good_arm(make_suite, run_all):
    records = {record.arm: record for record in run_all(make_suite(body("print('x' * 3_000_000)")))}
    assert [records[arm].status for arm in ("before", "bad", "after")] == ["ok", "ok", "ok"]


@pytest.mark.parametrize("leave", [
    "subprocess.Popen(['sleep', '600'])",
    "subprocess.Popen(['sleep', '600'], start_new_session=True)",
    "subprocess.Popen(['sh', '-c', 'setsid sh -c \"sleep 600 & setsid sleep 600\" & exit 0'])",
    "os.fork() or (os.setsid(), os.fork() or time.sleep(600), os._exit(0))",
    "[os.fork() or time.sleep(600) for _ in range(10)]",
], ids=["child", "own session", "daemons", "double fork", "ten forks"])
def test_children_left_behind_are_ended(leave, make_suite, run_all):
    """The check itself is in ``run_all``: nothing with the tests' mark is left."""
    records = {record.arm: record for record in run_all(make_suite(body(leave)))}
    assert [records[arm].status for arm in ("before", "bad", "after")] == ["ok", "ok", "ok"]


def test_children_of_a_crash_are_ended(make_suite, run_all):
    bad = "subprocess.Popen(['sleep', '600'], start_new_session=True); ctypes.string_at(0)"
    records = {record.arm: record for record in run_all(make_suite(body(bad)))}
    assert records["bad"].status == "crashed"


def test_children_of_a_killed_supervisor_are_ended(make_suite, run_all):
    bad = ("subprocess.Popen(['sleep', '600'], start_new_session=True); "
           "os.killpg(os.getpgid(os.getppid()), signal.SIGKILL); time.sleep(60)")
    records = {record.arm: record for record in run_all(make_suite(body(bad)))}
    assert [records[arm].status for arm in ("before", "bad", "after")] == ["ok", "crashed", "ok"]


def test_a_forked_child_that_returns_into_the_worker_hands_in_nothing(make_suite, run_all):
    records = run_all(make_suite(body("os.fork()")))
    assert [record.arm for record in records] == ["before", "bad", "after"]
    assert {record.status for record in records} == {"ok"}


def test_a_suite_that_cannot_be_imported_leaves_a_record_for_every_arm(make_suite, run_all):
    records = run_all(make_suite("import no_such_module_anywhere"))
    assert [record.status for record in records] == ["crashed"] * 3
    assert all("no_such_module_anywhere" in record.reason for record in records)


def test_a_suite_that_dies_while_it_is_imported_leaves_a_record_for_every_arm(make_suite, run_all):
    records = run_all(make_suite("ctypes.string_at(0)"))
    assert [(record.status, record.reason) for record in records] == [("crashed", "killed by SIGSEGV")] * 3


def test_a_missing_function_is_named(make_suite, run_all):
    records = run_all(make_suite("x = 1"))
    assert all("registers no trial function" in record.reason for record in records)


def test_a_zygote_that_is_killed_is_replaced(make_suite, tmp_path, marked, engine):
    project = make_suite(body("pass"))
    before = set(marked())
    with LocalEngine(tmp_path, 1) as own:
        for _ in range(2):
            records = []
            for cell in project.cells():
                run_cell(own, project.root, cell, cell.arms, records.append, lambda text: None)
            assert [record.status for record in records] == ["ok"] * 3
            own._zygote.process.kill()
            own._zygote.process.wait()
    assert set(marked()) == before


def test_non_finite_metrics_are_kept(make_suite, run_all):
    records = {record.arm: record for record in run_all(make_suite(body("return {'m': float('nan')}")))}
    assert records["bad"].status == "ok"
    assert math.isnan(records["bad"].metrics["m"])


def test_global_state_of_one_arm_does_not_reach_the_random_numbers_of_the_next(make_suite, run_all):
    project = make_suite("""
        import random
        import numpy as np
        import torch
        @suite.trial("t")
        def t(arm, point, seed, device):
            if arm == "bad":
                random.seed(1), np.random.seed(2), torch.manual_seed(3)
            return {"m": random.random() + float(np.random.rand()) + float(torch.rand(()))}
        """)
    records = {record.arm: record.metrics["m"] for record in run_all(project)}
    assert records["before"] == records["after"] != records["bad"]
