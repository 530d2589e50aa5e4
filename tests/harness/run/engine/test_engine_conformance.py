"""What every engine must keep: the same numbers, every limit, order, cancelling, resuming, and nothing left behind."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import pytest

from harness.errors import LitmusError
from harness.plan.plan import Request
from harness.records.store import read_run_info, read_verdicts
from harness.run.journal import read_journal
from harness.run.lanes import Cancelled, run_cell
from harness.run.progress import Silent
from harness.run.protocol import cell_job
from harness.run.session import RunOptions, run

PLAIN = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        return {"m": float(seed) + (0.5 if arm == "b" else 0.0)}
"""
LEARNS = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))
        steps = torch.optim.SGD(net.parameters(), lr=0.1 if arm == "a" else 0.01)
        x, y = torch.randn(256, 64), torch.randn(256, 1)
        for _ in range(50):
            loss = ((net(x) - y) ** 2).mean()
            steps.zero_grad()
            loss.backward()
            steps.step()
        return {"m": loss.item()}
"""
SLEEPS = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        if arm == "b":
            time.sleep(60)
        return {"m": 0.0}
"""
SPEED = """
    from harness.declare.suite import Arm, Problem
    @suite.speed("t")
    def t(point, rng, device):
        def doubled(x, out): np.multiply(x, 2.0, out=out)
        def added(x, out): np.add(x, x, out=out)
        def wrong(x, out): np.add(x, 1.0, out=out)
        arms = {"a": Arm(doubled, 16e3, 1e3), "b": Arm(added, 16e3, 1e3), "c": Arm(wrong, 16e3, 1e3)}
        return Problem(inputs=lambda rng: (rng.standard_normal(1000),), buffers=lambda x: (np.empty_like(x),),
                       truth=lambda x: 2 * x, arms=arms, input_bytes=8000, tolerance=1e-12)
"""
STATEMENT = {"id": "b_is_larger", "statement": "s", "experiment": "t", "supported_if": "> 0.2", "refuted_if": "< 0.2",
             "estimate": {"difference": "m", "of": "b", "minus": "a"}}


def broken(what: str) -> str:
    """A trial whose arm ``bad`` does ``what``; the arms around it are well."""
    return f"""
    @suite.trial("t")
    def t(arm, point, seed, device):
        if arm == "bad":
            {what}
        return {{"m": 1.0}}
    """


def records_of(engine, root, cells, notes=None):
    """The records of all cells of the project: one for each arm, in order."""
    found = []
    for cell in cells(root):
        mine = []
        run_cell(engine, root, cell, cell.arms, mine.append, (notes if notes is not None else []).append)
        assert sorted(record.arm for record in mine) == sorted(cell.arms)
        assert {(record.cell, record.repro) for record in mine} == {(cell.id, f"litmus repro {cell.id}")}
        found += mine
    return found


def statuses(engine, root, cells):
    by_arm = {record.arm: record for record in records_of(engine, root, cells)}
    assert [by_arm[arm].status for arm in ("before", "after")] == ["ok", "ok"]
    return by_arm["bad"]


def test_trained_numbers_are_those_of_this_machine_to_the_last_bit(any_engine, engine, write_suite, cells):
    root = write_suite(LEARNS, seeds=2)
    here, there = records_of(engine, root, cells), records_of(any_engine, root, cells)
    assert [record.status for record in there] == ["ok"] * 4
    assert [(record.cell, record.arm, record.metrics) for record in there] == [
        (record.cell, record.arm, record.metrics) for record in here]


def test_messages_come_in_order_and_the_end_says_done(any_engine, write_suite, cells):
    root, messages = write_suite(PLAIN), []
    cell = cells(root)[0]
    ending = any_engine.execute(cell_job(cell, str(root), cell.arms), messages.append)
    assert ending.status == "done"
    assert [(message["kind"], message["record"]["arm"]) for message in messages] == [("record", "a"), ("record", "b")]


def test_arms_of_a_cell_run_in_one_process(any_engine, write_suite, cells):
    root = write_suite("""
    @suite.trial("t")
    def t(arm, point, seed, device):
        return {"m": float(os.getpid())}
    """, seeds=3)
    pids = Counter((record.cell, record.metrics["m"]) for record in records_of(any_engine, root, cells))
    assert sorted(pids.values()) == [2, 2, 2]


@pytest.mark.parametrize(("what", "status", "reason"), [
    ("time.sleep(60)", "timeout", "took longer than 1 s"),
    ("os.kill(os.getpid(), 11)", "crashed", "killed by SIGSEGV"),
    ("os._exit(3)", "crashed", "exited with code 3 before it was finished"),
    ("raise ValueError('no')", "crashed", "ValueError: no"),
    ("kept = bytearray(1500 << 20); kept[::4096] = b'x' * len(kept[::4096]); time.sleep(60)", "oom",
     "used more than 0.8 GiB"),
    ("raise SkipArm('not today')", "skipped", "not today"),
], ids=["hangs", "segfault", "exits", "raises", "memory", "skips"])
def test_an_arm_that_breaks_is_recorded_and_the_others_run(any_engine, write_suite, cells, what, status, reason):
    limits = {"timeout_s": 1} if status == "timeout" else {"memory_gib": 0.8} if status == "oom" else {}
    root = write_suite(broken(what), arms=["before", "bad", "after"], **{"timeout_s": 30, **limits})
    bad = statuses(any_engine, root, cells)
    assert (bad.status, bad.reason) == (status, reason)


def test_what_a_broken_arm_printed_last_is_kept(any_engine, write_suite, cells):
    root = write_suite(broken("time.sleep(0.5); print('the last words', flush=True); os._exit(1)"),
                       arms=["before", "bad", "after"])
    assert "the last words" in statuses(any_engine, root, cells).stderr_tail


def test_loading_and_preparing_have_their_own_limits(any_engine, write_suite, cells):
    root = write_suite("time.sleep(60)")
    cell = cells(root)[0]
    job = cell_job(cell, str(root), cell.arms)
    ending = any_engine.execute(replace(job, limits=replace(job.limits, startup_s=0.5)), lambda message: None)
    assert (ending.status, ending.arm, ending.reason) == ("timeout", None, "took longer to load than 0.5 s")
    write_suite("""
    @suite.trial("t")
    def t(arm, point, seed, device):
        suite.prepare("slow", {}, lambda config: time.sleep(60))
    """)
    ending = any_engine.execute(replace(job, limits=replace(job.limits, prepare_s=0.5)), lambda message: None)
    assert (ending.status, ending.arm) == ("timeout", "a")
    assert ending.reason == "preparing took longer than 0.5 s"


def test_a_speed_cell_is_proved_and_timed(any_engine, write_suite, cells):
    root = write_suite(SPEED, kind="speed", metrics={}, arms=["a", "b", "c"],
                       measure={"processes": 2, "rounds": 8, "min_sample_ms": 0.1},
                       claims=[{"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 1",
                                "refuted_if": "< 1", "estimate": {"ratio": "time", "of": "a", "to": "b"}}])
    a, b, c = records_of(any_engine, root, cells)
    assert [a.status, b.status, c.status] == ["ok", "ok", "wrong"]
    assert set(a.samples.process) == set(b.samples.process) == {0, 1}
    assert min(a.samples.elapsed_ns) > 0 and not c.samples.elapsed_ns


def test_an_error_in_the_listener_ends_the_worker_and_goes_on(any_engine, write_suite, cells):
    root = write_suite(PLAIN)
    cell = cells(root)[0]
    job = cell_job(cell, str(root), cell.arms)

    def refuse(message):
        raise LitmusError("the disk is full")

    with pytest.raises(LitmusError, match="disk is full"):
        any_engine.execute(job, refuse)
    assert any_engine.execute(job, lambda message: None).status == "done"


def test_cancelling_ends_what_runs_and_refuses_what_comes(kind, write_suite, cells):
    root = write_suite(SLEEPS)
    cell, endings, began = cells(root)[0], [], threading.Event()
    with kind(root) as own:
        own.ready()
        job = cell_job(cell, str(root), cell.arms)
        thread = threading.Thread(target=lambda: endings.append(own.execute(job, lambda message: began.set())))
        thread.start()
        assert began.wait(60)
        asked_s = time.monotonic()
        own.cancel()
        thread.join(15)
        assert [ending.status for ending in endings] == ["cancelled"]
        assert time.monotonic() - asked_s < 10
        assert own.execute(job, lambda message: None).status == "cancelled"
        with pytest.raises(Cancelled):
            run_cell(own, root, cell, ("a",), endings.append, lambda text: None)
    assert len(endings) == 1


def test_a_run_says_where_it_ran_and_gives_the_verdicts_of_this_machine(kind, engine, write_suite, tmp_path):
    root = write_suite(PLAIN, claims=[STATEMENT], seeds=6)
    with kind(root) as own:
        result = run(root, Request(), RunOptions(out=tmp_path / "there"), Silent(), own)
        name = own.about()["name"]
    assert result.counts == {"ok": 12}
    info = read_run_info(tmp_path / "there")
    assert info.engine["name"] == name
    assert info.machine["key"] and info.software["numpy"]
    run(root, Request(), RunOptions(out=tmp_path / "here"), Silent(), engine)
    assert read_verdicts(tmp_path / "there") == read_verdicts(tmp_path / "here")
    if name == "dask":
        records = read_journal(tmp_path / "there" / "journal.jsonl")[0]
        assert {record.worker["name"] for record in records} <= set(info.engine["workers"])
        assert {record.worker["machine"] for record in records} == {info.machine["key"]}
    if name == "docker":
        records = read_journal(tmp_path / "there" / "journal.jsonl")[0]
        assert {record.worker["image_id"] for record in records} == {info.engine["image_id"]}
        assert {len(record.worker["cores"]) for record in records} == {1}


def test_an_interrupted_run_goes_on_and_runs_no_finished_cell_again(kind, write_suite):
    root = write_suite("""
    @suite.trial("t")
    def t(arm, point, seed, device):
        time.sleep(0.1)
        return {"m": float(seed)}
    """, seeds=12)
    journal = root / "out" / "journal.jsonl"
    with kind(root) as own:
        progress = Silent()
        progress.recorded = lambda record: own.cancel() if record.seed == 2 else None
        assert run(root, Request(), RunOptions(out=root / "out"), progress, own).interrupted
    before = read_journal(journal)[0]
    assert 0 < len(before) < 24
    with kind(root) as own:
        assert run(root, Request(), RunOptions(resume=root / "out"), Silent(), own).counts == {"ok": 24}
    after = read_journal(journal)[0]
    assert after[: len(before)] == before
    assert sorted(Counter((record.cell, record.arm) for record in after).values()) == [1] * 24
