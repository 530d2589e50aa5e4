"""Timing by CUDA events: cold and warm calls, a queue that stays ahead of the device, no round under a held-back clock.

A cold call runs after a write of twice the L2 cache, alone between two events; the write is outside them. Warm calls
run one after another between two events, after one call of each input set. Before every pair of events the device is
kept busy for a while, so that the calls wait in its queue when it gets to them and the time of launching them is not in
the sample. Where a pair's first event had already passed when the last call was launched, the launch may have been
waited for: the sample is taken again with more time ahead. An arm for which no time is enough, such as one that waits
for the device itself, keeps those pairs, and they are counted as ``late``. Compilation, first calls and calibration are
outside the samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from harness.run.measure.rounds import Bench, Call

COLD, WARM = "cold", "warm"
# The most calls in one sample: a cold call costs a flush and two events, whatever it does itself.
MOST_CALLS: Mapping[str, int] = {COLD: 256, WARM: 1024}
_BATCH = 64  # warm calls between two events
_LEAST_LEAD_NS, _MOST_LEAD_NS = 20_000, 4_000_000
_COOL_S = 1.0
# An arm is at fault when the device still works this long after its stream has ended, whichever sample one looks at.
_STRAY_NS = 50_000
_EMPTY_PAIRS = 20


@dataclass(frozen=True)
class Clocks:
    """The device at one moment; None where it does not tell. ``held_back`` names what keeps its clock down now."""

    sm_mhz: int | None = None
    memory_mhz: int | None = None
    temperature_c: int | None = None
    power_w: float | None = None
    held_back: tuple[str, ...] = ()


class CudaDevice(Protocol):
    """The few things that timing asks of a device. Work and events go to one stream; times are in ns."""

    @property
    def flush_bytes(self) -> int:
        """What :meth:`flush` writes: at least twice the L2 cache."""

    def spin(self, duration_ns: int) -> None:
        """Keep the stream busy for about as long, without waiting for it."""

    def flush(self) -> None:
        """Overwrite what the L2 cache holds."""

    def event(self) -> Any:
        """A new event at the end of the stream."""

    def passed(self, event: Any) -> bool:
        """Whether the stream has reached ``event``."""

    def wait(self, event: Any) -> None:
        """Block until the stream has reached ``event``."""

    def between_ns(self, start: Any, end: Any) -> float:
        """Device time from one event to another; both have passed."""

    def synchronise(self) -> None:
        """Block until all streams of the device have ended. Raises what an earlier launch did wrong."""

    def clocks(self) -> Clocks:
        """The device now."""


@dataclass
class _Pace:
    """How one arm is fed in one state: the time to keep the device busy ahead, and the calls between two events.

    ``late`` of the ``pairs`` of events in its samples may hold launch time.
    """

    width: int
    lead_ns: int = _LEAST_LEAD_NS
    pairs: int = 0
    late: int = 0
    hopeless: bool = False
    stray_ns: int | None = None

    def slow_down(self) -> None:
        """More time ahead, then fewer calls in a row; an arm that is late even so is late at any pace."""
        if self.lead_ns < _MOST_LEAD_NS:
            self.lead_ns = min(4 * self.lead_ns, _MOST_LEAD_NS)
        elif self.width > 1:
            self.width //= 8
        else:
            self.hopeless, self.lead_ns = True, _LEAST_LEAD_NS

    def ended(self, stray_ns: int) -> None:
        """The least time the device went on after a sample: one disturbed sample proves nothing."""
        self.stray_ns = stray_ns if self.stray_ns is None else min(self.stray_ns, stray_ns)


class CudaTimer:
    """See :class:`harness.run.measure.rounds.Timer`; ``now`` reads this process's clock, ``pause`` lets time pass."""

    states: Mapping[str, int] = MOST_CALLS

    def __init__(
        self, device: CudaDevice, now: Callable[[], int] = time.perf_counter_ns,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device, self._now, self._pause = device, now, pause
        self._paces: dict[tuple[str, str], _Pace] = {}
        self._seen: list[Clocks] = []
        self._before = Clocks()
        self._begun = False
        self.dropped: list[str] = []
        self.empty_pair_ns = 0.0

    def sample(self, bench: Bench, calls: int, start: int, state: str) -> int:
        """Nanoseconds of device time, at least 1."""
        pace = self._pace(bench.name, state)
        if state == WARM:
            for call in bench.schedule(len(bench.bound), start):
                call()  # the cold sample before this one has flushed what they read
        schedule = bench.schedule(calls, start)
        elapsed_ns, late, pairs = self._take(schedule, pace, state)
        while late and not pace.hopeless:
            pace.slow_down()
            elapsed_ns, late, pairs = self._take(schedule, pace, state)
        pace.late, pace.pairs = pace.late + late, pace.pairs + pairs
        return max(1, round(elapsed_ns))

    def _pace(self, arm: str, state: str) -> _Pace:
        return self._paces.setdefault((arm, state), _Pace(1 if state == COLD else _BATCH))

    def _take(self, schedule: Sequence[Call], pace: _Pace, state: str) -> tuple[float, int, int]:
        """(device time, late pairs, pairs) of one pass over ``schedule``."""
        late, pairs = 0, []
        for at in range(0, len(schedule), pace.width):
            self.device.spin(pace.lead_ns)
            if state == COLD:
                self.device.flush()
            first = self.device.event()
            for call in schedule[at : at + pace.width]:
                call()
            late += self.device.passed(first)
            pairs.append((first, self.device.event()))
        self.device.wait(pairs[-1][1])
        begin = self._now()
        self.device.synchronise()
        pace.ended(self._now() - begin)
        return sum(self.device.between_ns(first, last) for first, last in pairs), late, len(pairs)

    def opened(self) -> None:
        """Look at the clocks."""
        if not self._begun:
            self._begun = True
            self.empty_pair_ns = self._empty_pair_ns()
            for pace in self._paces.values():
                pace.pairs = pace.late = 0  # what calibration needed to find its pace is no sample
        self._before = self.device.clocks()

    def closed(self) -> str | None:
        """Look again: a round in which heat, power or the hardware held the clock back does not count."""
        after = self.device.clocks()
        held_back = sorted({*self._before.held_back, *after.held_back})
        if not held_back:
            self._seen += [self._before, after]
            return None
        reason = ", ".join(held_back)
        self.dropped.append(reason)
        self._pause(_COOL_S)
        return f"the GPU's clock was held back in {len(self.dropped)} rounds: {reason}"

    def _empty_pair_ns(self) -> float:
        """What two events with nothing between them measure: recorded, never taken off."""
        self.device.spin(_MOST_LEAD_NS)
        pairs = [(self.device.event(), self.device.event()) for _ in range(_EMPTY_PAIRS)]
        self.device.synchronise()
        return min(self.device.between_ns(first, last) for first, last in pairs)

    def fault(self, arm: str) -> str | None:
        """Why ``arm`` was not timed whole: after every sample the device went on with something else."""
        found = [pace.stray_ns for (name, _), pace in self._paces.items() if name == arm and pace.stray_ns is not None]
        if not found or min(found) < _STRAY_NS:
            return None
        return (f"works on for {min(found) / 1e3:.0f} us after the stream it is timed on has ended: "
                "let that stream wait for its others")

    def how(self, arm: str) -> dict[str, Any]:
        """How ``arm`` was timed in this process: ranges of the clocks over its rounds, and what went wrong.

        ``late`` maps a state to [pairs of events that may hold launch time, all pairs].
        """
        found: dict[str, Any] = {
            name: [min(values), max(values)]
            for name in ("sm_mhz", "memory_mhz", "temperature_c", "power_w")
            if (values := [value for clocks in self._seen if (value := getattr(clocks, name)) is not None])
        }
        found["dropped_rounds"] = len(self.dropped)
        if self.dropped:
            found["held_back"] = sorted(set(self.dropped))
        found["empty_pair_ns"] = self.empty_pair_ns
        found["late"] = {state: [pace.late, pace.pairs] for (name, state), pace in self._paces.items() if name == arm}
        return found
