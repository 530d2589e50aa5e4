import io
from dataclasses import replace

import pytest
from rich.console import Console

from harness.cli.progress import LiveProgress, PlainProgress, print_failures
from harness.cli.tally import Tally
from harness.declare.card import Measure
from harness.plan.cell import Cell
from harness.plan.plan import Plan, Skip
from harness.records.record import Record

CELL = Cell(
    suite="demo/pairwise",
    experiment="accuracy",
    kind="trial",
    point={"n": 4096},
    seed=0,
    device="cpu",
    profile="small",
    arms=("pairwise", "in_order"),
    card_version=1,
    code="ab",
    tuned={},
    measure=Measure(),
    timeout_s=1.0,
    memory_gib=1.0,
)
CELLS = tuple(replace(CELL, seed=seed) for seed in range(10))


def a_record(cell, status="ok", arm="pairwise", **more):
    return Record(
        cell=cell.id,
        suite=cell.suite,
        experiment=cell.experiment,
        kind="trial",
        arm=arm,
        point=dict(cell.point),
        seed=cell.seed,
        device="cpu",
        profile="small",
        status=status,
        card_version=1,
        code="ab",
        **more,
    )


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def plain(clock):
    out = io.StringIO()
    progress = PlainProgress(Console(file=out, width=120, markup=False, highlight=False), clock=clock)
    progress.planned(Plan(CELLS, (Skip(CELL, "no reason"),)))
    return progress, out, clock


def finish(progress, cell, clock, took_s, status="ok"):
    progress.started(cell)
    clock.now_s += took_s
    progress.recorded(a_record(cell, status))
    progress.finished(cell, took_s)


def test_slow_cells_have_a_line_each(plain):
    progress, out, clock = plain
    for cell in CELLS[:3]:
        finish(progress, cell, clock, 2.0)
    lines = out.getvalue().splitlines()
    assert lines[0] == "10 cells to run, 1 skipped"
    assert lines[1] == "[ 1/10] ok        demo/pairwise:accuracy[n=4096] seed 0 2.0 s, about 18 s left"
    assert len(lines) == 4


def test_fast_cells_have_about_a_line_a_second_and_none_is_lost_from_the_count(plain):
    progress, out, clock = plain
    for cell in CELLS:
        finish(progress, cell, clock, 0.4)
    lines = out.getvalue().splitlines()[1:]
    assert len(lines) == 4, "for 4 s"
    assert lines[1].startswith("[ 4/10]") and "(and 2 more)" in lines[1]
    assert lines[-1].startswith("[10/10]"), "the last cell is always told"


def test_trouble_is_always_told(plain):
    progress, out, clock = plain
    for cell, status in zip(CELLS, ["ok", "crashed", "wrong", "timeout"], strict=False):
        finish(progress, cell, clock, 0.01, status)
    words = [line.split()[1] for line in out.getvalue().replace("[ ", "[").splitlines()[1:]]
    assert words == ["ok", "crashed", "wrong", "timeout"]


def test_a_quiet_display_tells_only_trouble(clock):
    out = io.StringIO()
    progress = PlainProgress(Console(file=out, width=120), quiet=True, clock=clock)
    progress.planned(Plan(CELLS, ()))
    finish(progress, CELLS[0], clock, 5.0)
    finish(progress, CELLS[1], clock, 5.0, "crashed")
    assert [line.split()[1] for line in out.getvalue().replace("[ ", "[").splitlines()] == ["crashed"]


def test_the_table_tells_done_running_left_eta_and_verdicts(clock):
    out = io.StringIO()
    console = Console(file=out, width=100, markup=False, highlight=False)
    progress = LiveProgress(console, clock=clock)
    progress.planned(Plan(CELLS, ()))
    for cell in CELLS[:4]:
        finish(progress, cell, clock, 3.0)
    progress.started(CELLS[4])
    clock.now_s += 1.0
    progress.judged({"suite": "demo/pairwise", "claim": "lower_error", "verdict": "supported"})
    console.print(progress.table())
    text = out.getvalue()
    assert [line.split() for line in text.splitlines() if line.startswith("4/10")] == [
        ["4/10", "1", "5", "13", "s", "18", "s"]
    ]
    assert "demo/pairwise:accuracy[n=4096]  1.0 s" in text
    assert "records: 4 ok" in text
    assert "verdicts so far: 1 supported" in text and "supported demo/pairwise lower_error" in text


def test_time_left_follows_each_experiments_own_cells_and_the_overlap():
    slow = tuple(replace(CELL, experiment="slow", seed=seed) for seed in range(3))
    tally = Tally()
    tally.planned([*CELLS[:3], *slow])
    assert tally.left_s(0.0) is None
    for cell, took_s in ((CELLS[0], 1.0), (slow[0], 9.0)):
        tally.started(cell, 0.0)
        tally.finished(cell, took_s)
    assert tally.left_s(10.0) == pytest.approx(2 * 1.0 + 2 * 9.0)
    assert tally.left_s(5.0) == pytest.approx(10.0), "two side by side so far, so half the time"


def test_cells_dropped_by_the_budget_are_not_waited_for():
    tally = Tally()
    tally.planned(CELLS)
    for arm in CELL.arms:
        tally.recorded(a_record(CELLS[9], "skipped", arm, reason="budget"))
    assert (tally.total, len(tally.waiting)) == (9, 9)
    tally.started(CELLS[0], 0.0)
    tally.recorded(a_record(CELLS[0], "skipped"))
    assert tally.finished(CELLS[0], 1.0) == "skipped"
    assert (tally.total, tally.done, len(tally.waiting)) == (9, 1, 8)


def test_records_of_the_runs_own_yardsticks_are_not_counted():
    tally = Tally()
    tally.planned(CELLS)
    tally.recorded(a_record(replace(CELL, suite="litmus/canary"), "crashed"))
    assert not tally.statuses and not tally.failures


def test_a_cells_word_is_its_worst_arms():
    tally = Tally()
    tally.planned(CELLS)
    tally.started(CELLS[0], 0.0)
    for arm, status in (("pairwise", "ok"), ("in_order", "wrong")):
        tally.recorded(a_record(CELLS[0], status, arm))
    assert tally.finished(CELLS[0], 1.0) == "wrong"
    assert [record.arm for record in tally.failures] == ["in_order"]


def test_failures_are_listed_with_reason_and_repro_line():
    out = io.StringIO()
    failures = [
        a_record(
            cell, "wrong", reason="error above tolerance", error=2.0, tolerance=0.5, repro=f"litmus repro {cell.id}"
        )
        for cell in CELLS[:3]
    ]
    print_failures(Console(file=out, width=200, markup=False), failures, most=2)
    lines = out.getvalue().splitlines()
    assert lines[0] == "wrong demo/pairwise:accuracy pairwise (error 2, tolerance 0.5): error above tolerance"
    assert lines[1].strip() == f"litmus repro {CELLS[0].id}"
    assert lines[-1].startswith("and 1 more")


def test_a_search_that_plans_again_counts_on(plain):
    progress, out, clock = plain
    for cell in CELLS:
        finish(progress, cell, clock, 2.0)
    more = replace(CELL, seed=99)
    progress.planned(Plan((more,), ()))
    finish(progress, more, clock, 2.0)
    assert out.getvalue().splitlines()[-1].startswith("[11/11] ok")


def test_cells_that_an_oracle_dropped_are_not_waited_for(plain):
    progress, _, _ = plain
    for arm in CELL.arms:
        progress.recorded(a_record(CELLS[0], "wrong", arm))
    assert progress.tally.total == 9
    assert [record.status for record in progress.tally.failures] == ["wrong", "wrong"]
