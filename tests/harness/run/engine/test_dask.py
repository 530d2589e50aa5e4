"""What only a cluster can meet: workers that are lost, that differ, or that are not there; and who may be talked to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import harness
from harness.errors import LitmusError
from harness.plan.machine import Device, Machine, this_machine
from harness.plan.plan import Request
from harness.records.store import read_run_info
from harness.run.engine.address import checked_address
from harness.run.engine.crew import Crew, Need
from harness.run.engine.dask import DaskEngine
from harness.run.engine.dask_worker import Member
from harness.run.journal import read_journal
from harness.run.lanes import run_cell
from harness.run.progress import Silent
from harness.run.session import RunOptions, run

NEEDS_DASK = "dask.distributed is not installed: pip install 'litmus-harness[dask]'"
QUICK = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        return {"m": float(seed)}
"""
# Its dask worker is the parent of the zygote, which is the parent of the supervisor.
KILLS = """
    def parent(pid):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

    @suite.trial("t")
    def t(arm, point, seed, device):
        if arm == "bad" and not (HERE / f"spared{seed}").exists():
            if seed == 0:
                (HERE / "spared0").touch()
            os.kill(parent(parent(os.getppid())), 9)
            time.sleep(60)
        return {"m": 1.0}
"""


def test_five_hundred_cells_outlive_a_worker(two_processes, write_suite):
    address, workers = two_processes
    root = write_suite(QUICK, arms=["a"], seeds=500)

    class KillHalfway(Silent):
        count = 0

        def recorded(self, record):
            self.count += 1
            if self.count == 250:
                workers["left"].kill()

    with DaskEngine(root, address, ["x/y"]) as engine:
        result = run(root, Request(), RunOptions(out=root / "out"), KillHalfway(), engine)
    assert result.counts == {"ok": 500}
    records = read_journal(root / "out" / "journal.jsonl")[0]
    assert len(records) == 500
    assert Counter((record.cell, record.arm) for record in records).most_common(1)[0][1] == 1
    assert {record.metrics["m"] for record in records} == set(map(float, range(500)))
    assert Counter(record.worker["name"] for record in records)["left"] >= 50
    assert set(read_run_info(root / "out").engine["workers"]) == {"left", "right"}


def test_a_lost_workers_cell_is_tried_elsewhere_and_its_history_kept(two_processes, write_suite, cells):
    address, _ = two_processes
    root = write_suite(KILLS, arms=["before", "bad", "after"])
    with DaskEngine(root, address, ["x/y"]) as engine:
        engine.ready()
        records = []
        run_cell(engine, root, cells(root)[0], ("before", "bad", "after"), records.append, lambda text: None)
    assert [(record.arm, record.status) for record in records] == [("before", "ok"), ("bad", "ok"), ("after", "ok")]
    lost = records[1].worker["lost"]
    assert len(lost) == 1 and lost[0]["name"] != records[1].worker["name"]
    if records[0].worker["name"] == lost[0]["name"]:  # else its message went down with the worker, and it ran again
        assert "lost" not in records[0].worker


@pytest.mark.parametrize("workers", [["w1", "w2", "w3", "w4"]])
def test_a_cell_that_takes_three_workers_down_is_given_up(workers, write_suite, cells, cluster_of):
    root = write_suite(KILLS, arms=["bad"], seeds=2)
    cell = next(cell for cell in cells(root) if cell.seed == 1)
    with cluster_of(workers) as (address, _), DaskEngine(root, address, ["x/y"]) as engine:
        engine.ready()
        records = []
        run_cell(engine, root, cell, cell.arms, records.append, lambda text: None)
    (record,) = records
    assert (record.status, len(record.worker["lost"])) == ("crashed", 3)
    assert record.reason.startswith("its worker was lost 3 times: w")


def test_a_device_that_no_worker_has_is_said_at_once(two_processes, write_suite, cells):
    address, _ = two_processes
    root = write_suite(QUICK)
    cell = replace(cells(root)[0], device="cuda:3")
    records = []
    with DaskEngine(root, address) as engine:
        began_s = time.monotonic()
        run_cell(engine, root, cell, cell.arms, records.append, lambda text: None)
        assert time.monotonic() - began_s < 5
    assert {(record.status, record.reason, record.started_at) for record in records} == {
        ("skipped", "missing_device: no worker of the cluster is left for cuda:3", 0.0)}


def test_what_a_killed_client_left_running_ends(two_processes, write_suite, cells):
    address, _ = two_processes
    root = write_suite("""
    @suite.trial("t")
    def t(arm, point, seed, device):
        (HERE / "pid").write_text(str(os.getpid()))
        time.sleep(300)
    """, timeout_s=600)
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1]), "LITMUS_ROOT": str(root)}
    command = [sys.executable, "-m", "harness", "run", "--engine", "dask", "--scheduler", address, "--out", "out"]
    client = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        told = root / "suites" / "x" / "y" / "pid"
        _until(told.exists)
        _until(lambda: told.read_text() != "")
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    _until(lambda: not Path(f"/proc/{told.read_text()}").exists())


def _until(true, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


@pytest.mark.parametrize(("text", "address"), [
    ("127.0.0.1:8786", "tcp://127.0.0.1:8786"), ("tcp://localhost:1", "tcp://localhost:1"),
    ("tcp://[::1]:8786", "tcp://[::1]:8786"), ("tls://head.example:8786", "tls://head.example:8786"),
    ("wss://head.example:443", "wss://head.example:443"),
])
def test_loopback_and_tls_may_be_used(text, address):
    assert checked_address(text, insecure=False) == address


@pytest.mark.parametrize("text", ["tcp://10.0.0.1:8786", "head.example:8786", "ws://head.example:80",
                                  "tcp://localhost.example:8786", "tcp://127.0.0.1.example:8786"])
def test_another_machine_without_tls_needs_a_word(text):
    with pytest.raises(LitmusError, match="without TLS") as refusal:
        checked_address(text, insecure=False)
    assert "--insecure" in refusal.value.next_step
    assert checked_address(text, insecure=True).endswith(text)


@pytest.mark.parametrize("text", ["", "head", "tcp://", "tcp://head", "http://head:80", "tcp://head:port", "tcp://[::1"])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(LitmusError, match="not the address of a scheduler"):
        checked_address(text, insecure=True)


def test_a_scheduler_that_is_not_there_is_named(tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason=NEEDS_DASK)
    monkeypatch.setattr("harness.run.engine.dask._END_S", 0.5)
    with pytest.raises(LitmusError, match="does not answer"):
        DaskEngine(tmp_path, "tcp://127.0.0.1:9")


class FakeClient:
    """A cluster whose workers describe themselves as told; ``there`` may change."""

    class scheduler:
        address = "tcp://127.0.0.1:1"

    def __init__(self, *members: Member) -> None:
        self.there = {member.address: member for member in members}

    def nthreads(self):
        return dict.fromkeys(self.there, 1)

    def run(self, function, *words, workers, on_error):
        return {address: self.there[address] for address in workers}


def machine(cpu: str, *devices: str) -> Machine:
    return replace(this_machine(), cpu=cpu, devices=tuple(Device(name, name, 1) for name in ("cpu", *devices)))


def member(name: str, cpu: str = "fast", devices: tuple[str, ...] = (), **changes) -> Member:
    made = Member(address=f"tcp://{name}", name=name, machine=machine(cpu, *devices), software={"numpy": "2"},
                  litmus=harness.__version__, code={}, slots=4, devices=("cpu", *devices))
    return replace(made, **changes)


def crew_of(monkeypatch, *members: Member) -> tuple[Crew, FakeClient]:
    monkeypatch.setattr("harness.run.engine.crew._REFRESH_S", 0.0)
    client = FakeClient(*members)
    return Crew(client, Path("/nowhere"), []), client


def names(members: list[Member]) -> list[str]:
    return [item.name for item in members]


def alone(crew: Crew, device: str) -> list[Member]:
    return crew.able(Need(device, crew.machine.key, alone=True))


def test_timing_stays_on_one_worker_of_the_kind_with_the_most_devices(monkeypatch):
    crew, client = crew_of(monkeypatch, member("a"), member("b"), member("c", "gpu host", ("cuda:0",)),
                           member("d", "gpu host", ("cuda:0",)))
    assert crew.machine.cpu == "gpu host"
    assert names(crew.able(Need("cpu"))) == ["a", "b", "c", "d"]
    assert names(crew.able(Need("cuda:0"))) == ["c", "d"]
    assert names(alone(crew, "cpu")) == names(alone(crew, "cuda:0")) == ["c"]
    client.there.pop("tcp://c")
    crew.refresh()
    assert names(alone(crew, "cpu")) == names(alone(crew, "cuda:0")) == ["d"]
    client.there.pop("tcp://d")
    crew.refresh()
    assert alone(crew, "cpu") == [], "another kind of machine is no place for what was timed on this one"
    assert names(crew.able(Need("cpu"))) == ["a", "b"]


def test_who_gives_no_device_takes_trials_only(monkeypatch):
    crew, _ = crew_of(monkeypatch, replace(member("a"), devices=()))
    assert names(crew.able(Need("cpu"))) == ["a"]
    assert alone(crew, "cpu") == []
    assert crew.given_up(Need("cpu", crew.machine.key, alone=True)), "nobody ever could: said at once"


def test_a_newcomer_is_met_and_a_stranger_left_out(monkeypatch):
    crew, client = crew_of(monkeypatch, member("a"))
    for late in (member("b"), member("c", software={"numpy": "1"}), member("d", litmus="0.0")):
        client.there[late.address] = late
    crew.refresh()
    assert names(crew.able(Need("cpu"))) == ["a", "b"]
    said = dict(crew.left_out.values())
    assert said["c"] == "other libraries: numpy 1 instead of 2"
    assert said["d"].startswith("it has litmus 0.0")


def test_workers_with_other_code_cannot_run_the_project(monkeypatch, write_suite):
    root = write_suite(QUICK)
    monkeypatch.setattr("harness.run.engine.crew._FIRST_S", 0.1)
    with pytest.raises(LitmusError, match="no worker of the cluster") as refusal:
        Crew(FakeClient(member("a", code={"x/y": "0"}), member("b")), root, ["x/y"])
    assert refusal.value.value == "a: it has other code of x/y; b: it has no x/y"


def test_a_place_that_is_gone_is_waited_for_a_while(monkeypatch):
    crew, client = crew_of(monkeypatch, member("a"))
    client.there.clear()
    crew.refresh()
    assert crew.able(Need("cpu")) == []
    assert not crew.given_up(Need("cpu"))
    monkeypatch.setattr("harness.run.engine.crew._RETURN_S", -1.0)
    assert crew.given_up(Need("cpu"))
    assert crew.given_up(Need("cuda:0")), "nobody ever had it"
