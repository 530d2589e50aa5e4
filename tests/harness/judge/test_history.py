"""Change points in series of runs that are written to disk and read back; simulated noise has none."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import LitmusError
from harness.judge.change_points import levels, starts_of_levels
from harness.judge.history import History, worst_first
from harness.judge.measured import COLUMNS, RATIO
from harness.records.record import Samples
from harness.records.store import Run, RunInfo, write_records, write_run_info

SUITE = "fam/slug"
SPEED = {"kind": "speed", "arms": ["ours", "peer", "stream"], "fast_path": {"op": "sum", "peers": ["peer"]}}
TRIALS = {"kind": "trial", "arms": ["a"], "seeds": 5,
          "metrics": {"loss": {"better": "lower", "unit": "nats"}, "acc": {"better": "higher"}, "plain": {},
                      "curve": {"series": True}}}


class Past:
    """Runs of one suite, one a day; ``add`` takes times in ms by arm, or records."""

    def __init__(self, root, card, speed):
        self.root, self.card, self.speed = root, card, speed
        self.runs = []

    def add(self, times=None, records=(), machine="m1", noise=0.004, processes=3, device="cpu", version=1, **info):
        number = len(self.runs)
        made = list(records)
        for arm, time_ms in (times or {}).items():
            draw = random.Random(f"{number} {arm}")
            rounds = [time_ms * 1e6 * draw.gauss(1, noise) for _ in range(processes * 6)]
            error = {"peer": 1e-7, "stream": None}.get(arm, 1e-7)
            made.append(self.speed(arm, rounds, processes=processes, error=error, device=device, card_version=version,
                                   tolerance=1e-6, input_bytes=1))
        folder = self.root / "results" / machine / f"run{number:02d}"
        folder.mkdir(parents=True)
        base = {"run": folder.name, "started_at": 1e9 + 86400.0 * number, "profile": "small", "litmus": "0",
                "commit": f"{number:040x}", "machine": {"key": machine}}
        write_run_info(folder, RunInfo(**{**base, **info}))
        write_records(folder, made)
        self.runs.append(Run(folder))

    def series(self, suite=SUITE):
        history = History({SUITE: self.card})
        for run in self.runs:
            history.add(run, run.records(COLUMNS), (SUITE,))
        return {(item.place.arm, item.place.metric): item for item in history.series(suite)}


@pytest.fixture
def past(tmp_path, make_card, speed):
    return Past(tmp_path, make_card(timing=SPEED, trials=TRIALS), speed)


def found(series):
    return [(item.before.run, item.after.run, item.word, item.machine_changed) for item in series.changes]


def test_a_step_is_located_between_its_runs_with_its_size(past):
    for run in range(8):
        past.add({"ours": 3.0 if run >= 3 else 2.0, "peer": 2.5, "stream": 1.0})
    series = past.series()
    assert found(series["ours", "time"]) == [("run02", "run03", "worse", False)]
    assert found(series["ours", RATIO]) == [("run02", "run03", "worse", None)]
    assert found(series["peer", "time"]) == found(series["stream", "time"]) == []
    change = series["ours", "time"].changes[0]
    assert change.relative and change.change == pytest.approx(0.5, rel=0.03)
    low, center, high = change.start
    assert low < 2e6 < high and center == pytest.approx(2e6, rel=0.02) and change.end[1] == pytest.approx(3e6, rel=0.02)
    assert change.before.commit == f"{2:040x}" and change.after.revision == f"{3:040x}"[:10]
    value = series["ours", "time"].values[0]
    assert value.n == 3 and value.unit == "process" and value.low <= value.center <= value.high
    assert series["ours", "error"].changes == () and series["ours", "error"].values[0].low is None


def test_a_gain_is_better_and_comes_last(past):
    for run in range(8):
        past.add({"ours": 2.0 if run >= 4 else 3.0, "other": 2.0 if run < 4 else 2.4, "peer": 2.5})
    series = past.series()
    assert found(series["ours", "time"]) == [("run03", "run04", "better", False)]
    ranked = worst_first(list(series.values()))
    assert [(item.place.arm, change.word) for item, change in ranked] == [
        ("other", "worse"), ("other", "worse"), ("ours", "better"), ("ours", "better")]


def test_a_slower_machine_is_told_from_slower_code(past):
    for run in range(10):
        slow = 1.4 if run >= 5 else 1.0
        past.add({"ours": 2.0 * slow, "peer": 2.5 * slow, "stream": 1.0 * slow})
    series = past.series()
    assert found(series["ours", "time"]) == [("run04", "run05", "worse", True)]
    assert series["ours", "time"].changes[0].peer_change == pytest.approx(0.4, abs=0.03)
    assert series["ours", RATIO].changes == ()  # the machine's speed cancels
    assert not series["peer", "time"].ours and series["ours", "time"].ours


def test_the_canary_stands_in_for_peers(past, speed):
    for run in range(8):
        slow = 1.3 if run >= 4 else 1.0
        canary = speed("a", [1e6 * slow] * 18, suite="litmus/canary", experiment="aa", error=0.0)
        past.add({"ours": 2.0 * slow}, [canary])
    assert found(past.series()["ours", "time"]) == [("run03", "run04", "worse", True)]
    assert past.series("litmus/canary") == {}


def test_without_peers_nothing_is_said_of_the_machine(past):
    for run in range(8):
        past.add({"ours": 2.0 if run < 4 else 3.0})
    series = past.series()
    assert found(series["ours", "time"]) == [("run03", "run04", "worse", None)]
    assert ("ours", RATIO) not in series


def test_card_versions_data_seeds_and_peers_cut(past, trial):
    for run in range(8):
        past.add({"ours": 2.0 if run < 4 else 3.0, "peer": 1.0}, version=1 if run < 4 else 2)
    series = past.series()["ours", "time"]
    assert series.stretches == ((0, 4), (4, 8)) and series.changes == ()
    for run in range(8):
        past.add(records=[trial("a", {"loss": 2.0 + (run >= 4)}, seed=seed, data="x" if run < 4 else "y")
                          for seed in range(3)])
    for _ in range(4):
        past.add(records=[trial("a", {"loss": 5.0}, seed=seed, data="y") for seed in range(2)])
    loss = past.series()["a", "loss"]
    assert loss.stretches == ((0, 12), (12, 16), (16, 20)) and loss.changes == ()
    for run in range(8):
        past.add({"ours": 2.0, "peer": 1.0, **({"stream": 3.0} if run >= 4 else {})})
    assert past.series()["ours", RATIO].stretches[-1][0] - past.series()["ours", RATIO].stretches[-2][0] == 4


def test_machines_and_profiles_are_apart(past):
    for run in range(8):
        past.add({"ours": 2.0}, machine=f"m{run % 2}")
        past.add({"ours": 4.0}, machine=f"m{run % 2}", profile="smoke")
    history = History({SUITE: past.card})
    for run in past.runs:
        history.add(run, run.records(COLUMNS))
    made = [item for item in history.series(SUITE) if item.place.metric == "time"]
    assert [(item.place.machine, item.place.profile, len(item.moments)) for item in made] == [
        ("m0", "small", 4), ("m0", "smoke", 4), ("m1", "small", 4), ("m1", "smoke", 4)]
    assert all(item.changes == () for item in made)


def test_metrics_take_their_direction_from_the_card(past, trial):
    for run in range(8):
        worse = run >= 5
        past.add(records=[trial("a", {"loss": 2.0 + 0.1 * worse + seed / 100, "acc": 0.9 - 0.1 * worse,
                                      "plain": float(worse), "curve": [1.0, 2.0]}, seed=seed) for seed in range(5)])
    series = past.series()
    assert {name: found(series["a", name]) for name in ("loss", "acc")} == {
        name: [("run04", "run05", "worse", None)] for name in ("loss", "acc")}
    assert found(series["a", "plain"]) == [("run04", "run05", "changed", None)]
    assert ("a", "curve") not in series and series["a", "loss"].unit == "nats"
    change = series["a", "loss"].changes[0]
    assert not change.relative and change.change == pytest.approx(0.1)
    value = series["a", "loss"].values[0]
    assert (value.n, value.unit) == (5, "seed") and value.center == pytest.approx(2.02)
    assert value.low < value.center < value.high


def test_what_did_not_end_well_is_a_gap(past, trial):
    for run in range(9):
        bad = [trial("ours", {}, kind="speed", experiment="timing", status="crashed", reason="r")]
        past.add(*([None, bad] if run == 2 else [{"ours": 2.0 if run < 4 else 3.0}]))
    series = past.series()["ours", "time"]
    assert series.values[2] is None and len(series.moments) == 9 and series.known == 8
    assert found(series) == [("run03", "run04", "worse", None)]


def test_libraries_that_changed_are_named(past):
    for run in range(8):
        past.add({"ours": 2.0 if run < 4 else 3.0}, software={"torch": "2.9" if run < 4 else "2.10", "numpy": "2"})
    assert past.series()["ours", "time"].changes[0].software == ("torch 2.9 → 2.10",)


def test_one_run_is_no_series(past):
    past.add({"ours": 2.0})
    assert past.series() == {}
    past.add({"other": 2.0})
    assert past.series() == {}


def test_the_last_attempt_speaks(past, speed):
    for _ in range(2):
        again = [speed("ours", [time] * 6, cell=cell, attempt=attempt, error=1e-7)
                 for cell, time, attempt in (("new", 2e6, 2), ("old", 9e6, 1))]
        past.add(records=again)
    assert [value.center for value in past.series()["ours", "time"].values] == pytest.approx([2e6, 2e6])


def test_damaged_records_are_refused(past, trial):
    samples = Samples(process=[0, 1], round=[0], position=[0], calls=[1], elapsed_ns=[1])
    bad = trial("ours", {}, kind="speed", experiment="timing", samples=samples)
    past.add(records=[bad])
    with pytest.raises(LitmusError, match="damaged"):
        past.series()


def test_huge_numbers_and_wrong_types_break_nothing(past, speed, trial):
    for run in range(6):
        past.add(records=[speed("ours", [1e15] * 6), trial("a", {"loss": 1e308 * (1 if run < 3 else -1), "acc": "x"}),
                          trial("b", {"loss": math.nan})])
    series = past.series()
    assert series["ours", "time"].changes == () and ("a", "acc") not in series and ("b", "loss") not in series
    assert series["a", "loss"].changes[0].word == "better"


# the rule


def test_noise_alone_has_no_levels():
    draw = np.random.default_rng(5)
    kinds = {"normal": lambda n: draw.normal(0, 0.02, n), "laplace": lambda n: draw.laplace(0, 0.02, n),
             "heavy tails": lambda n: 0.02 * draw.standard_t(3, n)}
    for name, make in kinds.items():
        alarms = sum(len(starts_of_levels(make(int(draw.integers(10, 31))), 2e-3)) > 1 for _ in range(100))
        assert alarms <= 5, name


def test_noise_through_records_has_no_change_points(past):
    arms = {f"arm{index}": 2.0 + index for index in range(40)}
    for _ in range(12):
        past.add(arms, noise=0.02)
    series = [item for key, item in past.series().items() if key[1] == "time"]
    assert len(series) == 40 and sum(bool(item.changes) for item in series) <= 2


@pytest.mark.parametrize("size", [0.1, 0.4])
def test_steps_are_found(size):
    draw = np.random.default_rng(6)
    hits = sum(starts_of_levels(draw.normal(0, 0.015, 16) + size * (np.arange(16) >= 6), 2e-3) == [0, 6]
               for _ in range(100))
    assert hits >= 95


def test_a_bump_has_two_ends_and_one_outlier_none():
    base = np.array([0.0, 0.01, -0.01, 0.005, 0.0, 0.5, 0.51, 0.49, 0.5, 0.0, 0.01, -0.01, 0.0, 0.005])
    assert starts_of_levels(base, 2e-3) == [0, 5, 9]
    assert starts_of_levels(np.where(np.arange(14) == 6, 0.5, base * (base < 0.4)), 2e-3) == [0]


def test_exact_repeats_change_only_beyond_the_floor():
    exact = np.array([1.0] * 4 + [1.00001] * 4)
    assert starts_of_levels(exact, 1e-3) == [0] and starts_of_levels(exact, 1e-7) == [0, 4]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_levels_cover_the_series_in_pieces_of_two(values):
    made = levels(np.array(values), 1e-3, 0.95)
    assert made[0].first == 0 and made[-1].last == len(values)
    assert all(one.last == other.first for one, other in itertools.pairwise(made))
    assert len(made) == 1 or all(item.last - item.first >= 2 for item in made)
    assert all(item.low <= item.center <= item.high for item in made)


def test_intervals_of_levels_cover_their_centers():
    draw = np.random.default_rng(7)
    inside = 0
    for _ in range(300):
        first, second = levels(np.r_[draw.normal(0, 1, 8), draw.normal(40, 1, 8)], 1e-3, 0.95)
        inside += (first.low <= 0 <= first.high) + (second.low <= 40 <= second.high)
    assert 0.93 <= inside / 600 <= 0.98
