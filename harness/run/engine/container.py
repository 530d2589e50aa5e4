"""One container of the docker engine: it takes one job after another and says how each ended, whoever ended it."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness.errors import LitmusError
from harness.run.engine.base import OnMessage
from harness.run.protocol import Ending, Job, Lines, decode
from harness.run.stage import TOGETHER

START_LIMIT_S = 180.0
# How long it may stay silent beyond the job's own limits, which are enforced inside.
GRACE_S = 120.0
_TAIL_BYTES = 8192
_STDOUT = 1
_HEADER = struct.Struct(">BxxxL")


class Container:
    """Made and attached to, not started yet. ``sound`` is whether it may take (another) job.

    ``options`` are those of docker's ``create_container``; ``memory_bytes`` is the bound that they contain.
    """

    def __init__(self, api: Any, options: Mapping[str, Any], memory_bytes: int) -> None:
        self._api, self._memory_bytes = api, memory_bytes
        self.id = str(api.create_container(**options)["Id"])
        self.sound, self.shut, self.software = False, False, dict[str, str]()
        self._ready = False
        self._errors = b""
        try:
            self._attached = api.attach_socket(self.id, params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
        except BaseException:
            api.remove_container(self.id, force=True, v=True)
            raise
        self._stream: socket.socket = getattr(self._attached, "_sock", self._attached)
        self._messages = self._heard()

    def start(self) -> None:
        """Start it and hear which versions it has. Raises LitmusError where the image cannot run jobs."""
        from docker.errors import APIError

        self._stream.settimeout(START_LIMIT_S)
        try:
            self._api.start(self.id)
        except APIError as error:
            raise LitmusError("the image cannot be run", value=str(error.explanation or error)[:300],
                              expected="an image made by: make image", next_step="see docs/containers.md") from error
        message = self._starting()
        if message is not None:
            self.software, self.sound = message["software"], True

    def wait_ready(self) -> None:
        """Block until jobs start without delay. Raises LitmusError where the libraries cannot be loaded."""
        if self.sound and not self._ready:
            self._stream.settimeout(START_LIMIT_S)
            self._ready = self._starting() is not None
            self.sound = self._ready

    def _starting(self) -> dict[str, Any] | None:
        """The next message of a container that starts; None where it was shut meanwhile."""
        try:
            message = next(self._messages, None)
        except (TimeoutError, ConnectionResetError):
            message = None
        if self.shut:
            return None
        if message is None or message["kind"] == "refused":
            said = message["text"] if message else (self.tail.strip().splitlines() or ["nothing"])[-1]
            raise LitmusError("no job can be run in the image", value=said[-300:],
                              expected="an image with the project's libraries, made by: make image",
                              next_step="see docs/containers.md")
        return message

    def alive(self) -> bool:
        """Whether it may take a job: also one that nobody talks to may have been killed."""
        if not self.sound:
            return False
        self._stream.settimeout(0)
        try:
            return self._stream.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    def bound(self, memory_bytes: int) -> None:
        """Give it that much memory from now on."""
        if memory_bytes != self._memory_bytes:
            self._api.update_container(self.id, mem_limit=memory_bytes, memswap_limit=memory_bytes)
            self._memory_bytes = memory_bytes

    def run(self, job: Job, on_message: OnMessage) -> Ending:
        """Hand the job over, pass its messages on, and say how it ended. ``sound`` only where it ended by itself."""
        self.sound = False
        limits, done = job.limits, set[str]()
        arms = max(1, len(job.arms))
        silence_s = GRACE_S + limits.startup_s + arms * (limits.prepare_s + limits.arm_s)
        self._stream.settimeout(silence_s)
        try:
            self._stream.sendall(job.to_json().encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            return self._post_mortem(job, done)
        while True:
            try:
                message = next(self._messages, None)
            except TimeoutError:
                return Ending("timeout", f"the container was silent for {silence_s:g} s", _arm(job, done), self.tail)
            except ConnectionResetError:
                message = None
            if message is None:
                return self._post_mortem(job, done)
            if message["kind"] == "end":
                self.sound = True
                return Ending(**message["ending"])
            on_message(message)
            if message["kind"] == "record":
                done.add(message["record"]["arm"])

    def _post_mortem(self, job: Job, done: set[str]) -> Ending:
        """Why there is no ending: what docker knows of a container that is gone."""
        if self.shut:
            return Ending("cancelled", "the run ended", _arm(job, done))
        with daemon_errors():
            self._api.wait(self.id, timeout=GRACE_S)
            state = self._api.inspect_container(self.id)["State"]
        if state["OOMKilled"]:
            return Ending("oom", f"the container used more than {self._memory_bytes / 2**30:.3g} GiB", _arm(job, done),
                          self.tail)
        how = "was killed" if state["ExitCode"] == 137 else f"ended with exit code {state['ExitCode']}"
        return Ending("crashed", state["Error"] or f"its container {how}", _arm(job, done), self.tail)

    @property
    def tail(self) -> str:
        """The end of what it wrote to standard error."""
        return self._errors.decode("utf-8", "replace")

    def _heard(self) -> Iterator[dict[str, Any]]:
        lines = Lines()
        for kind, data in _frames(self._stream):
            if kind == _STDOUT:
                yield from map(decode, lines.feed(data))
            else:
                self._errors = (self._errors + data)[-_TAIL_BYTES:]

    def end(self) -> None:
        """Have it end soon, with everything in it; safe from any thread and from a signal's handler."""
        self.shut = True
        try:
            self._stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it has just ended by itself

    def remove(self) -> None:
        """Kill what is left of it."""
        from docker.errors import NotFound

        self._attached.close()
        with daemon_errors():
            try:
                self._api.remove_container(self.id, force=True, v=True)
            except NotFound:
                return  # someone else has removed it


@contextmanager
def daemon_errors() -> Iterator[None]:
    """Raises LitmusError where the daemon cannot be asked, or refuses."""
    from docker.errors import DockerException

    try:
        yield
    except (DockerException, OSError) as error:
        raise LitmusError("the docker daemon does not do what it is asked; what was recorded is safe",
                          value=str(error)[:300], expected="a daemon that stays up",
                          next_step="see its log, then go on with: litmus run --resume latest") from error


def _arm(job: Job, done: set[str]) -> str | None:
    """Where it was: trials run their arms in order, timed arms run together."""
    if job.task == "speed":
        return TOGETHER
    left = [arm for arm in job.arms if arm not in done]
    return left[0] if left else None


def _frames(stream: socket.socket) -> Iterator[tuple[int, bytes]]:
    """(1 for output or 2 for errors, data) of an attached container, until the stream ends."""
    while (header := _exactly(stream, _HEADER.size)) is not None:
        kind, size = _HEADER.unpack(header)
        data = _exactly(stream, size)
        if data is None:
            return
        yield kind, data


def _exactly(stream: socket.socket, size: int) -> bytes | None:
    parts: list[bytes] = []
    while size:
        part = stream.recv(min(size, 1 << 16))
        if not part:
            return None
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
