"""Who is blamed for a broken worker, and who is run again: with an engine that follows a script."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from harness.declare.card import Measure
from harness.plan.cell import Cell
from harness.records.record import Record, Samples
from harness.run.lanes import Cancelled, run_cell
from harness.run.protocol import Ending, Job, blank_record
from harness.run.stage import TOGETHER


def make(kind: str, processes: int = 2) -> Cell:
    return Cell(suite="x/y", experiment="t", kind=kind, point={}, seed=0, device="cpu", profile="small",
                arms=("a", "b", "c"), card_version=1, code="0", tuned={}, measure=Measure(processes=processes),
                timeout_s=10, memory_gib=1)


@dataclass
class Scripted:
    """``answer(job)`` says which arms it records and how it ends."""

    answer: Callable[[Job], tuple[list[str], Ending]]
    slots: int = 1
    jobs: list[tuple[int, tuple[str, ...]]] = field(default_factory=list)

    def execute(self, job, on_message):
        self.jobs.append((job.process, job.arms))
        cell = Cell.from_json(job.cell)
        recorded, ending = self.answer(job)
        for arm in recorded:
            samples = Samples([job.process], [0], [0], [1], [len(self.jobs)])
            record = replace(blank_record(cell, arm, "ok", None, samples=samples), cell="another id")
            on_message({"kind": "record", "record": asdict(record)})
        return ending


def run(engine: Scripted, cell: Cell) -> dict[str, Record]:
    records: list[Record] = []
    run_cell(engine, Path("/"), cell, cell.arms, records.append, lambda text: None)
    assert sorted(record.arm for record in records) == ["a", "b", "c"]
    assert {record.cell for record in records} == {cell.id}
    return {record.arm: record for record in records}


def statuses(records: dict[str, Record]) -> str:
    return " ".join(records[arm].status for arm in "abc")


DONE = Ending("done")


def crash(arm: str | None) -> Ending:
    return Ending("crashed", "killed by SIGSEGV", arm, "last words")


def test_a_trial_without_trouble_needs_one_worker():
    engine = Scripted(lambda job: (list(job.arms), DONE))
    assert statuses(run(engine, make("trial"))) == "ok ok ok"
    assert engine.jobs == [(0, ("a", "b", "c"))]


def test_the_arm_it_was_in_is_blamed_and_the_rest_run_again():
    engine = Scripted(lambda job: (["a"], crash("b")) if "b" in job.arms else (list(job.arms), DONE))
    records = run(engine, make("trial"))
    assert statuses(records) == "ok crashed ok"
    assert (records["b"].reason, records["b"].stderr_tail) == ("killed by SIGSEGV", "last words")
    assert [records[arm].attempt for arm in "abc"] == [1, 1, 2]
    assert engine.jobs == [(0, ("a", "b", "c")), (0, ("c",))]


def test_nobody_is_blamed_between_two_arms():
    engine = Scripted(lambda job: (["a"], crash("a")) if "a" in job.arms else (list(job.arms), DONE))
    assert statuses(run(engine, make("trial"))) == "ok ok ok"
    assert engine.jobs == [(0, ("a", "b", "c")), (0, ("b", "c"))]


def test_all_are_blamed_before_the_first_arm():
    engine = Scripted(lambda job: ([], crash(None)))
    assert statuses(run(engine, make("trial"))) == "crashed crashed crashed"
    assert len(engine.jobs) == 1


def test_an_arm_that_is_forgotten_is_said():
    engine = Scripted(lambda job: (["a", "c"], DONE))
    records = run(engine, make("trial"))
    assert statuses(records) == "ok crashed ok"
    assert "without this arm's record" in records["b"].reason


def test_a_cancelled_cell_records_nothing_more():
    records: list[Record] = []
    engine = Scripted(lambda job: (["a"], Ending("cancelled", None, "b")))
    with pytest.raises(Cancelled):
        run_cell(engine, Path("/"), make("trial"), ("a", "b", "c"), records.append, lambda text: None)
    assert [record.arm for record in records] == ["a"]


def test_a_speed_cell_joins_its_processes():
    engine = Scripted(lambda job: (list(job.arms), DONE))
    records = run(engine, make("speed", processes=3))
    assert statuses(records) == "ok ok ok"
    assert records["a"].samples.process == [0, 1, 2]
    assert engine.jobs == [(process, ("a", "b", "c")) for process in range(3)]


def test_a_speed_arm_that_breaks_is_left_out_and_the_others_are_paired_anew():
    """What a recorded beside b is dropped: a and c must come from the same rounds."""
    engine = Scripted(lambda job: (["a"], crash("b")) if "b" in job.arms else (list(job.arms), DONE))
    records = run(engine, make("speed"))
    assert statuses(records) == "ok crashed ok"
    assert records["a"].samples.elapsed_ns == records["c"].samples.elapsed_ns
    assert engine.jobs == [(0, ("a", "b", "c")), (0, ("a", "c")), (1, ("a", "c"))]


def test_an_arm_that_breaks_while_all_run_together_is_found():
    engine = Scripted(lambda job: ([], crash(TOGETHER)) if "b" in job.arms else (list(job.arms), DONE))
    records = run(engine, make("speed", processes=1))
    assert statuses(records) == "ok crashed ok"
    assert engine.jobs == [(0, ("a", "b", "c")), (0, ("a",)), (0, ("b",)), (0, ("c",)), (0, ("a", "c"))]


def test_arms_that_only_break_together_all_have_the_status():
    engine = Scripted(lambda job: ([], crash(TOGETHER)) if len(job.arms) > 1 else (list(job.arms), DONE))
    assert statuses(run(engine, make("speed"))) == "crashed crashed crashed"


def test_a_problem_that_breaks_is_every_arms_fault():
    engine = Scripted(lambda job: ([], Ending("timeout", "took longer to load than 70 s", None)))
    assert statuses(run(engine, make("speed"))) == "timeout timeout timeout"
    assert len(engine.jobs) == 1


def test_a_worker_that_breaks_after_its_last_record_spoils_nothing():
    engine = Scripted(lambda job: (list(job.arms), crash("c")))
    assert statuses(run(engine, make("speed"))) == "ok ok ok"
    assert len(engine.jobs) == 2


@pytest.mark.parametrize("recorded", [["a"], ["a", "b"]])
def test_a_speed_worker_that_breaks_between_arms_always_comes_to_an_end(recorded):
    engine = Scripted(lambda job: ([arm for arm in job.arms if arm in recorded], crash("a")))
    records = run(engine, make("speed", processes=1))
    assert records["c"].status == "crashed"
    assert len(engine.jobs) <= 4
