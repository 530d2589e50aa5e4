"""Interleaved rounds: all arms forward, then backward, so that slow drifts hit every arm alike."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from harness.declare.card import Measure
from harness.records.record import Samples

Call = Callable[[], object]


@dataclass(frozen=True)
class Bench:
    """One arm ready to be timed: the same call bound to each of the rotating input sets."""

    name: str
    bound: tuple[Call, ...]

    def schedule(self, calls: int, start: int) -> list[Call]:
        """``calls`` bound calls in rotation, beginning with set ``start``."""
        width = len(self.bound)
        return [self.bound[(start + index) % width] for index in range(calls)]


class Timer(Protocol):
    """What takes the samples of one kind of device.

    ``states`` are the states of the device in which each arm is timed, with the most calls that one sample may have.
    """

    states: Mapping[str, int]

    def sample(self, bench: Bench, calls: int, start: int, state: str) -> int:
        """Nanoseconds for ``calls`` calls of ``bench`` in ``state``, the first of them on input set ``start``."""

    def opened(self) -> None:
        """A round begins."""

    def closed(self) -> str | None:
        """The round is over: None, or why it does not count and must be taken again."""


class Spoiled(Exception):
    """Too many rounds did not count; the message is the last one's reason."""


class HostTimer:
    """The clock of this process, for calls that are over when they return."""

    states: Mapping[str, int] = {"": 2**20}

    def sample(self, bench: Bench, calls: int, start: int, state: str) -> int:
        """See :class:`Timer`."""
        return time_calls(bench.schedule(calls, start))

    def opened(self) -> None:
        """Nothing to look at."""

    def closed(self) -> str | None:
        """Every round counts: what a CPU does in between shows in all arms alike."""
        return None


def time_calls(schedule: Sequence[Call]) -> int:
    """Nanoseconds for one pass over ``schedule``."""
    clock = time.perf_counter_ns
    begin = clock()
    for call in schedule:
        call()
    return clock() - begin


def calibrate(bench: Bench, min_sample_ns: float, timer: Timer | None = None, state: str = "") -> int:
    """Calls per sample so that a sample lasts at least ``min_sample_ns``; also warms the arm up on two input sets."""
    timer = timer or HostTimer()
    calls, most = 1, timer.states[state]
    while True:
        elapsed_ns = max(1, min(timer.sample(bench, calls, start, state) for start in range(2)))
        if elapsed_ns >= min_sample_ns or calls >= most:
            return calls
        # Aim a little above the target, and never grow more than tenfold on one noisy reading.
        calls = min(most, max(calls + 1, math.ceil(calls * min(10.0, 1.1 * min_sample_ns / elapsed_ns))))


def run_rounds(benches: Sequence[Bench], measure: Measure, process: int, seed: int) -> Mapping[str, Samples]:
    """The samples of every bench by this process's clock, see :func:`interleave`."""
    return interleave(benches, measure, process, seed, HostTimer())[""]


def interleave(
    benches: Sequence[Bench], measure: Measure, process: int, seed: int, timer: Timer
) -> dict[str, dict[str, Samples]]:
    """Samples by state and bench of ``measure.rounds`` rounds; each is a random order forward and then backward.

    A turn takes one sample in each state, on the way back in reverse. A round that does not count is taken again;
    raises Spoiled when more than ``measure.rounds`` did not. Garbage collection is off meanwhile.
    """
    samples = {state: {bench.name: Samples() for bench in benches} for state in timer.states}
    calls = {(bench.name, state): calibrate(bench, measure.min_sample_ms * 1e6, timer, state)
             for bench in benches for state in timer.states}
    taken = {bench.name: 0 for bench in benches}
    order, shuffler = list(benches), random.Random(seed)
    index = spoiled = 0
    with _no_garbage_collection():
        while index < measure.rounds:
            shuffler.shuffle(order)
            timer.opened()
            found = list(_turns(order, calls, taken, timer))
            reason = timer.closed()
            if reason is None:
                for name, state, position, count, elapsed_ns in found:
                    _append(samples[state][name], process, index, position, count, elapsed_ns)
                index += 1
                continue
            spoiled += 1
            if spoiled > measure.rounds:
                raise Spoiled(reason)
    return samples


def _turns(
    order: Sequence[Bench], calls: Mapping[tuple[str, str], int], taken: dict[str, int], timer: Timer
) -> Iterator[tuple[str, str, int, int, int]]:
    """(bench, state, position, calls, nanoseconds) of one round; ``taken`` says which input set comes next."""
    states = list(timer.states)
    for position, bench in enumerate([*order, *reversed(order)]):
        for state in states if position < len(order) else reversed(states):
            count = calls[bench.name, state]
            elapsed_ns = timer.sample(bench, count, taken[bench.name], state)
            taken[bench.name] += count
            yield bench.name, state, position, count, elapsed_ns


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _append(samples: Samples, process: int, index: int, position: int, calls: int, elapsed_ns: int) -> None:
    samples.process.append(process)
    samples.round.append(index)
    samples.position.append(position)
    samples.calls.append(calls)
    samples.elapsed_ns.append(elapsed_ns)
