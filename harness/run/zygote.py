"""``python -m harness.run.zygote FD [MODULE...]``: imports heavy libraries once and forks a supervisor for each job.

It never computes, so it has one thread and forking is safe. Each byte that arrives on the control socket brings two
file descriptors: the job's socket and its page. At the end of the stream it ends, and everything below it does too.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress

from harness.run import processes
from harness.run.protocol import Job
from harness.run.supervisor import Supervisor

LIBRARIES = ("numpy", "torch", "numba", "threadpoolctl")
READY = b"R"
_END_S = 5.0


class Zygote:
    """The loop: fork on request, reap, and sweep up what a killed supervisor left."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.supervisors: set[int] = set()
        self.sweeping = False

    def run(self) -> None:
        """Say that it is ready, then serve until the parent is gone and nothing is left."""
        processes.adopt_orphans()
        wake_r, wake_w = os.pipe()
        for fd in (wake_r, wake_w):
            os.set_blocking(fd, False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(wake_w)
        self.wakes = (wake_r, wake_w)
        gc.collect()
        gc.freeze()
        self.control.sendall(READY)
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(wake_r, selectors.EVENT_READ)
            while True:
                ready = [key.fd for key, _ in selector.select(0.02 if self.sweeping else None)]
                if wake_r in ready:
                    os.read(wake_r, 4096)
                self._reap()
                if self.control.fileno() in ready and not self._serve():
                    break
        self._end()

    def _serve(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self.control, 1, 2)
        if not data or len(fds) != 2:
            return False
        pid = os.fork()
        if pid == 0:
            self._become_supervisor(*fds)
        self.supervisors.add(pid)
        for fd in fds:
            os.close(fd)
        return True

    def _become_supervisor(self, conn_fd: int, page_fd: int) -> None:
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self.control.close()
            for fd in self.wakes:
                os.close(fd)
            processes.adopt_orphans()
            conn = socket.socket(fileno=conn_fd)
            job = _read_job(conn)
            if job is not None:
                Supervisor(job, conn, page_fd).run(_work)
            code = 0
        finally:
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid in self.supervisors:
                self.supervisors.discard(pid)
                self.sweeping = self.sweeping or status != 0
        if self.sweeping:  # a supervisor died without cleaning up: its descendants are our children now
            self.sweeping = not processes.kill_descendants(frozenset(self.supervisors), limit_s=0.1)

    def _end(self) -> None:
        """The parent is gone: supervisors see it themselves; whoever is left after a while is killed."""
        with selectors.DefaultSelector() as selector:
            selector.register(self.wakes[0], selectors.EVENT_READ)
            for _ in range(int(_END_S / 0.05)):
                self._reap()
                if not self.supervisors:
                    break
                if selector.select(0.05):
                    os.read(self.wakes[0], 4096)
        processes.kill_descendants()


def _read_job(conn: socket.socket) -> Job | None:
    data = b""
    while not data.endswith(b"\n"):
        chunk = conn.recv(1 << 16)
        if not chunk:
            return None
        data += chunk
    return Job.from_json(data.decode())


def _work(job: Job, message_fd: int) -> None:
    from harness.run.worker import work

    work(job, message_fd)


def _import_determinism() -> None:
    """The first use of torch's deterministic mode imports its compiler's settings, most of a second: do it here."""
    import torch

    torch.use_deterministic_algorithms(True)
    torch.use_deterministic_algorithms(False)


def main(control_fd: int, preload: Sequence[str]) -> None:
    """Import, then serve until the parent is gone. ``preload`` may name attributes of modules, too."""
    for name in LIBRARIES:
        importlib.import_module(name)
    for name in ("harness.run.worker", "harness.run.trial"):
        importlib.import_module(name)
    _import_determinism()
    for name in preload:
        with suppress(ImportError):  # an attribute, not a module, or a module this version does not have
            importlib.import_module(name)
    with suppress(ImportError):  # the platform may have another threading layer; it is then loaded by each worker
        importlib.import_module("numba.np.ufunc.omppool")
    Zygote(socket.socket(fileno=control_fd)).run()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
