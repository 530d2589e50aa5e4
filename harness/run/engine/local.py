"""The local engine: one zygote on this machine, and a supervised worker per job."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import harness
from harness.errors import LitmusError
from harness.plan.machine import Machine, software, this_machine
from harness.run.engine.base import OnMessage
from harness.run.processes import need_linux
from harness.run.protocol import Ending, Job, Lines, decode
from harness.run.stage import Page

# Imported ahead when a suite uses them: they start no thread and read no state that a worker changes.
HARMLESS = ("numpy", "pandas", "scipy", "sklearn")
_READY = b"R"
_CHUNK = 1 << 16
_END_S = 10.0


class LocalEngine:
    """Runs jobs on this machine. A context manager; leaving it ends every process it started.

    The zygote starts with the first job, or ahead of it with :meth:`warm`, and again if something kills it. It imports
    ``preload`` (dotted modules, those of :data:`HARMLESS` packages) beside its own libraries, once for all workers.
    ``setting`` overrides the environment that workers get, see :func:`environment`; ``python`` is the interpreter they
    run in, this process's own if None.
    """

    def __init__(
        self, root: Path, slots: int, preload: Iterable[str] = (), setting: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> None:
        need_linux()
        self.root, self.slots, self._environment = root, slots, {**environment(root), **(setting or {})}
        self._python = str(python or sys.executable)
        self._preload = tuple(sorted(name for name in preload if name.split(".")[0] in HARMLESS))
        self._lock = threading.Lock()
        self._zygote: _Zygote | None = None
        self._running: set[socket.socket] = set()
        self._cancelled = False

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def machine(self) -> Machine:
        """This machine."""
        return this_machine()

    @property
    def software(self) -> Mapping[str, str]:
        """The versions installed here."""
        return software()

    @property
    def devices(self) -> Mapping[str, int]:
        """One of each."""
        return {}

    def about(self) -> dict[str, Any]:
        """See :class:`harness.run.engine.base.RunEngine`."""
        return {"name": "local"}

    def warm(self) -> None:
        """Start the zygote without waiting for it."""
        with self._lock:
            if self._zygote is None or not self._zygote.alive():
                self._zygote = _Zygote(self._python, self.root, self._preload, self._environment)

    def ready(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        with self._lock:
            self._started()

    def execute(self, job: Job, on_message: OnMessage, stop: Stop | None = None) -> Ending:
        """See :class:`harness.run.engine.base.Engine`; ``stop`` ends this job alone."""
        ours, theirs = socket.socketpair()
        page_fd = Page.create()
        page = Page(page_fd)
        with ours:
            try:
                with theirs, self._lock:
                    if self._cancelled or (stop is not None and not stop.watch(ours)):
                        return _cancelled(None)
                    self._running.add(ours)
                    self._fork(theirs, page_fd)
                ours.sendall(job.to_json().encode() + b"\n")
                ending = _listen(ours, on_message)
            finally:
                os.close(page_fd)
                self._running.discard(ours)
        if ending is not None:
            return ending
        arm = page.name(job.arms)
        return _cancelled(arm) if self._cancelled else Ending("crashed", "killed together with its supervisor", arm)

    def _fork(self, conn: socket.socket, page_fd: int) -> None:
        try:
            self._started().fork(conn, page_fd)
        except OSError:  # it died since we looked
            if self._zygote is not None:
                self._zygote.end()
            self._zygote = None
            self._started().fork(conn, page_fd)

    def _started(self) -> _Zygote:
        if self._zygote is None or not self._zygote.alive():
            self._zygote = _Zygote(self._python, self.root, self._preload, self._environment)
        self._zygote.wait_ready()
        return self._zygote

    def cancel(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        self._cancelled = True
        for conn in list(self._running):
            _shut(conn)

    def close(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        self.cancel()
        if self._zygote is not None:
            self._zygote.end()
            self._zygote = None


class Stop:
    """Ends one job of a :class:`LocalEngine` from another thread, before it begins or while it runs."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._conn: socket.socket | None = None
        self._asked = False

    def ask(self) -> None:
        """End it soon; :meth:`LocalEngine.execute` returns ``cancelled`` once nothing of it is left."""
        with self._lock:
            self._asked = True
            if self._conn is not None:
                _shut(self._conn, socket.SHUT_WR)

    def watch(self, conn: socket.socket) -> bool:
        """Whether the job may begin; from now on ``conn`` is what is shut."""
        with self._lock:
            self._conn = conn
            return not self._asked


class _Zygote:
    """The parent's end of the preloaded process."""

    def __init__(
        self, python: str, root: Path, preload: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        self.control, theirs = socket.socketpair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.ready = False
        os.set_inheritable(theirs.fileno(), True)
        with theirs:
            self.process = subprocess.Popen(
                [python, "-m", "harness.run.zygote", str(theirs.fileno()), *preload],
                cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors,
                pass_fds=[theirs.fileno()], start_new_session=True,
            )

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait_ready(self) -> None:
        """Blocks until the libraries are imported. Raises LitmusError where that fails."""
        if not self.ready and self.control.recv(1) != _READY:
            self.process.wait()
            self.errors.seek(0)
            last = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
            raise LitmusError("the worker process cannot start", value="".join(last),
                              expected="numpy, torch and numba importable", next_step="litmus doctor")
        self.ready = True

    def fork(self, conn: socket.socket, page_fd: int) -> None:
        socket.send_fds(self.control, [b"F"], [conn.fileno(), page_fd])

    def end(self) -> None:
        self.control.close()
        try:
            self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.errors.close()


def _listen(conn: socket.socket, on_message: OnMessage) -> Ending | None:
    """Pass messages on until the ``end``; None where the stream breaks off before it."""
    lines = Lines()
    while True:
        try:
            data = conn.recv(_CHUNK)
        except ConnectionResetError:
            return None
        if not data:
            return None
        for line in lines.feed(data):
            message = decode(line)
            if message["kind"] == "end":
                return Ending(**message["ending"])
            on_message(message)


def _cancelled(arm: str | None) -> Ending:
    return Ending("cancelled", "the run ended", arm)


def _shut(conn: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    try:
        conn.shutdown(how)
    except OSError:
        return  # it has just ended by itself


def environment(root: Path) -> dict[str, str]:
    """The zygote's environment: no library starts a thread, equal hashes in every worker, the project importable."""
    package = str(Path(harness.__file__).resolve().parents[1])
    path = [str(root), package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "PYTHONHASHSEED": "0",
        "OPENBLAS_NUM_THREADS": "1",
        # Libraries bring an OpenMP pool each: one that spins after its call would hold a core of the next arm's.
        "OMP_WAIT_POLICY": "passive",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # The order of NVML, by which the plan numbers devices; CUDA's own puts the fastest first.
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
