"""The docker engine: jobs in containers of one image, with no network, fixed cores and a bound of memory.

The image brings the interpreter and the libraries; the project is mounted read-only at its own path, so a job means the
same inside as outside. A container serves one set of cores and takes one job after another while it is sound, since the
libraries take seconds to load. Judging stays on this machine: it is no measurement.
"""

from __future__ import annotations

import itertools
import os
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from queue import LifoQueue
from types import TracebackType
from typing import Any

import harness
from harness.errors import LitmusError
from harness.plan.machine import Machine, this_machine
from harness.run.engine.base import OnMessage
from harness.run.engine.container import Container, daemon_errors
from harness.run.engine.local import LocalEngine
from harness.run.protocol import Ending, Job

NAME = "docker"
DEFAULT_IMAGE = "litmus:cpu"
LABEL = "litmus.run"
# The preloaded libraries, the supervisor and what is written to /tmp and /dev/shm, beside what the job may take.
OWN_BYTES = 3 * 2**30
_SCRATCH_BYTES = 2**30
_HERE = ("judge", "inspect")
_ON_ONE_CORE = ("trial", "oracle")
_NOBODY = 65534
_READ_BY_OTHERS = 0o005
# How the user has libraries compute holds in containers, too: a BLAS for another core type has other last bits.
_PASSED_ON = ("ATEN_", "DNNL_", "MKL_", "NPY_", "NUMBA_", "OMP_", "ONEDNN_", "OPENBLAS_")


@dataclass(frozen=True)
class Image:
    """An image as the daemon has it: its name, its id, and its digest in a registry if it has one."""

    name: str
    id: str
    digest: str | None


@dataclass(frozen=True)
class Seat:
    """What one container serves: cores, whether it may use GPUs, and the project that it sees."""

    cores: tuple[int, ...]
    gpu: bool
    project: Path


class DockerEngine:
    """Runs jobs in containers of ``image`` on the daemon that ``DOCKER_HOST`` names. A context manager.

    A trial gets one core of its own, what is timed gets all of this machine's, one after another; ``jobs`` trials run
    side by side. Raises LitmusError where the docker package, the daemon or the image is missing.
    """

    def __init__(
        self, root: Path, image: str = DEFAULT_IMAGE, jobs: int | None = None, preload: Sequence[str] = ()
    ) -> None:
        self.root = root.resolve()
        self.cores = tuple(sorted(os.sched_getaffinity(0)))
        self.slots = min(jobs or len(self.cores), len(self.cores))
        self._preload = tuple(preload)
        self._client = _connect()
        try:
            self.image = _find(self._client, image)
        except BaseException:
            self._client.close()
            raise
        self._token = uuid.uuid4().hex
        self._numbers = itertools.count()
        self._free: LifoQueue[int] = LifoQueue()
        for core in reversed(self.cores[: self.slots]):
            self._free.put(core)
        self._alone = threading.Lock()
        self._here = LocalEngine(root, 1, preload)
        self._containers: dict[Seat, Container] = {}
        self._cancelled = self._closed = False

    def __enter__(self) -> DockerEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def machine(self) -> Machine:
        """This machine: containers see its processor and its devices."""
        return this_machine()

    @property
    def devices(self) -> Mapping[str, int]:
        """See :class:`harness.run.engine.base.RunEngine`."""
        return {}

    @cached_property
    def software(self) -> Mapping[str, str]:
        """The versions inside the image."""
        with self._one_core() as cores:
            container = self._container(Seat(cores, False, self.root), OWN_BYTES)
            return container.software if container else {}

    def about(self) -> dict[str, Any]:
        """See :class:`harness.run.engine.base.RunEngine`."""
        with daemon_errors():
            server = self._client.version()["Version"]
        return {"name": NAME, "image": self.image.name, "image_id": self.image.id, "digest": self.image.digest,
                "server": server, "cores": list(self.cores), "network": "none", "read_only": True}

    def ready(self) -> None:
        """See :class:`harness.run.engine.base.Engine`. Other containers than the first start with their first job."""
        with self._one_core() as cores:
            container = self._container(Seat(cores, False, self.root), OWN_BYTES)
            if container is not None:
                container.wait_ready()

    def execute(self, job: Job, on_message: OnMessage) -> Ending:
        """See :class:`harness.run.engine.base.Engine`."""
        if job.task in _HERE:
            return self._here.execute(job, on_message)
        with self._one_core() if job.task in _ON_ONE_CORE else self._all_cores() as cores:
            return self._execute(job, Seat(cores, job.fresh, self._seen(job)), on_message)

    def _execute(self, job: Job, seat: Seat, on_message: OnMessage) -> Ending:
        memory_bytes = job.limits.memory_bytes + OWN_BYTES
        container = self._container(seat, memory_bytes)
        if container is None:
            return Ending("cancelled", "the run ended")
        worker = {"image_id": self.image.id, "cores": list(seat.cores), "memory_bytes": memory_bytes, "gpu": seat.gpu}

        def pass_on(message: dict[str, Any]) -> None:
            if message["kind"] == "record":
                message["record"]["worker"] = worker
            on_message(message)

        try:
            container.wait_ready()
            with daemon_errors():
                container.bound(memory_bytes)
            return replace(container.run(job, pass_on), worker=worker)
        finally:
            if not container.sound or self._cancelled:
                self._discard(seat)

    @contextmanager
    def _one_core(self) -> Iterator[tuple[int, ...]]:
        """For what runs beside others."""
        core = self._free.get()
        try:
            yield (core,)
        finally:
            self._free.put(core)

    @contextmanager
    def _all_cores(self) -> Iterator[tuple[int, ...]]:
        """For what is timed, alone."""
        with self._alone:
            yield self.cores

    def _seen(self, job: Job) -> Path:
        """The folder to mount for the job: where its project is in the run's, that is there already."""
        project = Path(job.root).resolve()
        return self.root if project.is_relative_to(self.root) else project

    def _container(self, seat: Seat, memory_bytes: int) -> Container | None:
        """The started container of ``seat``, whose cores the caller has; None once the engine is cancelled."""
        container = self._containers.get(seat)
        if container is not None and container.alive():
            return None if self._cancelled else container
        for other in list(self._containers):
            if (other.cores, other.gpu) == (seat.cores, seat.gpu):
                self._discard(other)
        with daemon_errors():
            container = Container(self._client.api, self._options(seat, memory_bytes), memory_bytes)
        self._containers[seat] = container
        try:
            if not self._cancelled:  # from here on whoever cancels shuts it
                with daemon_errors():
                    container.start()
        finally:
            if not container.sound:
                self._discard(seat)
        return container if container.sound else None

    def _discard(self, seat: Seat) -> None:
        container = self._containers.pop(seat, None)
        if container is not None:
            container.remove()

    def _options(self, seat: Seat, memory_bytes: int) -> dict[str, Any]:
        """What docker's ``create_container`` is asked for."""
        from docker.types import DeviceRequest

        api, user = self._client.api, self._user()
        host = api.create_host_config(
            binds=self._mounts(seat.project), network_mode="none", read_only=True, cap_drop=["ALL"],
            security_opt=["no-new-privileges"], cpuset_cpus=",".join(map(str, seat.cores)), mem_limit=memory_bytes,
            memswap_limit=memory_bytes, pids_limit=4096, shm_size=_SCRATCH_BYTES,
            tmpfs={"/tmp": f"rw,exec,mode=1777,size={_SCRATCH_BYTES}"},
            device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if seat.gpu else None,
        )
        return {
            "image": self.image.id, "name": f"litmus-{self._token[:12]}-{next(self._numbers)}",
            "entrypoint": ["python3", "-m", "harness.run.engine.inside", str(seat.project)],
            "command": list(self._preload), "stdin_open": True, "detach": False, "working_dir": str(seat.project),
            "environment": self._environment(seat.project), "user": user, "labels": {LABEL: self._token},
            "host_config": host, "network_disabled": True,
        }

    def _mounts(self, project: Path) -> list[str]:
        """The project and this harness, read-only; a cache of this image's own in place of the project's."""
        package = Path(harness.__file__).resolve().parent
        places = [project] if package.is_relative_to(project) else [project, package]
        for place in places:
            if os.getuid() == 0 and place.stat().st_mode & _READ_BY_OTHERS != _READ_BY_OTHERS:
                raise LitmusError("containers may not read the project: they run as nobody where you are root",
                                  where=place, value=oct(place.stat().st_mode & 0o777),
                                  expected="a folder that others may read", next_step=f"chmod o+rx {place}")
        (project / ".litmus" / "cache").mkdir(parents=True, exist_ok=True)
        return [*(f"{place}:{place}:ro" for place in places),
                f"{self._own('cache')}:{project / '.litmus' / 'cache'}:rw", f"{self._own('code')}:/code:rw"]

    def _own(self, name: str) -> Path:
        """A folder for what containers of this image keep: artefacts of its libraries, its machine code."""
        place = self.root / ".litmus" / "docker" / self.image.id.removeprefix("sha256:")[:12] / name
        place.mkdir(parents=True, exist_ok=True)
        if os.getuid() == 0:
            os.chown(place, _NOBODY, _NOBODY)
        return place

    def _user(self) -> str:
        """Whoever runs this, but never root."""
        return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{_NOBODY}:{_NOBODY}"

    def _environment(self, project: Path) -> dict[str, str]:
        package = str(Path(harness.__file__).resolve().parents[1])
        passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        return {**passed, "PYTHONPATH": os.pathsep.join(dict.fromkeys([str(project), package])), "HOME": "/tmp",
                "NUMBA_CACHE_DIR": "/code", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}

    def cancel(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        self._cancelled = True
        self._here.cancel()
        for container in list(self._containers.values()):
            container.end()

    def close(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        if self._closed:
            return
        self._closed = True
        self.cancel()
        self._here.close()
        try:
            for seat in list(self._containers):
                self._discard(seat)
        finally:
            self._client.close()


def _connect() -> Any:
    try:
        import docker
    except ImportError as error:
        raise LitmusError("the docker engine needs the docker package", key="--engine", value=NAME,
                          next_step='pip install "litmus-harness[docker]"') from error
    try:
        client = docker.from_env()
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise LitmusError("no docker daemon answers", where=os.environ.get("DOCKER_HOST", "the default socket"),
                          key="--engine", value=str(error)[:200], expected="a running daemon that this user may use",
                          next_step="start it, or name it with DOCKER_HOST") from error
    return client


def _find(client: Any, name: str) -> Image:
    """The image. ``name`` may be an id, as a resumed run has it."""
    from docker.errors import ImageNotFound

    try:
        with daemon_errors():
            found = client.api.inspect_image(name)
    except LitmusError as error:
        if not isinstance(error.__cause__, ImageNotFound):
            raise
        raise LitmusError("there is no such image", key="--image", value=name, expected="an image of this daemon",
                          next_step="build it with: make image") from error
    names, digests = found.get("RepoTags") or [], found.get("RepoDigests") or []
    known = names[0] if name == found["Id"] and names else name
    return Image(known, found["Id"], digests[0] if digests else None)
