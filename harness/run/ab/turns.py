"""The worker's part of a pair: prove the arms, then take samples when the parent says so, and prove them again.

Over its socket the parent asks, the worker answers, one line of JSON each:

``ready``      (worker) the arms that are right, each with whether its result is checked
``calibrate``  ``arms``, ``min_sample_ns``, ``core``  ->  ``calls`` a sample and ``sample_ns``, by arm
``turn``       ``order``, ``calls``  ->  ``sample_ns`` by arm; ``spoiled``, a reason, where the turn does not count
``end``        no answer: the arms are proven once more, and their records go the way of all records
"""

from __future__ import annotations

import ctypes
import gc
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from harness.declare.suite import Suite
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run import check, stage
from harness.run.measure.cuda import COLD, CudaTimer
from harness.run.measure.place import Cuda, Place
from harness.run.measure.rounds import Bench, HostTimer, Timer, calibrate
from harness.run.protocol import CANNOT_LOAD, Lines, blank_record, decode, encode
from harness.run.speed import Contender, run_speed

_CHUNK = 1 << 16
# An arm's data leave the caches while the other side has its turn; this many calls and they are back.
_SHORT_CALLS = 4
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # malloc.h
_PAGE_BYTES, _LARGEST_HEAP_BYTES = 4096, 2**25


class Talk:
    """One end of the conversation; the other side of a closed one gives None."""

    def __init__(self, conn: socket.socket) -> None:
        self._conn, self._lines = conn, Lines()
        self._waiting: list[bytes] = []

    def send(self, kind: str, **values: Any) -> bool:
        """Whether it could be sent."""
        try:
            self._conn.sendall(encode(kind, **values))
        except OSError:
            return False
        return True

    def receive(self) -> dict[str, Any] | None:
        """The next message, however long it takes; None where the other end is closed."""
        while not self._waiting:
            try:
                data = self._conn.recv(_CHUNK)
            except OSError:
                return None
            if not data:
                return None
            self._waiting += self._lines.feed(data)
        return decode(self._waiting.pop(0))

    def close(self) -> None:
        """No more messages either way."""
        self._conn.close()


@contextmanager
def connect(path: str, role: str) -> Iterator[Talk]:
    """The worker's end, introduced as ``role``."""
    with socket.socket(socket.AF_UNIX) as conn:
        conn.connect(path)
        talk = Talk(conn)
        talk.send("hello", role=role)
        yield talk


def take_turns(cell: Cell, suite: Suite, pair: int, emit: Callable[[Record], None], talk: Talk) -> None:
    """One worker's share of process pair number ``pair``: like :func:`run_speed`, the samples when they are asked for.

    Where code of the project was imported from outside the side's own root, every arm is crashed for that.
    """
    borrowed = _borrowed(suite)
    if borrowed is not None:
        for arm in cell.arms:
            emit(blank_record(cell, arm, "crashed", f"{CANNOT_LOAD}: it imports {borrowed} from outside its revision"))
        return
    _allocate_by_page()
    run_speed(cell, suite, pair, emit, stage.enter, sample=partial(_sample, talk))


def _borrowed(suite: Suite) -> str | None:
    """The file of a module that one side has from elsewhere: it might be compared with itself."""
    root = Path(suite.file).parents[3]
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.split(".")[0] in ("suites", "reference") and file and not Path(file).is_relative_to(root):
            return str(file)
    return None


def _sample(
    talk: Talk, cell: Cell, contenders: Sequence[Contender], sets: Sequence[check.InputSet], pair: int, place: Place
) -> None:
    """Answer until the parent has enough."""
    sampler = _Sampler(contenders, sets, place)
    talk.send("ready", arms={item.name: item.arm.checked for item in contenders})
    _allocate_as_usual()
    gc.collect()
    gc.disable()
    try:
        while True:
            stage.enter(None)
            with stage.preparing():  # waiting for the other side is nobody's time
                message = talk.receive()
            if message is None or message["kind"] == "end":
                return
            answer = sampler.calibrate if message.pop("kind") == "calibrate" else sampler.turn
            talk.send("answer", **answer(**message))
    finally:
        gc.enable()


class _Sampler:
    """Takes single samples of the arms of one process."""

    def __init__(self, contenders: Sequence[Contender], sets: Sequence[check.InputSet], place: Place) -> None:
        self.contenders = {item.name: item for item in contenders}
        self.benches = {
            item.name: Bench(item.name, tuple(partial(item.arm.run, *drawn.inputs, *buffers)
                                              for drawn, buffers in zip(sets, item.buffers, strict=True)))
            for item in contenders
        }
        self.taken = dict.fromkeys(self.benches, 0)
        self.place = place
        self.timer, self.state = _timer_of(place)

    def calibrate(self, arms: Sequence[str], min_sample_ns: float, core: int | None) -> dict[str, Any]:
        """How many calls make a sample, alone on the machine; from now on this process runs on ``core``."""
        if core is not None:
            os.sched_setaffinity(0, {core})
        calls: dict[str, int] = {}
        took: dict[str, int] = {}
        for arm in arms:
            count = self._guarded(arm, partial(calibrate, self.benches[arm], min_sample_ns, self.timer, self.state))
            sample_ns = None if count is None else self._guarded(arm, partial(self._one, arm, count))
            if count is not None and sample_ns is not None:
                calls[arm], took[arm] = count, sample_ns
        return {"calls": calls, "sample_ns": took}

    def turn(self, order: Sequence[str], calls: dict[str, int]) -> dict[str, Any]:
        """One sample of each arm of ``order``; an arm that fails is left out."""
        self.timer.opened()
        found = {arm: self._guarded(arm, partial(self._one, arm, calls[arm])) for arm in order}
        return {"sample_ns": {arm: value for arm, value in found.items() if value is not None},
                "spoiled": self.timer.closed()}

    def _one(self, arm: str, calls: int) -> int:
        bench = self.benches[arm]
        if calls >= _SHORT_CALLS:
            for call in bench.bound:
                call()
        sample_ns = self.timer.sample(bench, calls, self.taken[arm], self.state)
        self.taken[arm] += calls
        return max(1, sample_ns)

    def _guarded(self, arm: str, step: Callable[[], int]) -> int | None:
        """None where the arm has failed, now or before."""
        contender = self.contenders[arm]
        if not contender.alive:
            return None
        stage.enter(arm)
        try:
            return step()
        except Exception as error:  # an arm may raise anything; it is recorded, with its traceback
            contender.crash(error)
            if not self.place.usable():
                raise
            return None


def _timer_of(place: Place) -> tuple[Timer, str]:
    if isinstance(place, Cuda):
        return CudaTimer(place.device), place.cache or COLD
    return HostTimer(), ""


def _allocate_by_page() -> None:
    """Put every array on pages of its own until further notice.

    Whether a small array begins on a cache line depends on all that was allocated before, and may be worth more than a
    tenth of a kernel's time. A page of its own gives it the same place on both sides.
    """
    _mallopt(_MMAP_THRESHOLD, _PAGE_BYTES)


def _allocate_as_usual() -> None:
    """As in a process that has run for a while: what an arm allocates and frees stays in the heap."""
    _mallopt(_MMAP_THRESHOLD, _LARGEST_HEAP_BYTES)
    _mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_HEAP_BYTES)


def _mallopt(what: int, value: int) -> None:
    """Only the GNU C library can be told."""
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is not None:
        tell(what, value)
