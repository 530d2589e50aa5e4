"""What only containers can meet: no daemon, no image, limits of their own, being killed, a client that is gone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import harness
from harness.cli.options import parse_engine
from harness.errors import LitmusError
from harness.plan.plan import Request
from harness.records.store import read_run_info
from harness.run.engine import container
from harness.run.engine.choice import EngineChoice
from harness.run.journal import read_journal
from harness.run.lanes import run_cell
from harness.run.progress import Silent
from harness.run.session import RunOptions, run

THREE = ["before", "bad", "after"]
QUICK = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        return {"m": 1.0}
"""
SLEEPS = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        time.sleep(300 if arm == "bad" else 0)
        return {"m": 1.0}
"""
LOOKS = """
    import socket
    def refused(what):
        try:
            what()
        except OSError:
            return 1.0
        return 0.0

    @suite.trial("t")
    def t(arm, point, seed, device):
        Path("/tmp/scratch").write_text("may be written")
        return {
            "unprivileged": float(os.getuid() != 0),
            "project": refused(lambda: (HERE / "made").write_text("")),
            "root": refused(lambda: Path("/usr/made").write_text("")),
            "network": refused(lambda: socket.create_connection(("192.0.2.1", 80), timeout=2)),
            "devices": float(len(os.listdir("/sys/class/net"))),
            "cores": float(len(os.sched_getaffinity(0))),
            "settings": float(os.environ["NPY_SETTING"] == "kept" and "OTHER_SETTING" not in os.environ),
        }
"""


@pytest.fixture
def daemon():
    """The SDK's client, where a daemon answers."""
    docker = pytest.importorskip("docker")
    client = docker.from_env()
    yield client
    client.close()


def containers(daemon, root: Path) -> list:
    """Those for this test's project, whatever their state; other runs may have theirs on the same daemon."""
    found = daemon.containers.list(all=True, filters={"label": "litmus.run"}, ignore_removed=True)
    return [item for item in found if item.attrs["Config"]["WorkingDir"] == str(root)]


def running(daemon, root: Path) -> list:
    return [item for item in containers(daemon, root) if item.status == "running"]


def records_of(engine, root, cells) -> list:
    found = []
    for cell in cells(root):
        run_cell(engine, root, cell, cell.arms, found.append, lambda text: None)
    return found


def test_what_a_cell_cannot_do_and_what_its_record_says(docker_engine, write_suite, cells, monkeypatch):
    monkeypatch.setenv("NPY_SETTING", "kept")
    monkeypatch.setenv("OTHER_SETTING", "not kept")
    names = ["unprivileged", "project", "root", "network", "devices", "cores", "settings"]
    root = write_suite(LOOKS, arms=["a"], memory_gib=1, metrics={name: {"better": "none"} for name in names},
                       claims=[{"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0",
                                "refuted_if": "< 0", "estimate": {"mean": "network", "of": "a"}}])
    with docker_engine(root) as engine:
        (record,) = records_of(engine, root, cells)
        about = engine.about()
    assert (record.status, record.reason) == ("ok", None)
    assert record.metrics == dict.fromkeys(names, 1.0)
    assert record.worker == {"image_id": about["image_id"], "cores": record.worker["cores"], "gpu": False,
                             "memory_bytes": 4 * 2**30}
    assert about["image_id"].startswith("sha256:") and about["network"] == "none"


def test_the_containers_own_bound_trips_as_oom(docker_engine, write_suite, cells, monkeypatch):
    root = write_suite("""
    @suite.trial("t")
    def t(arm, point, seed, device):
        if arm == "bad":
            kept = bytearray(2 << 30)
            kept[::4096] = b"x" * len(kept[::4096])
        return {"m": 1.0}
    """, arms=THREE, memory_gib=3)
    monkeypatch.setattr("harness.run.engine.docker.OWN_BYTES", -2 * 2**30)
    with docker_engine(root) as engine:
        records = records_of(engine, root, cells)
    assert {record.arm: record.status for record in records} == {"before": "ok", "bad": "oom", "after": "ok"}
    assert "memory" in next(record.reason for record in records if record.arm == "bad")


def test_a_killed_container_costs_the_arm_it_was_in(docker_engine, write_suite, cells, daemon):
    root = write_suite(SLEEPS, arms=THREE, timeout_s=200)
    found = []

    def emit(record):
        found.append(record)
        if record.arm == "before":
            _kill_soon(daemon, root)

    with docker_engine(root) as engine:
        (cell,) = cells(root)
        run_cell(engine, root, cell, cell.arms, emit, lambda text: None)
    assert [(record.arm, record.status, record.reason) for record in found] == [
        ("before", "ok", None), ("bad", "crashed", "its container was killed"), ("after", "ok", None)]


def _kill_soon(daemon, root: Path) -> None:
    def kill() -> None:
        time.sleep(0.5)
        for item in running(daemon, root):
            item.kill()

    threading.Thread(target=kill).start()


def test_a_container_that_was_killed_between_two_cells_is_made_anew(docker_engine, write_suite, cells, daemon):
    root = write_suite(QUICK, arms=["a"])
    with docker_engine(root) as engine:
        (first,) = records_of(engine, root, cells)
        for item in containers(daemon, root):
            item.kill()
        (second,) = records_of(engine, root, cells)
    assert (first.status, second.status) == ("ok", "ok")


def test_a_container_that_falls_silent_is_a_timeout(docker_engine, write_suite, cells, daemon, monkeypatch):
    root = write_suite(SLEEPS, arms=["bad"], timeout_s=1, claims=[
        {"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0", "refuted_if": "< 0",
         "estimate": {"mean": "m", "of": "bad"}}])
    with docker_engine(root) as engine:
        engine.ready()
        monkeypatch.setattr(container, "GRACE_S", -(60 + 1 + 900 + 1) + 3)  # beyond it there is a job's own limits' sum
        threading.Timer(0.5, lambda: [item.pause() for item in containers(daemon, root)]).start()
        (record,) = records_of(engine, root, cells)
    assert record.status == "timeout"
    assert containers(daemon, root) == []


def test_nothing_is_left_of_an_engine(docker_engine, write_suite, cells, daemon):
    root = write_suite(QUICK, arms=["a"])
    with docker_engine(root) as engine:
        records_of(engine, root, cells)
        assert containers(daemon, root)
    assert containers(daemon, root) == []


def test_what_a_killed_client_left_running_ends(docker_engine, write_suite, daemon):
    root = write_suite(SLEEPS, arms=["bad"], timeout_s=600, claims=[
        {"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0", "refuted_if": "< 0",
         "estimate": {"mean": "m", "of": "bad"}}])
    image = os.environ.get("LITMUS_TEST_IMAGE", "litmus:cpu")
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1]), "LITMUS_ROOT": str(root)}
    command = [sys.executable, "-m", "harness", "run", "--engine", "docker", "--image", image, "--out", "out"]
    client = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: any(len(item.top()["Processes"]) > 3 for item in running(daemon, root)))
    finally:
        client.send_signal(signal.SIGKILL)
        client.wait()
    _until(lambda: not running(daemon, root))
    for item in containers(daemon, root):
        item.remove(force=True)


def _until(true, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.1)


def test_a_run_goes_on_with_the_image_that_it_began_with(docker_engine, write_suite):
    root = write_suite(QUICK, arms=["a"], seeds=2)
    with docker_engine(root) as engine:
        progress = Silent()
        progress.recorded = lambda record: engine.cancel()
        assert run(root, Request(), RunOptions(out=root / "out"), progress, engine).interrupted
    before = read_run_info(root / "out")
    assert EngineChoice.of(before.engine).image == before.engine["image_id"]
    assert run(root, Request(), RunOptions(resume=root / "out"), Silent()).counts == {"ok": 2}
    after = read_run_info(root / "out")
    assert (after.engine["image"], after.engine["image_id"]) == (before.engine["image"], before.engine["image_id"])
    assert len(read_journal(root / "out" / "journal.jsonl")[0]) == 2


def test_a_missing_image_is_named(docker_engine, tmp_path):
    from harness.run.engine.docker import DockerEngine

    with pytest.raises(LitmusError, match="no such image") as refusal:
        DockerEngine(tmp_path, "litmus:never-built")
    assert (refusal.value.value, refusal.value.exit_code) == ("litmus:never-built", 2)
    assert "make image" in refusal.value.next_step


def test_an_image_that_cannot_run_jobs_is_refused(docker_engine, daemon, tmp_path):
    import tarfile

    from harness.run.engine.docker import DockerEngine

    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    daemon.api.import_image_from_data(data.getvalue(), repository="litmus-test-empty", tag="latest")
    try:
        with DockerEngine(tmp_path, "litmus-test-empty:latest") as engine, pytest.raises(LitmusError) as refusal:
            engine.ready()
    finally:
        daemon.images.remove("litmus-test-empty:latest", force=True)
    assert refusal.value.problem == "the image cannot be run" and "python3" in refusal.value.value
    assert containers(daemon, tmp_path) == []


def test_a_folder_that_nobody_may_read_is_refused(docker_engine, write_suite, cells):
    root = write_suite(QUICK, arms=["a"])
    if os.getuid() != 0:
        pytest.skip("only root is nobody in a container")
    root.chmod(0o700)
    with docker_engine(root) as engine, pytest.raises(LitmusError, match="may not read") as refusal:
        engine.ready()
    assert refusal.value.next_step.startswith("chmod")


def test_without_a_daemon_the_command_says_so_and_ends_with_2(write_suite):
    pytest.importorskip("docker")
    root = write_suite(QUICK)
    done = _litmus(root, DOCKER_HOST="unix:///nowhere/docker.sock")
    assert done.returncode == 2
    assert "no docker daemon answers" in done.stderr and "DOCKER_HOST" in done.stderr
    assert "Traceback" not in done.stderr and not (root / "out" / "journal.jsonl").exists()


def test_without_the_docker_package_the_command_says_so_and_ends_with_2(write_suite, tmp_path):
    blocker = tmp_path / "blocked"
    blocker.mkdir()
    (blocker / "docker.py").write_text("raise ImportError('not here')\n")
    done = _litmus(write_suite(QUICK), PYTHONPATH=f"{blocker}{os.pathsep}{Path(harness.__file__).parents[1]}")
    assert done.returncode == 2
    assert "needs the docker package" in done.stderr and "litmus-harness[docker]" in done.stderr


def _litmus(root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    package = str(Path(harness.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-m", "harness", "run", "--engine", "docker", "--out", "out"], cwd=root, text=True,
        capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": package, "LITMUS_ROOT": str(root), **environment})


def test_an_image_belongs_to_docker():
    assert parse_engine("docker", None, False, "lab/litmus:1") == EngineChoice("docker", image="lab/litmus:1")
    assert EngineChoice("docker", image="lab/litmus:1").words() == ["--engine", "docker", "--image", "lab/litmus:1"]
    assert parse_engine(None, None, False, None) is None
    with pytest.raises(LitmusError, match="only the docker engine has an image"):
        parse_engine("dask", "tcp://127.0.0.1:1", False, "x")
