"""Interleaved rounds on a CPU: all arms forward, then backward, so that slow drifts hit every arm alike."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.declare.card import Measure
from harness.records.record import Samples

Call = Callable[[], object]
_MAX_CALLS = 2**20


@dataclass(frozen=True)
class Bench:
    """One arm ready to be timed: the same call bound to each of the rotating input sets."""

    name: str
    bound: tuple[Call, ...]

    def schedule(self, calls: int, start: int) -> list[Call]:
        """``calls`` bound calls in rotation, beginning with set ``start``."""
        width = len(self.bound)
        return [self.bound[(start + index) % width] for index in range(calls)]


def time_calls(schedule: Sequence[Call]) -> int:
    """Nanoseconds for one pass over ``schedule``."""
    clock = time.perf_counter_ns
    begin = clock()
    for call in schedule:
        call()
    return clock() - begin


def calibrate(bench: Bench, min_sample_ns: float) -> int:
    """Calls per sample so that a sample lasts at least ``min_sample_ns``; also warms the arm up."""
    calls = 1
    while True:
        elapsed_ns = max(1, min(time_calls(bench.schedule(calls, 0)) for _ in range(2)))
        if elapsed_ns >= min_sample_ns or calls >= _MAX_CALLS:
            return calls
        # Aim a little above the target, and never grow more than tenfold on one noisy reading.
        calls = min(_MAX_CALLS, max(calls + 1, math.ceil(calls * min(10.0, 1.1 * min_sample_ns / elapsed_ns))))


def run_rounds(
    benches: Sequence[Bench],
    measure: Measure,
    process: int,
    seed: int,
) -> Mapping[str, Samples]:
    """Time every bench in ``measure.rounds`` rounds; each round is a random order forward and then backward.

    Garbage collection is off while samples are taken.
    """
    samples = {bench.name: Samples() for bench in benches}
    calls = {bench.name: calibrate(bench, measure.min_sample_ms * 1e6) for bench in benches}
    taken = dict.fromkeys(samples, 0)
    order = list(benches)
    shuffler = random.Random(seed)
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for index in range(measure.rounds):
            shuffler.shuffle(order)
            for position, bench in enumerate([*order, *reversed(order)]):
                count = calls[bench.name]
                elapsed_ns = time_calls(bench.schedule(count, taken[bench.name]))
                taken[bench.name] += count
                _append(samples[bench.name], process, index, position, count, elapsed_ns)
    finally:
        if was_enabled:
            gc.enable()
    return samples


def _append(samples: Samples, process: int, index: int, position: int, calls: int, elapsed_ns: int) -> None:
    samples.process.append(process)
    samples.round.append(index)
    samples.position.append(position)
    samples.calls.append(calls)
    samples.elapsed_ns.append(elapsed_ns)
