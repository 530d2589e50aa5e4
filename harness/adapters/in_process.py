"""A speed cell proved in this process, for front ends that do the timing themselves."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.declare.suite import Suite
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run.check import InputSet
from harness.run.measure.place import Host, Place
from harness.run.measure.rounds import Bench
from harness.run.protocol import blank_record
from harness.run.speed import Contender, run_speed


@dataclass
class Proved:
    """A cell whose arms were held against the truth: every arm's record, and a bench for each arm that is right.

    A bench holds the arm's call on each of the rotating input sets, as Litmus itself would time it.
    """

    records: dict[str, Record] = field(default_factory=dict)
    benches: dict[str, Bench] = field(default_factory=dict)
    place: Place = field(default_factory=Host)

    def call(self, arm: str) -> Callable[[], Any]:
        """Runs the arm once, on the next of the rotating input sets, and returns when the result is there.

        On CUDA that holds the launch and the wait, so it says what a caller meets, not what the kernel takes.
        """
        runs, settle = itertools.cycle(self.benches[arm].bound), self.place.settle

        def call() -> Any:
            return next(runs)()

        def call_and_wait() -> Any:
            returned = next(runs)()
            settle()
            return returned

        return call if isinstance(self.place, Host) else call_and_wait


def prove(cell: Cell, suite: Suite) -> Proved:
    """Prove the arms of ``cell`` as a worker would, on every input set and once more on new contents, untimed."""
    proved = Proved()
    if cell.device != "cpu":
        from harness.run.measure.gpu import claim, unusable

        reason = unusable(cell.device)
        if reason is not None:
            proved.records = {arm: blank_record(cell, arm, "skipped", reason) for arm in cell.arms}
            return proved
        claim(cell.device, int(cell.memory_gib * 2**30))
    found: list[tuple[Sequence[Contender], Sequence[InputSet]]] = []

    def keep(_: Cell, contenders: Sequence[Contender], sets: Sequence[InputSet], process: int, place: Place) -> None:
        found.append((contenders, sets))
        proved.place = place

    records: list[Record] = []
    run_speed(cell, suite, 0, records.append, sample=keep)
    proved.records = {record.arm: record for record in records}
    # Only now: the last proof has drawn the first input set anew.
    for contenders, sets in found:
        for item in contenders:
            if proved.records[item.name].status == "ok":
                bound = [partial(item.arm.run, *drawn.inputs, *buffers)
                         for drawn, buffers in zip(sets, item.buffers, strict=True)]
                proved.benches[item.name] = Bench(item.name, tuple(bound))
    return proved
