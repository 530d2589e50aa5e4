import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from scipy import stats

from harness.declare.estimate_spec import EstimateSpec
from harness.declare.suite import Estimate
from harness.judge.estimates import compute
from harness.judge.sample import NotEstimable
from harness.judge.stats.intervals import t_interval, wilson

SPEC = TypeAdapter(EstimateSpec)
A = [1.0, 1.2, 0.9, 1.1, 1.3]
B = [0.8, 1.1, 0.7, 0.8, 1.0]


def estimate(spec, table_and_experiment, level=0.95, **more):
    return compute(SPEC.validate_python(spec), *table_and_experiment, level, **more)


@pytest.fixture
def losses(make_card, rows, trial):
    """arm=[loss per seed] -> tidy rows."""

    def make(**arms):
        records = [trial(arm, {"loss": value, "acc": -value, "plain": value}, seed=seed)
                   for arm, values in arms.items() for seed, value in enumerate(values)]
        return rows(records, make_card(trials={}))

    return make


@pytest.fixture
def times(make_card, rows, speed):
    """arm=[time per round] -> tidy rows of three processes."""

    def make(processes=3, **arms):
        return rows([speed(arm, values, processes=processes) for arm, values in arms.items()],
                    make_card(timing={"kind": "speed"}))

    return make


def test_difference_is_the_paired_t_interval(losses):
    found = estimate({"difference": "loss", "of": "a", "minus": "b"}, losses(a=A, b=B))
    expected = stats.ttest_rel(A, B).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.point, found.n, found.unit) == (pytest.approx(np.mean(A) - np.mean(B)), 5, "seed")
    assert "sign-flip p 0.062" in found.method


def test_relative_difference_divides_by_the_mean(losses):
    found = estimate({"difference": "loss", "of": "a", "minus": "b", "relative": True}, losses(a=A, b=B))
    ratio = np.mean(A) / np.mean(B) - 1
    residuals = (np.array(A) - np.array(B) - ratio * np.array(B)) / np.mean(B)
    assert found.point == pytest.approx(ratio)
    assert (found.high - found.low) / 2 == pytest.approx(stats.t.ppf(0.975, 4) * residuals.std(ddof=1) / math.sqrt(5))


def test_equivalence_is_the_difference_at_the_level_asked(losses):
    found = estimate({"equivalence": "loss", "of": "a", "to": "b", "within": 0.5}, losses(a=A, b=B), 0.9)
    expected = stats.ttest_rel(A, B).confidence_interval(0.9)
    assert (found.low, found.high, found.level) == (pytest.approx(expected.low), pytest.approx(expected.high), 0.9)


def test_trial_ratio_is_the_geometric_mean(losses):
    found = estimate({"ratio": "loss", "of": "a", "to": "b"}, losses(a=A, b=B))
    logs = np.log(np.array(A) / np.array(B))
    assert (found.low, found.point, found.high) == pytest.approx(
        tuple(np.exp([t_interval(logs, 0.95)[0], logs.mean(), t_interval(logs, 0.95)[1]])))


def test_speed_ratio_is_the_median_of_log_ratios(times, noisy):
    a, b = noisy(2.0, seed=1), noisy(1.0, seed=2)
    found = estimate({"ratio": "time", "of": "a", "to": "b"}, times(a=a, b=b))
    assert found.point == pytest.approx(np.exp(np.median(np.log(np.array(a) / np.array(b)))), rel=1e-5)
    assert 1.9 < found.low < found.point < found.high < 2.1
    assert (found.n, found.unit) == (24, "round")


def test_a_drift_common_to_both_arms_leaves_the_ratio_alone(times, noisy):
    a, b = noisy(2.0, seed=1), noisy(1.0, seed=2)
    drift = [1.8 if index % 2 else 1.0 for index in range(24)]
    calm = estimate({"ratio": "time", "of": "a", "to": "b"}, times(a=a, b=b))
    shaky = estimate({"ratio": "time", "of": "a", "to": "b"},
                     times(a=[x * y for x, y in zip(a, drift, strict=True)],
                           b=[x * y for x, y in zip(b, drift, strict=True)]))
    assert (shaky.low, shaky.point, shaky.high) == pytest.approx((calm.low, calm.point, calm.high), rel=1e-5)


@given(st.floats(1e-3, 1e3))
def test_the_unit_of_a_metric_never_changes_a_ratio(scale):
    from harness.judge.sample import Sample

    logs = np.log(np.random.default_rng(0).gamma(5, 1, 24))
    moved = np.log(np.exp(logs + 1) * scale) - np.log(np.exp(np.ones(24)) * scale)
    processes = np.repeat(["p0", "p1", "p2"], 8)
    first, second = Sample(logs, processes, "rounds", "round"), Sample(moved, processes, "rounds", "round")
    assert (*second.bounds(0.95), second.center) == pytest.approx((*first.bounds(0.95), first.center), abs=1e-9)


def test_one_process_says_so(times, noisy):
    found = estimate({"ratio": "time", "of": "a", "to": "b"}, times(1, a=noisy(2, seed=1), b=noisy(1, seed=2)))
    assert "one process" in found.method


def test_mean_of_a_speed_arm_is_its_median_time(times):
    found = estimate({"mean": "time", "of": "a"}, times(a=[1e6, 2e6, 9e6] * 3))
    assert found.point == 2e6


def test_peak_memory_is_one_number_per_cell_and_has_no_width(make_card, rows, speed):
    records = [speed("a", [1e6] * 6, peak_bytes=300), speed("b", [1e6] * 6, peak_bytes=100)]
    found = estimate({"ratio": "peak_bytes", "of": "a", "to": "b"}, rows(records, make_card(timing={"kind": "speed"})))
    assert (found.low, found.point, found.high, found.n, found.unit) == (pytest.approx(3), pytest.approx(3),
                                                                         pytest.approx(3), 1, "cell")


def test_fraction_is_wilsons_and_nan_satisfies_no_condition(losses):
    table = losses(a=[0.5, 0.6, 1.5, math.nan, math.inf])
    found = estimate({"fraction": "loss", "of": "a", "holds_if": "> 1"}, table)
    assert (found.point, found.n) == (0.4, 5)
    assert (found.low, found.high) == pytest.approx(wilson(2, 5, 0.95))


def test_fraction_knows_the_machines_constants(losses):
    spec = {"fraction": "loss", "of": "a", "holds_if": "< cores"}
    found = estimate(spec, losses(a=[1.0, 3.0]), constants={"cores": 2})
    assert found.point == 0.5


@pytest.mark.parametrize(
    "spec",
    [
        {"difference": "loss", "of": "a", "minus": "b"},
        {"difference": "loss", "of": "a", "minus": "b", "relative": True},
        {"ratio": "loss", "of": "a", "to": "b"},
        {"mean": "loss", "of": "a"},
        {"equivalence": "loss", "of": "a", "to": "b", "within": 1},
        {"ordering": "loss", "rising": ["b", "a"]},
        {"rank_correlation": ["loss", "acc"], "of": "a"},
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_value_makes_the_interval_unbounded(losses, spec, bad):
    found = estimate(spec, losses(a=[*A[:4], bad], b=B))
    assert math.isnan(found.point) and (found.low, found.high) == (-math.inf, math.inf)


def test_a_ratio_of_values_that_are_not_positive_is_undefined(losses):
    found = estimate({"ratio": "loss", "of": "a", "to": "b"}, losses(a=[-1.0, 1.0], b=[1.0, 1.0]))
    assert math.isnan(found.point)


def test_a_unit_that_lacks_an_arm_is_an_error_and_not_dropped(losses):
    with pytest.raises(NotEstimable, match="arm 'b' lacks 1 of 5"):
        estimate({"difference": "loss", "of": "a", "minus": "b"}, losses(a=A, b=B[:4]))
    with pytest.raises(NotEstimable, match="arm 'b' lacks 5 of 5"):
        estimate({"difference": "loss", "of": "a", "minus": "b"}, losses(a=A))
    with pytest.raises(NotEstimable, match="no cell"):
        estimate({"mean": "loss", "of": "b"}, losses(a=A))


def test_a_series_is_not_a_number(make_card, rows, trial):
    table = rows([trial("a", {"curve": [1.0, 2.0]})], make_card(trials={}))
    with pytest.raises(NotEstimable, match="series"):
        estimate({"mean": "curve", "of": "a"}, table)


def test_best_is_the_better_arm_at_a_simultaneous_level(losses):
    table = losses(a=A, b=[value + 0.01 * index for index, value in enumerate(A)], c=[2.0, 2.5, 2.2, 2.1, 2.4])
    against_a = estimate({"difference": "loss", "of": "c", "minus": "a"}, table, 0.975)
    against_b = estimate({"difference": "loss", "of": "c", "minus": "b"}, table, 0.975)
    found = estimate({"difference": "loss", "of": "c", "minus": "best(a, b)"}, table)
    assert found.point == max(against_a.point, against_b.point)
    assert (found.low, found.high) == (max(against_a.low, against_b.low), max(against_a.high, against_b.high))
    assert "best of 2" in found.method
    reverse = estimate({"difference": "loss", "of": "best(a, b)", "minus": "c"}, table)
    assert (reverse.low, reverse.high) == pytest.approx((-found.high, -found.low))


def test_best_follows_the_direction_of_the_metric(losses):
    table = losses(a=[1.0, 1.1, 1.2], b=[2.0, 2.1, 2.2])
    assert estimate({"mean": "loss", "of": "best(a, b)"}, table).point == pytest.approx(1.1)
    assert estimate({"mean": "acc", "of": "best(a, b)"}, table).point == pytest.approx(-1.1)
    with pytest.raises(NotEstimable, match="better: none"):
        estimate({"mean": "plain", "of": "best(a, b)"}, table)
    with pytest.raises(NotEstimable, match="no meaning"):
        estimate({"fraction": "loss", "of": "best(a, b)", "holds_if": "> 1"}, table)


def test_choosing_the_best_of_equal_arms_earns_nothing():
    """Three equal arms, best of two against the third: the interval of the difference covers 0 as often as it says."""
    from harness.judge.contrasts import _combined
    from harness.judge.sample import Sample

    rng = np.random.default_rng(0)
    hits = []
    for _ in range(1000):
        a, b, c = rng.normal(0, 1, (3, 5))
        samples = [[Sample(x - c, np.zeros(5), "clusters", "seed")] for x in (a, b)]
        _, (low, high) = _combined(samples, 0.95, min, min)
        hits.append(low <= 0 <= high)
    assert np.mean(hits) >= 0.93


def test_ordering_is_the_least_favourable_gap(losses):
    table = losses(a=A, b=[x + 0.5 for x in A], c=[x + 0.6 + 0.01 * i for i, x in enumerate(A)])
    gaps = [estimate({"difference": "loss", "of": y, "minus": x}, table, 0.975) for x, y in (("a", "b"), ("b", "c"))]
    found = estimate({"ordering": "loss", "rising": ["a", "b", "c"]}, table)
    assert found.point == pytest.approx(min(gap.point for gap in gaps))
    assert (found.low, found.high) == (min(gap.low for gap in gaps), min(gap.high for gap in gaps))
    assert "b to c" in found.method
    log = estimate({"ordering": "loss", "rising": ["a", "b"], "log": True}, table)
    assert log.point == pytest.approx(np.mean(np.log((np.array(A) + 0.5) / np.array(A))))


def test_exact_has_no_width_and_refuses_to_be_sure_when_cells_disagree(losses):
    agree = estimate({"exact": "loss", "of": "a"}, losses(a=[3.5, 3.5, 3.5]))
    assert (agree.low, agree.point, agree.high, agree.n) == (3.5, 3.5, 3.5, 3)
    differ = estimate({"exact": "loss", "of": "a"}, losses(a=[3.5, 3.5, 3.6]))
    assert (differ.low, differ.high) == (-math.inf, math.inf) and "from 3.5 to 3.6" in differ.method
    assert math.isnan(estimate({"exact": "loss", "of": "a"}, losses(a=[math.nan])).point)


def test_pooled_points_are_averaged_within_a_seed(make_card, rows, trial):
    values = {(seed, n): seed * 0.1 + n for seed in range(4) for n in (1, 2, 3)}
    records = [trial("a", {"loss": value}, seed=seed, point={"n": n}) for (seed, n), value in values.items()]
    table = rows(records, make_card(trials={"axes": {"n": [1, 2, 3]}}))
    found = estimate({"mean": "loss", "of": "a"}, table)
    assert (found.n, found.unit) == (4, "seed")
    assert (found.low, found.high) == pytest.approx(t_interval([2.0, 2.1, 2.2, 2.3], 0.95))
    by_axis = estimate({"mean": "loss", "of": "a"}, table, unit="n")
    assert (by_axis.n, by_axis.unit) == (3, "n")
    assert estimate({"mean": "loss", "of": "a"}, table, unit="cell").n == 12
    with pytest.raises(NotEstimable, match="neither an axis"):
        estimate({"mean": "loss", "of": "a"}, table, unit="checkpoint")


def test_slope_of_a_trial_is_one_per_seed(make_card, rows, trial):
    rng = np.random.default_rng(0)
    slopes = [1.5 + 0.1 * seed for seed in range(5)]
    records = [trial("a", {"loss": 3 * (1 + other) * n ** slope}, seed=seed, point={"n": n, "other": other})
               for seed, slope in enumerate(slopes) for n in (2, 4, 16) for other in (0, 1)]
    rng.shuffle(records)
    table = rows(records, make_card(trials={"axes": {"n": [2, 4, 16], "other": [0, 1]}}))
    found = estimate({"slope": "loss", "against": "n", "of": "a"}, table)
    assert found.point == pytest.approx(1.7)
    assert (found.low, found.high) == pytest.approx(t_interval(slopes, 0.95))


def test_slope_of_one_seed_comes_from_the_scatter(make_card, rows, trial):
    x, y = [1, 2, 4, 8, 16], [1.0, 2.2, 3.9, 8.3, 15.0]
    records = [trial("a", {"loss": value}, point={"n": n}) for n, value in zip(x, y, strict=True)]
    found = estimate({"slope": "loss", "against": "n", "of": "a"}, rows(records, make_card(trials={"axes": {"n": x}})))
    line = stats.linregress(np.log(x), np.log(y))
    half = stats.t.ppf(0.975, 3) * line.stderr
    assert (found.point, found.low, found.high) == pytest.approx((line.slope, line.slope - half, line.slope + half))


def test_slope_of_speed(make_card, rows, speed, noisy):
    sizes = [2**10, 2**12, 2**14, 2**16]
    records = [speed("a", noisy(n**0.5 / 10, seed=n), point={"n": n}) for n in sizes]
    table = rows(records, make_card(timing={"kind": "speed", "axes": {"n": sizes}}))
    found = estimate({"slope": "time", "against": "n", "of": "a"}, table)
    assert found.point == pytest.approx(0.5, abs=0.01)
    assert 0.47 < found.low < 0.5 < found.high < 0.53


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"slope": "loss", "against": "n", "of": "a"}, "at least two"),
        ({"slope": "loss", "against": "m", "of": "a"}, "no axis"),
        ({"slope": "loss", "against": "word", "of": "a"}, "not numbers"),
    ],
)
def test_a_slope_that_cannot_be_drawn(make_card, rows, trial, spec, message):
    table = rows([trial("a", {"loss": 1.0}, seed=s, point={"n": 1, "word": "x"}) for s in range(3)],
                 make_card(trials={"axes": {"n": [1], "word": ["x"]}}))
    with pytest.raises(NotEstimable, match=message):
        estimate(spec, table)


def test_rank_correlation_is_spearmans_and_counts_points(make_card, rows, trial):
    rng = np.random.default_rng(1)
    pairs = {(n, seed): (n + rng.normal(), n + rng.normal()) for n in range(10) for seed in range(3)}
    records = [trial("a", {"loss": x, "acc": y}, seed=seed, point={"n": n}) for (n, seed), (x, y) in pairs.items()]
    table = rows(records, make_card(trials={"axes": {"n": list(range(10))}}))
    found = estimate({"rank_correlation": ["loss", "acc"], "of": "a"}, table)
    x, y = zip(*pairs.values(), strict=True)
    assert found.point == pytest.approx(stats.spearmanr(x, y).statistic)
    assert (found.n, found.unit) == (10, "point")
    one_point = estimate({"rank_correlation": ["loss", "acc"], "of": "a"}, (table[0][table[0]["n"] == 3], table[1]))
    assert (one_point.n, one_point.unit) == (3, "cell")


def test_custom_gets_the_rows_the_level_and_its_params(losses):
    seen = {}

    def function(records, level, *, arm):
        seen.update(arms=set(records["arm"]), level=level, arm=arm)
        return Estimate(1.0, 0.9, 1.1, 5, level)

    found = estimate({"custom": "f", "params": {"arm": "a"}}, losses(a=A, b=B), 0.99, custom={"f": function}.get)
    assert seen == {"arms": {"a", "b"}, "level": 0.99, "arm": "a"} and found.level == 0.99


@pytest.mark.parametrize(
    ("answer", "message"),
    [(1.0, "not an Estimate"), (Estimate(1, 2, 0, 5), "upside down"), (Estimate(1, 0, 2, 5, level=95), "level is 95")],
)
def test_custom_that_answers_nonsense(losses, answer, message):
    with pytest.raises((TypeError, ValueError), match=message):
        estimate({"custom": "f"}, losses(a=A), custom=lambda name: lambda records, level: answer)
