import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from harness.errors import LitmusError
from harness.judge.compare import decide_metric
from harness.judge.paired import column, decide_many, means, read_objects
from harness.judge.unpaired import decide_unpaired, process_spread, read_rounds, relative_to

VALUES = st.one_of(st.floats(-5, 5), st.sampled_from([0.0, 1.0, math.inf, math.nan]))
SLICE = st.integers(1, 4).flatmap(lambda n: st.tuples(*[st.lists(VALUES, min_size=n, max_size=n)] * 2))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SLICE | st.lists(st.floats(1, 1.05), min_size=5, max_size=5).map(lambda x: (x, x[::-1])), max_size=6),
    st.sampled_from(["lower", "higher", "none"]), st.sampled_from([0.0, 0.01, 0.5]), st.booleans(), st.booleans(),
)  # fmt: skip
def test_many_at_once_say_what_one_by_one_say(slices, better, zone, relative, exact):
    base, head = (np.array([value for pair in slices for value in pair[side]], float) for side in (0, 1))
    ends = np.cumsum([len(pair[0]) for pair in slices]).tolist()
    bounds = list(zip([0, *ends[:-1]], ends, strict=True)) if slices else []
    found = decide_many(base, head, bounds, better, (zone, relative), 0.95, exact)
    for (first, last), decision in zip(bounds, found, strict=True):
        expected = decide_metric(base[first:last], head[first:last], better, zone, relative, 0.95, exact)
        if np.isnan(base[first:last]).all() and np.isnan(head[first:last]).all():
            assert decision is None
            continue
        assert (decision.word, decision.reason, decision.n, decision.level) == (
            expected.word, expected.reason, expected.n, expected.level)  # fmt: skip
        for name in ("change", "low", "high"):
            one, other = getattr(decision, name), getattr(expected, name)
            assert (one is None) == (other is None)
            assert one is None or one == pytest.approx(other, rel=1e-9, abs=1e-12)


def test_means_of_slices():
    values = np.array([1.0, 3.0, math.inf, 5.0])
    assert means(values, [(0, 2), (2, 3), (3, 3), (3, 4)]) == [2.0, None, None, 5.0]
    assert means(np.array([]), [(0, 0)]) == [None]


def test_objects_are_read_at_once_or_refused():
    assert read_objects(['{"a": 1}', "{}"]) == [{"a": 1}, {}]
    assert read_objects([]) == []
    for bad in (["[1]"], ["{", "}"], ["{},{}"], ["1"]):
        with pytest.raises(LitmusError, match="damaged"):
            read_objects(bad)
    assert np.array_equal(column([{"a": 1.5}, {}, {"a": "x"}, {"a": True}], "a"), [1.5, *[math.nan] * 3], True)


def frame(*records):
    """Records as lists of (process, round, ns per call)."""
    return pd.DataFrame({
        f"samples_{name}": [np.array([pick(sample) for sample in samples]) for samples in records]
        for name, pick in {
            "process": lambda s: s[0], "round": lambda s: s[1], "calls": lambda s: 10,
            "elapsed_ns": lambda s: round(10 * s[2]),
        }.items()
    })  # fmt: skip


def test_a_round_is_the_median_of_its_samples_and_a_process_that_of_its_rounds():
    rounds = read_rounds(frame([(0, 0, 100), (0, 0, 900), (0, 0, 200), (0, 1, 400), (1, 0, 50)], []))
    assert rounds.row.tolist() == [0, 0, 0] and rounds.process.tolist() == [0, 0, 1]
    assert np.exp(rounds.log_ns) == pytest.approx([200, 400, 50])
    spread = process_spread(rounds, rounds.log_ns, 2)
    middle = [math.log(math.sqrt(200 * 400)), math.log(50)]
    assert spread.mean[0] == pytest.approx(np.mean(middle)) and spread.count.tolist() == [2, 0]
    assert spread.variance[0] == pytest.approx(np.var(middle, ddof=1)) and math.isnan(spread.mean[1])


def test_samples_that_do_not_fit_together_are_refused():
    hurt = frame([(0, 0, 1.0)])
    hurt["samples_calls"] = [np.array([1, 2])]
    with pytest.raises(LitmusError, match="damaged"):
        read_rounds(hurt)
    assert len(read_rounds(frame()).row) == 0


def test_relative_times_do_not_know_the_machines_speed():
    """The second cell at half the speed: the arm stands to its references as before; without one it is unknown."""
    cells = [[(0, 0, 200 * by), (0, 1, 200 * by), (1, 0, 200 * by)] for by in (1, 2)]
    quick = [[(p, r, ns / 2) for p, r, ns in cell] for cell in cells]
    slow = [[(p, r, ns * 2) for p, r, ns in cell] for cell in cells]
    rounds = read_rounds(frame(cells[0], quick[0], slow[0], cells[1], quick[1], slow[1], cells[0]))
    place = np.array([0, 0, 0, 1, 1, 1, 2])
    reference = np.array([False, True, True] * 2 + [False])
    found = relative_to(rounds, place, reference)
    assert found[np.isin(rounds.row, [0, 3])] == pytest.approx(0)
    assert np.isnan(found[rounds.row == 6]).all()


@given(
    st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=8), st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=8)
)  # fmt: skip
def test_the_interval_is_welchs(base, head):
    sides = [(float(np.mean(side)), float(np.var(side, ddof=1)), len(side)) for side in (base, head)]
    found = decide_unpaired(*sides, 0.01, 0.95)
    assert found.change == pytest.approx(math.expm1(np.mean(head) - np.mean(base)), abs=1e-12)
    if np.ptp(base) > 1e-3 and np.ptp(head) > 1e-3:
        low, high = stats.ttest_ind(head, base, equal_var=False).confidence_interval(0.95)
        assert found.low == pytest.approx(math.expm1(low), rel=1e-6, abs=1e-9)
        assert found.high == pytest.approx(math.expm1(high), rel=1e-6, abs=1e-9)


def test_equal_sides_are_called_changed_no_more_often_than_the_level_says():
    rng = np.random.default_rng(7)
    wrong = 0
    for _ in range(1500):
        sides = [rng.normal(0, 0.05, 5) for _ in range(2)]
        numbers = [(float(x.mean()), float(x.var(ddof=1)), 5) for x in sides]
        wrong += decide_unpaired(*numbers, 0.0, 0.95).word in ("slower", "faster")
    assert wrong / 1500 <= 0.07


def test_too_few_processes_or_times_that_are_no_numbers_decide_nothing():
    assert decide_unpaired((0.0, math.nan, 1), (0.5, 0.0, 3), 0.01, 0.95).reason == "few_units"
    assert decide_unpaired((0.0, 0.0, 2), (0.5, 0.0, 2), 0.01, 0.95).reason == "few_units"
    assert decide_unpaired((-math.inf, math.nan, 3), (0.5, 0.0, 3), 0.01, 0.95).reason == "undefined"
    assert decide_unpaired((0.0, 0.0, 3), (0.5, 0.0, 3), 0.01, 0.95).word == "slower"
