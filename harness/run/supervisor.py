"""One worker's supervisor: limits from outside, output that cannot block, nothing left behind.

It is the subreaper of all that the worker starts. When the worker ends, reaches a limit, or the parent goes away, it
kills every descendant. It runs no suite code.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict

from harness.run import processes, stage
from harness.run.protocol import Ending, Job, Lines, decode, encode
from harness.run.stage import TOGETHER, Page

TAIL_BYTES = 8192
_TICK_S = {"speed": 0.1, "turns": 0.1}
_DEFAULT_TICK_S = 0.02
_CHUNK = 1 << 16
_PIPE_CHUNKS = 16


class _Tail:
    """The last bytes of an endless stream."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> None:
        self._data = (self._data + data)[-TAIL_BYTES:]

    def text(self) -> str:
        return self._data.decode("utf-8", "replace")

    def clear(self) -> None:
        self._data = b""


class Supervisor:
    """Starts one worker for ``job`` and watches it; ``conn`` leads to the parent."""

    def __init__(self, job: Job, conn: socket.socket, page_fd: int) -> None:
        self.job, self.conn, self.page_fd = job, conn, page_fd
        self.page = Page(page_fd)
        self.tail, self.lines = _Tail(), Lines()
        self.done = False
        self.used_s: dict[str | None, float] = {}
        self.prepare_s = 0.0
        self.oom_kills = processes.oom_kills()

    def run(self, work: Callable[[Job, int], None]) -> None:
        """Fork the worker, which calls ``work(job, message_fd)``, and stay until nothing of it is left."""
        self.messages, message_w = os.pipe()
        self.output, output_w = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            self._become_worker(work, message_w, output_w)
        os.close(message_w)
        os.close(output_w)
        for fd in (self.messages, self.output):
            os.set_blocking(fd, False)
        ending = self._watch()
        processes.kill_descendants()
        self._drain()
        self._send(encode("end", ending=asdict(self._with_tail(ending))))

    def _become_worker(self, work: Callable[[Job, int], None], message_w: int, output_w: int) -> None:
        supervisor, code = os.getppid(), 1
        try:
            os.setsid()
            processes.die_with_parent(supervisor)
            _be_first_to_die()
            os.dup2(output_w, 1)
            os.dup2(output_w, 2)
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what a crash must not swallow
            for fd in (output_w, self.messages, self.output, self.conn.fileno()):
                os.close(fd)
            if self.job.fresh:
                _replace_interpreter(self.job, message_w, self.page_fd)
            stage.attach(self.page, self.job.arms)
            work(self.job, message_w)
            code = 0
        finally:
            if sys.exc_info()[0] is not None:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _watch(self) -> Ending:
        tick_s = _TICK_S.get(self.job.task, _DEFAULT_TICK_S)
        watched = os.pidfd_open(self.pid)
        with selectors.DefaultSelector() as selector:
            for item in (watched, self.messages, self.output, self.conn):
                selector.register(item, selectors.EVENT_READ)
            last, next_check = time.monotonic(), 0.0
            while True:
                ready = [key.fd for key, _ in selector.select(tick_s)]
                now = time.monotonic()
                self._count(now - last)
                last = now
                if self.conn.fileno() in ready:
                    return Ending("cancelled", "the run ended", self._arm())
                for fd in (self.output, self.messages):
                    if fd in ready and self._read(fd) == 0:
                        selector.unregister(fd)
                if watched in ready:
                    return self._ended()
                if now >= next_check:
                    broken = self._over_time() or self._over_memory()
                    if broken:
                        return broken
                    # Looking costs time of the machine that is measured: at most a tenth of it.
                    next_check = now + max(tick_s, 10 * (time.monotonic() - now))

    def _count(self, seconds: float) -> None:
        if self.page.preparing:
            self.prepare_s += seconds
        else:
            arm = self._arm()
            self.prepare_s = 0.0
            self.used_s[arm] = self.used_s.get(arm, 0.0) + seconds

    def _over_time(self) -> Ending | None:
        limits, arm = self.job.limits, self._arm()
        if self.page.preparing:
            if self.prepare_s > limits.prepare_s:
                return Ending("timeout", f"preparing took longer than {limits.prepare_s:g} s", arm)
            return None
        limit_s = limits.startup_s if arm is None else limits.arm_s * (len(self.job.arms) if arm == TOGETHER else 1)
        if self.used_s.get(arm, 0.0) <= limit_s:
            return None
        what = "took longer" if arm else "took longer to load"
        return Ending("timeout", f"{what} than {limit_s:g} s", arm)

    def _over_memory(self) -> Ending | None:
        limit = self.job.limits.memory_bytes
        tree = processes.descendants(os.getpid())
        if processes.resident_bytes(tree) <= limit or processes.proportional_bytes(tree) <= limit:
            return None
        return Ending("oom", f"used more than {limit / 2**30:.3g} GiB", self._arm())

    def _ended(self) -> Ending:
        _, status = os.waitpid(self.pid, 0)
        arm = self._arm()
        processes.kill_descendants()
        self._drain()
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            if number == signal.SIGKILL and processes.oom_kills() > self.oom_kills:
                return Ending("oom", "the system ran out of memory and killed it", arm)
            return Ending("crashed", f"killed by {_signal_name(number)}", arm)
        if self.done and os.WEXITSTATUS(status) == 0:
            return Ending("done")
        return Ending("crashed", f"exited with code {os.WEXITSTATUS(status)} before it was finished", arm)

    def _arm(self) -> str | None:
        return self.page.name(self.job.arms)

    def _read(self, fd: int) -> int | None:
        """Take what is there: the number of bytes, 0 at the end of the stream, None where nothing waits."""
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            return None
        if fd == self.output:
            self.tail.feed(data)
        else:
            for line in self.lines.feed(data):
                self._forward(line)
        return len(data)

    def _drain(self) -> None:
        """Take what is still in the pipes; the writers are dead, so it is bounded by the pipes' size."""
        for fd in (self.output, self.messages):
            while self._read(fd):
                pass

    def _forward(self, line: bytes) -> None:
        try:
            message = decode(line)
        except ValueError:
            return  # a suite wrote into our pipe; the arm then has no record, and the parent says so
        if message["kind"] == "done":
            self.done = True
            return
        if message["kind"] == "record":
            self._take_output()
            if message["record"]["status"] != "ok":
                message["record"]["stderr_tail"] = (message["record"]["stderr_tail"] + self.tail.text())[-TAIL_BYTES:]
                line = encode(**message).rstrip(b"\n")
            self.tail.clear()
        self._send(line + b"\n")

    def _take_output(self) -> None:
        """What the arm printed before its record; bounded, for the worker may go on printing."""
        for _ in range(_PIPE_CHUNKS):
            if not self._read(self.output):
                return

    def _with_tail(self, ending: Ending) -> Ending:
        return Ending(ending.status, ending.reason, ending.arm, self.tail.text())

    def _send(self, data: bytes) -> None:
        try:
            self.conn.sendall(data)
        except OSError:
            return  # the parent is gone; _watch sees the same


def _be_first_to_die() -> None:
    """Where memory runs out, the kernel shall end the worker, not the run."""
    with open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("1000")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _replace_interpreter(job: Job, message_w: int, page_fd: int) -> None:
    """Run the worker in a new interpreter: same pipes, same limits, nothing inherited in memory."""
    job_fd = os.memfd_create("litmus-job", 0)
    os.write(job_fd, job.to_json().encode())
    os.lseek(job_fd, 0, os.SEEK_SET)
    for fd in (job_fd, message_w, page_fd):
        os.set_inheritable(fd, True)
    command = [sys.executable, "-m", "harness.run.worker", str(job_fd), str(message_w), str(page_fd)]
    os.execv(sys.executable, command)
