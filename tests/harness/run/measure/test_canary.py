import math

import pytest

from harness.records.record import Record, Samples
from harness.run.measure.canary import NAME, builtin_folder, canary_cells, canary_summary, per_round


def record(arm, times, cell="c0"):
    n = len(times)
    samples = Samples(process=[0] * n, round=list(range(n)), position=[0] * n, calls=[2] * n,
                      elapsed_ns=[int(2 * value) for value in times])
    return Record(cell=cell, suite=NAME, experiment="aa", kind="speed", arm=arm, point={"load": "compute"}, seed=0,
                  device="cpu", profile="small", status="ok", card_version=1, code="0", samples=samples)


def test_equal_arms_raise_no_alarm_and_give_a_small_floor():
    times = [1_000_000 + 1000 * (index % 5) for index in range(30)]
    summary = canary_summary([record("a", times), record("b", list(reversed(times)))])
    assert not summary["alarm"]
    assert summary["low"] <= 0 <= summary["high"]
    assert 0 <= summary["floor"] < 0.01
    assert summary["n"] == 30


def test_a_steady_gap_between_equal_arms_is_an_alarm():
    times = [1_000_000.0 + index for index in range(30)]
    summary = canary_summary([record("a", [1.05 * value for value in times]), record("b", times)])
    assert summary["alarm"]
    assert summary["median_log_ratio"] == pytest.approx(math.log(1.05), rel=1e-3)
    assert summary["floor"] >= 0.049


def test_the_worst_cell_decides():
    quiet = [1_000_000.0] * 20
    summary = canary_summary([
        record("a", quiet), record("b", quiet),
        record("a", [1.1 * value for value in quiet], "c1"), record("b", quiet, "c1"),
    ])
    assert summary["floor"] == pytest.approx(0.1, rel=1e-3)
    assert len(summary["cells"]) == 2


def test_without_a_finished_canary_there_is_no_summary():
    with pytest.raises(ValueError, match="no canary cell"):
        canary_summary([])


def test_per_round_takes_the_median_of_a_rounds_samples():
    samples = Samples(process=[0, 0, 1], round=[0, 0, 0], position=[0, 1, 0], calls=[10, 10, 1],
                      elapsed_ns=[100, 300, 7])
    assert per_round(samples) == {(0, 0): 20.0, (1, 0): 7.0}


def test_the_canary_ships_with_the_harness():
    assert builtin_folder(NAME) is not None
    assert builtin_folder("softmax/two_pass_softmax") is None
    first, second = canary_cells(0), canary_cells(1)
    assert {cell.point["load"] for cell in first} == {"compute", "memory"}
    assert {cell.id for cell in first}.isdisjoint({cell.id for cell in second})
