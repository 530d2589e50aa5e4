"""One process of a speed cell: prove the arms, time them interleaved, prove them again; then join the processes."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import numpy as np

from harness.declare.seeds import seed_for
from harness.declare.suite import Arm, NotTestable, Problem, SkipArm, Suite
from harness.plan.cell import Cell
from harness.records.record import Record, Samples
from harness.run import check
from harness.run.faults import describe, is_out_of_memory
from harness.run.measure.memory import fresh_bytes
from harness.run.measure.place import Place, place_of
from harness.run.measure.rounds import Bench, Spoiled
from harness.run.measure.threads import limit_threads
from harness.run.protocol import blank_record
from harness.run.stage import TOGETHER
from harness.run.trial import data_of

# A later process or check can only worsen a status.
_SEVERITY = ("ok", "skipped", "throttled", "timeout", "oom", "crashed", "wrong")


def _begun(cell: Cell, arm: str) -> Record:
    """The record of an arm that begins now; ``crashed`` until something better is known."""
    return blank_record(cell, arm, "crashed", None, started_at=time.time())


@dataclass
class Contender:
    """An arm on its way through a process: its buffers for each input set and the record so far."""

    name: str
    arm: Arm
    record: Record
    buffers: list[tuple[Any, ...]] = field(default_factory=list)

    def note(self, proof: check.Proof, when: str) -> None:
        """Keep the largest error; a fault makes the arm wrong and drops its samples."""
        if proof.fault:
            self.record = replace(self.record, status="wrong", reason=f"{when}: {proof.fault}", error=proof.error,
                                  samples=Samples(), other_samples=Samples())
        elif self.arm.checked:
            self.record = replace(self.record, error=max(proof.error, self.record.error or 0.0))

    def crash(self, error: BaseException) -> None:
        """It raised ``error``: its status, and no samples."""
        self.record = replace(
            self.record, status="oom" if is_out_of_memory(error) else "crashed",
            reason=describe(error)[:500], stderr_tail=traceback.format_exc()[-4000:],
            samples=Samples(), other_samples=Samples(),
        )

    @property
    def alive(self) -> bool:
        """Whether it is right so far."""
        return self.record.status == "ok"


Sampler = Callable[[Cell, Sequence[Contender], Sequence[check.InputSet], int, Place], None]


def run_speed(
    cell: Cell,
    suite: Suite,
    process: int,
    emit: Callable[[Record], None],
    enter: Callable[[str], None] = lambda _: None,
    place: Place | None = None,
    sample: Sampler | None = None,
) -> None:
    """Run process number ``process`` of ``cell`` and emit one partial record per arm.

    ``enter(arm)`` is called before an arm first runs, ``enter("*")`` before the rounds, so that whoever watches
    knows whom a crash of the process belongs to. ``sample`` times the arms that are right in place of the rounds.
    Raises what an arm did where this process cannot go on after it.
    """
    place = place or place_of(cell.device, cell.measure.cache)
    suite.data.clear()

    def hand_in(record: Record) -> None:
        emit(replace(record, data=data_of(suite)))

    limit_threads(cell.point.get("threads", 1))
    rng = np.random.default_rng(seed_for("inputs", cell.suite, cell.experiment, cell.seed, process))
    try:
        problem = suite.speeds[cell.experiment](point=cell.point, rng=rng, device=cell.device)
    except (NotTestable, SkipArm) as reason:
        for name in cell.arms:
            hand_in(replace(_begun(cell, name), status="skipped", reason=str(reason)))
        return
    limit_threads(cell.point.get("threads", 1))
    contenders = _contenders(cell, problem, place, hand_in)
    sets = [check.InputSet(problem, rng) for _ in range(problem.rotate)]
    shared = [tuple(problem.buffers(*drawn.inputs)) for drawn in sets]
    for contender in contenders:
        enter(contender.name)
        _guard(contender, place, partial(_prove_before, problem, contender, sets, shared, process, place))
    enter(TOGETHER)
    (sample or _time)(cell, [item for item in contenders if item.alive], sets, process, place)
    if process == 0:
        sets[0].redraw(rng)
    for contender in contenders:
        if contender.alive:
            enter(contender.name)
            _guard(contender, place, partial(_prove_after, problem, contender, sets[0], place))
        hand_in(contender.record)


def _contenders(cell: Cell, problem: Problem, place: Place, emit: Callable[[Record], None]) -> list[Contender]:
    contenders = []
    for name in cell.arms:
        arm = problem.arms.get(name)
        record = _begun(cell, name)
        if arm is None:
            emit(replace(record, reason=f"the problem has no arm '{name}'; it has {', '.join(problem.arms)}"))
        elif isinstance(arm, SkipArm):
            emit(replace(record, status="skipped", reason=str(arm)))
        else:
            tolerance = arm.tolerance if arm.tolerance is not None else problem.tolerance
            record = replace(record, status="ok", input_bytes=int(problem.input_bytes), tolerance=tolerance,
                             bytes_moved=float(arm.bytes_moved), flops=float(arm.flops), cache=place.cache,
                             workspace_bytes=None if arm.workspace_bytes is None else float(arm.workspace_bytes))
            contenders.append(Contender(name, arm, record))
    return contenders


def _guard(contender: Contender, place: Place, step: Callable[[], None]) -> None:
    """Whatever an arm raises is that arm's result, never the end of the others.

    Some faults of CUDA stay for the life of the process: then it ends, and the others are run in a new one.
    """
    begin_ns = time.perf_counter_ns()
    try:
        step()
    except SkipArm as reason:
        contender.record = replace(contender.record, status="skipped", reason=str(reason))
    except Exception as error:  # an arm may raise anything; it is recorded, with its traceback
        contender.crash(error)
        if not place.usable():
            raise
        place.release()
    elapsed_ns = time.perf_counter_ns() - begin_ns
    contender.record = replace(contender.record, elapsed_ns=contender.record.elapsed_ns + elapsed_ns)


def _prove_before(
    problem: Problem, contender: Contender, sets: Sequence[check.InputSet], shared: list[tuple[Any, ...]],
    process: int, place: Place,
) -> None:
    """The first process proves the arm on every input set, later ones on one.

    Arms without buffers of their own share the problem's, so that all write to the same pages.
    """
    arm = contender.arm
    own = arm.in_place or arm.buffers is not None
    for index, drawn in enumerate(sets):
        contender.buffers.append(check.buffers_of(problem, arm, drawn.inputs) if own else shared[index])
        if index and process:
            continue
        proof = check.prove(problem, arm, drawn, contender.buffers[-1], place=place)
        if index == 0:
            contender.record = replace(contender.record, first_call_ns=proof.call_ns)
        contender.note(proof, "before being timed")
        if proof.fault:
            return
    if process == 0:
        given = (*sets[0].inputs, *contender.buffers[0])
        seen = place.observe(partial(arm.run, *given))
        contender.record = replace(contender.record, peak_bytes=seen.peak_bytes, how=dict(seen.how),
                                   returned_bytes=fresh_bytes(seen.returned, given))


def _time(
    cell: Cell, contenders: Sequence[Contender], sets: Sequence[check.InputSet], process: int, place: Place
) -> None:
    """Interleave the arms that are right."""
    if not contenders:
        return
    benches = [
        Bench(item.name, tuple(partial(item.arm.run, *drawn.inputs, *buffers)
                               for drawn, buffers in zip(sets, item.buffers, strict=True)))
        for item in contenders
    ]
    try:
        timing = place.time(benches, cell.measure, process, seed_for("order", cell.id, process))
    except Spoiled as reason:
        for item in contenders:
            item.record = replace(item.record, status="throttled", reason=str(reason))
        return
    for item in contenders:
        samples, others = timing.samples[item.name], timing.others.get(item.name, Samples())
        elapsed_ns = item.record.elapsed_ns + sum(samples.elapsed_ns) + sum(others.elapsed_ns)
        item.record = replace(item.record, samples=samples, other_samples=others, elapsed_ns=elapsed_ns,
                              how={**item.record.how, **timing.how.get(item.name, {})})
        if item.name in timing.faults:
            item.note(check.Proof(float("nan"), timing.faults[item.name]), "while being timed")


def _prove_after(problem: Problem, contender: Contender, drawn: check.InputSet, place: Place) -> None:
    """Once more; in the first process on new contents at old addresses, where a result cached by address is stale."""
    proof = check.prove(problem, contender.arm, drawn, contender.buffers[0], times=2, place=place)
    contender.note(proof, "after being timed")


def merge(partials: Sequence[Record]) -> Record:
    """One arm's record from its processes: the worst status wins, samples are joined only where all are ok."""
    worst = max(partials, key=lambda item: _SEVERITY.index(item.status))
    first = partials[0]
    errors = [item.error for item in partials if item.error is not None]
    joined = replace(
        worst,
        started_at=min(item.started_at for item in partials),
        elapsed_ns=sum(item.elapsed_ns for item in partials),
        first_call_ns=first.first_call_ns,
        peak_bytes=max(item.peak_bytes for item in partials),
        returned_bytes=max(item.returned_bytes for item in partials),
        error=max(errors) if errors else None,
        how=_joined_how([item.how for item in partials]),
        samples=Samples(),
        other_samples=Samples(),
    )
    if worst.status != "ok":
        return joined
    return replace(joined, samples=_joined([item.samples for item in partials]),
                   other_samples=_joined([item.other_samples for item in partials]))


def _joined(parts: Sequence[Samples]) -> Samples:
    return Samples(**{column.name: [value for part in parts for value in getattr(part, column.name)]
                      for column in fields(Samples)})


def _joined_how(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What one process says holds for all; the conditions of each are kept apart."""
    together = {name: value for part in reversed(parts) for name, value in part.items()}
    processes = [item for part in parts for item in part.get("processes", [])]
    return {**together, "processes": processes} if processes else together
