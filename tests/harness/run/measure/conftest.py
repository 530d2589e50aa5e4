"""A device with a clock that tests turn: it checks the logic of timing and is no measurement."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from harness.run.measure.cuda import Clocks

FREE = Clocks(sm_mhz=1980, memory_mhz=2619, temperature_c=50, power_w=300.0)
LAUNCH_NS, EVENT_NS, FLUSH_NS = 5_000, 1_000, 60_000


@dataclass(frozen=True)
class Event:
    """A mark in the stream, reached at this time."""

    at: int


@dataclass
class FakeGpu:
    """A host clock, a stream that works off what the host launches, and one more stream that nobody waits for."""

    flush_bytes: int = 2**27
    host_ns: int = 0
    free_ns: int = 0
    side_free_ns: int = 0
    cold: bool = False
    script: list[Clocks] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    allocated: int = 0
    peak: int = 0
    replays: list[int] = field(default_factory=lambda: [0])
    sound: bool = True

    def now(self) -> int:
        return self.host_ns

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def work(self, duration_ns: int, launch_ns: int = LAUNCH_NS) -> None:
        self.host_ns += launch_ns
        self.free_ns = max(self.host_ns, self.free_ns) + duration_ns

    def resume(self) -> None:
        self.log.append("resume")

    def spin(self, duration_ns: int) -> None:
        self.log.append("spin")
        self.work(duration_ns)

    def flush(self) -> None:
        self.log.append("flush")
        self.work(FLUSH_NS)
        self.cold = True

    def event(self) -> Event:
        self.log.append("event")
        self.host_ns += EVENT_NS
        return Event(max(self.host_ns, self.free_ns))

    def passed(self, event: Event) -> bool:
        return event.at <= self.host_ns

    def wait(self, event: Event) -> None:
        self.host_ns = max(self.host_ns, event.at)

    def between_ns(self, start: Event, end: Event) -> float:
        return float(end.at - start.at)

    def synchronise(self) -> None:
        self.host_ns = max(self.host_ns, self.free_ns, self.side_free_ns) + EVENT_NS

    def clocks(self) -> Clocks:
        return self.script.pop(0) if self.script else FREE

    def usable(self) -> bool:
        return self.sound

    def release(self) -> None:
        self.log.append("release")

    def reset_peak(self) -> int:
        self.peak = self.allocated
        return self.allocated

    def peak_bytes(self) -> int:
        return self.peak

    @contextmanager
    def counting_replays(self) -> Iterator[list[int]]:
        self.replays = [0]
        yield self.replays

    def kernel(self, name: str, cold_ns: int, warm_ns: int, launch_ns: int = LAUNCH_NS) -> Callable[..., None]:
        """A call that launches one kernel; it takes ``cold_ns`` right after a flush."""

        def call(*_: object) -> None:
            self.log.append(name)
            self.work(cold_ns if self.cold else warm_ns, launch_ns)
            self.cold = False

        return call


@pytest.fixture
def gpu() -> FakeGpu:
    return FakeGpu()
