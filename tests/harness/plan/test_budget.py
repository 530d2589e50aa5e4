"""Order, estimates and what fits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from harness.declare.card import Measure
from harness.plan.budget import DURATIONS_FILE, Durations, breadth_first, fit, side_by_side
from harness.plan.cell import Cell


def cell(experiment: str = "t", n: int = 0, kind: str = "trial", suite: str = "x/y", **measure) -> Cell:
    return Cell(suite=suite, experiment=experiment, kind=kind, point={"n": n}, seed=0, device="cpu", profile="small",
                arms=("a", "b"), card_version=1, code="0", tuned={}, measure=Measure(**measure), timeout_s=10,
                memory_gib=1)


def test_every_experiment_has_its_first_cell_before_any_has_its_second():
    cells = [*(cell("t", n) for n in range(3)), cell("u"), *(cell("v", n) for n in range(2))]
    order = [f"{item.experiment}{item.point['n']}" for item in breadth_first(cells)]
    assert order == ["t0", "u0", "v0", "t1", "v1", "t2"]


@given(st.lists(st.tuples(st.sampled_from("tuv"), st.integers(0, 50)), max_size=30))
def test_the_order_loses_and_doubles_nothing(pairs):
    cells = [cell(name, n) for name, n in pairs]
    assert Counter(item.id for item in breadth_first(cells)) == Counter(item.id for item in cells)


@given(st.lists(st.floats(0.01, 100), max_size=20), st.floats(0, 200), st.integers(1, 4))
def test_what_fits_never_costs_more_than_the_budget(costs, budget_s, slots):
    durations = Durations("machine")
    cells = [cell(n=index) for index in range(len(costs))]
    for item, seconds in zip(cells, costs, strict=True):
        durations.remember(item, seconds)
    kept, dropped = fit(cells, budget_s, durations, slots)
    assert sum(durations.estimate_s(item) for item in kept) / slots <= budget_s + 1e-9
    assert sorted(item.id for item in kept + dropped) == sorted(item.id for item in cells)
    left_s = budget_s - sum(durations.estimate_s(item) for item in kept) / slots
    assert all(durations.estimate_s(item) / slots > left_s - 1e-9 for item in dropped)


def test_speed_cells_are_not_divided_among_the_slots():
    durations = Durations("machine")
    for kind, fits in (("trial", True), ("speed", False)):
        item = cell(kind=kind, experiment=kind)
        durations.remember(item, 10.0)
        assert bool(fit([item], 6.0, durations, slots=2)[0]) is fits


def test_a_cell_takes_as_long_as_it_did_else_as_its_neighbours():
    durations = Durations("machine")
    unknown = durations.estimate_s(cell(n=1))
    assert unknown > 0
    for seconds in (1.0, 9.0, 2.0):
        durations.remember(cell(n=1), seconds)
    durations.remember(cell("other"), 100.0)
    assert durations.estimate_s(cell(n=1)) == 2.0
    assert durations.estimate_s(cell(n=7)) == 2.0


def test_the_guess_for_a_speed_cell_grows_with_its_samples():
    durations = Durations("machine")
    few = durations.estimate_s(cell(kind="speed", processes=1, rounds=2, min_sample_ms=5))
    many = durations.estimate_s(cell(kind="speed", processes=3, rounds=20, min_sample_ms=50))
    assert many > 2 * few


def test_durations_are_kept_by_machine(tmp_path):
    for machine, seconds in (("one", 1.0), ("two", 2.0)):
        durations = Durations.load(tmp_path, machine)
        durations.remember(cell(), seconds)
        durations.save(tmp_path)
    assert Durations.load(tmp_path, "one").estimate_s(cell()) == 1.0
    assert Durations.load(tmp_path, "two").estimate_s(cell()) == 2.0


def test_a_damaged_memory_is_an_empty_one(tmp_path):
    path = tmp_path / DURATIONS_FILE
    path.parent.mkdir()
    for text in ("{", "[]", '{"one": 3}', '{"one": {"x": "y"}}'):
        path.write_text(text)
        durations = Durations.load(tmp_path, "one")
        assert durations.known == {}
        durations.remember(cell(), 1.0)
        durations.save(tmp_path)
        assert Durations.load(tmp_path, "one").estimate_s(cell()) == 1.0


def test_trials_of_one_gpu_go_one_after_another_beside_those_of_the_cpu():
    cells = [cell(n=0), replace(cell(n=1), device="cuda:0"), cell(n=2), replace(cell(n=3), device="cuda:1"),
             replace(cell(n=4), device="cuda:0")]
    assert [[item.point["n"] for item in group] for group in side_by_side(cells)] == [[0], [1, 4], [2], [3]]
