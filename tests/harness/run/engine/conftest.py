"""The engines of the conformance tests. One more engine is one more function in OPENERS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

import harness
from harness.errors import LitmusError
from harness.run.engine.base import RunEngine
from harness.run.engine.local import LocalEngine

NewEngine = Callable[[Path], AbstractContextManager[RunEngine]]
NEEDS_DASK = "dask.distributed is not installed: pip install 'litmus-harness[dask]'"
Cluster = tuple[str, dict[str, subprocess.Popen[bytes]]]
PACKAGE = Path(harness.__file__).resolve().parents[1]


@contextmanager
def _local(folder: Path) -> Iterator[NewEngine]:
    yield lambda root: LocalEngine(root, slots=2)


@contextmanager
def _dask_local_cluster(folder: Path) -> Iterator[NewEngine]:
    pytest.importorskip("distributed", reason=NEEDS_DASK)
    from harness.run.cluster import local_cluster
    from harness.run.engine.dask import DaskEngine

    with local_cluster(2, 0) as address:
        yield lambda root: DaskEngine(root, address)


@contextmanager
def _dask_two_processes(folder: Path) -> Iterator[NewEngine]:
    pytest.importorskip("distributed", reason=NEEDS_DASK)
    from harness.run.engine.dask import DaskEngine

    with separate_processes(folder, ["left", "right"]) as (address, _):
        yield lambda root: DaskEngine(root, address)


@contextmanager
def separate_processes(folder: Path, names: list[str]) -> Iterator[Cluster]:
    """(address of a scheduler, worker processes by name), each started as a user would; at the end they are gone."""
    file = folder / "scheduler.json"
    common = ["--scheduler-file", str(file), "--no-dashboard"]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE)}

    def start(*words: str) -> subprocess.Popen[bytes]:
        log = (folder / f"{len(processes)}.log").open("wb")
        process = subprocess.Popen([sys.executable, "-m", *words], env=environment, cwd=folder, stdout=log, stderr=log)
        processes.append(process)
        return process

    processes: list[subprocess.Popen[bytes]] = []
    try:
        start("distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", *common)
        workers = {name: start("distributed.cli.dask_worker", *common, "--name", name, "--nworkers", "1", "--nthreads",
                               "1", "--no-nanny", "--host", "127.0.0.1") for name in names}
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline and processes[0].poll() is None, "the scheduler does not start"
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"], workers
    finally:
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def _docker(folder: Path) -> Iterator[NewEngine]:
    yield docker_or_skip()


def docker_or_skip() -> NewEngine:
    """Opens the docker engine with the image of LITMUS_TEST_IMAGE; says aloud why where that cannot be."""
    pytest.importorskip("docker", reason="NOT CHECKED: the docker engine; pip install 'litmus-harness[docker]'")
    from harness.run.engine.docker import DEFAULT_IMAGE, DockerEngine

    image = os.environ.get("LITMUS_TEST_IMAGE", DEFAULT_IMAGE)
    try:
        DockerEngine(Path.cwd(), image).close()
    except LitmusError as error:
        pytest.skip(f"NOT CHECKED: the docker engine, since {error.problem}; ci/docker/check starts a daemon for this")
    return lambda root: DockerEngine(root, image)


OPENERS: dict[str, Callable[[Path], AbstractContextManager[NewEngine]]] = {
    "local": _local,
    "dask local cluster": _dask_local_cluster,
    "dask two processes": _dask_two_processes,
    "docker": _docker,
}


@pytest.fixture(scope="session", params=OPENERS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NewEngine]:
    """kind(root): a new engine of this kind, which enters and closes; its daemons and clusters outlive it."""
    with OPENERS[request.param](tmp_path_factory.mktemp("kind")) as new:
        yield new


@pytest.fixture(scope="session")
def any_engine(kind: NewEngine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunEngine]:
    """One engine of this kind for all tests that leave it as it is; their projects are in its folder."""
    with ExitStack() as stack:
        base = tmp_path_factory.getbasetemp()
        base.chmod(0o755)  # see _readable
        engine = stack.enter_context(kind(base))
        engine.ready()
        yield engine


@pytest.fixture(autouse=True)
def _readable(tmp_path: Path) -> None:
    """Containers run as nobody where the tests run as root; the folder above stays closed to others."""
    tmp_path.chmod(0o755)


@pytest.fixture
def docker_engine(tmp_path: Path) -> Callable[[Path], AbstractContextManager[RunEngine]]:
    """docker_engine(root): a new docker engine, where one can be had."""
    return docker_or_skip()


@pytest.fixture
def cluster_of(tmp_path: Path) -> Callable[[list[str]], AbstractContextManager[Cluster]]:
    """cluster_of(names): a scheduler and a worker process for each name, as a context manager."""
    pytest.importorskip("distributed", reason=NEEDS_DASK)
    folder = tmp_path / "cluster"
    folder.mkdir()
    return lambda names: separate_processes(folder, names)


@pytest.fixture
def two_processes(cluster_of: Callable[[list[str]], AbstractContextManager[Cluster]]) -> Iterator[Cluster]:
    """(address, worker processes by name) of a cluster of this test alone."""
    with cluster_of(["left", "right"]) as found:
        yield found
