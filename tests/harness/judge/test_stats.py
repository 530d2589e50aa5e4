import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.judge.stats.bootstrap import (
    as_rounds,
    bootstrap_interval,
    hodges_lehmann,
    median_spread,
    nested_interval,
    nested_medians,
)
from harness.judge.stats.holm import first_step_level, holm
from harness.judge.stats.intervals import UNBOUNDED, median_interval, spearman_interval, t_interval, wilson
from harness.judge.stats.tests import sign_flip_p

NUMBERS = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12)


def covered(bounds, truth):
    return np.mean([low <= truth <= high for low, high in bounds])


def test_t_interval_is_scipys():
    values = [0.3, 0.1, 0.5, 0.2, 0.9]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert t_interval(values, 0.9) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_t_interval_without_enough_finite_values_bounds_nothing(values):
    assert t_interval(values, 0.95) == UNBOUNDED


def test_t_interval_of_equal_values_has_no_width():
    assert t_interval([2.0, 2.0, 2.0], 0.95) == (2.0, 2.0)


@pytest.mark.parametrize("level", [0.90, 0.95])
def test_t_interval_covers_with_five_seeds(level):
    draws = np.random.default_rng(1).normal(3.0, 2.0, (2000, 5))
    assert abs(covered([t_interval(row, level) for row in draws], 3.0) - level) < 0.02


def test_wilson_is_scipys_and_covers():
    found = stats.binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert wilson(7, 10, 0.95) == pytest.approx((found.low, found.high))
    assert wilson(0, 0, 0.95) == (0.0, 1.0)
    intervals = [wilson(k, 40, 0.95) for k in range(41)]
    rates = np.linspace(0.02, 0.98, 97)
    inside = np.array([[low <= rate <= high for low, high in intervals] for rate in rates])
    coverage = (inside * stats.binom.pmf(np.arange(41), 40, rates[:, None])).sum(axis=1)
    assert 0.93 < np.mean(coverage) < 0.97


def test_median_interval_is_exact_for_any_distribution():
    assert median_interval([5, 1, 3, 2, 4, 6], 0.95) == (1, 6)
    assert median_interval([1, 2, 3, 4, 5], 0.95) == UNBOUNDED
    assert median_interval([1.0, math.nan] * 10, 0.95) == UNBOUNDED
    draws = np.random.default_rng(2).exponential(1.0, (2000, 24))
    assert covered([median_interval(row, 0.95) for row in draws], math.log(2)) >= 0.945


def test_spearman_interval_is_fishers_with_bonett_and_wrights_variance():
    half = 1.959964 * math.sqrt((1 + 0.25 / 2) / 17)
    expected = (math.tanh(math.atanh(0.5) - half), math.tanh(math.atanh(0.5) + half))
    assert spearman_interval(0.5, 20, 0.95) == pytest.approx(expected, abs=1e-6)
    assert spearman_interval(0.5, 3, 0.95) == (-1.0, 1.0)
    low, high = spearman_interval(1.0, 20, 0.95)
    assert 0.99 < low <= high <= 1.0
    draws = np.random.default_rng(3).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], (1000, 20))
    truth = 6 / math.pi * math.asin(0.3)
    bounds = [spearman_interval(stats.spearmanr(row[:, 0], row[:, 1]).statistic, 20, 0.95) for row in draws]
    assert 0.93 < covered(bounds, truth) < 0.98


def test_hodges_lehmann_by_hand():
    assert hodges_lehmann(np.array([1.0, 2.0, 9.0])) == np.median([1, 1.5, 5, 2, 5.5, 9])


@pytest.mark.parametrize("statistic", ["median", "mean", "hodges_lehmann"])
@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_bootstrap_brackets_its_statistic_and_repeats(statistic, method):
    values = np.random.default_rng(4).gamma(2.0, 1.0, 30)
    low, high = bootstrap_interval(values, 0.95, statistic, method)
    point = {"median": np.median, "mean": np.mean, "hodges_lehmann": hodges_lehmann}[statistic](values)
    assert low < point < high
    assert (low, high) == bootstrap_interval(values[::-1], 0.95, statistic, method)
    assert bootstrap_interval([1.0, math.nan], 0.95) == UNBOUNDED
    assert bootstrap_interval([2.0, 2.0], 0.95) == (2.0, 2.0)


def test_bootstrap_of_the_mean_covers_with_thirty_values():
    draws = np.random.default_rng(5).normal(0.0, 1.0, (400, 30))
    assert covered([bootstrap_interval(row, 0.95, "mean", resamples=400) for row in draws], 0.0) > 0.91


@pytest.mark.parametrize("effect", [0.0, 0.25, 0.5, 1.0, 3.0])
def test_nested_interval_covers_whatever_a_process_does(effect):
    """3 processes x 8 rounds, round noise 1, process effects up to three times that."""
    rng = np.random.default_rng(6)
    data = rng.normal(0.0, 1.0, (1200, 3, 8)) + effect * rng.normal(0.0, 1.0, (1200, 3, 1))
    assert covered([nested_interval(table, 0.95, resamples=300) for table in data], 0.0) >= 0.93


def test_nested_interval_covers_when_a_fifth_of_the_rounds_is_disturbed():
    rng = np.random.default_rng(7)
    noise = rng.normal(0.0, 1.0, (800, 3, 8)) * np.where(rng.random((800, 3, 8)) < 0.2, 6.0, 1.0)
    assert covered([nested_interval(table, 0.95, resamples=300) for table in noise], 0.0) >= 0.93


def test_processes_that_differ_widen_the_nested_interval():
    rounds = np.random.default_rng(8).normal(0.0, 1.0, (3, 8))
    alike = nested_interval(rounds, 0.95)
    apart = nested_interval(rounds + np.array([[-5.0], [0.0], [5.0]]), 0.95)
    assert apart[1] - apart[0] > 4 * (alike[1] - alike[0])


def test_nested_medians_draw_from_the_right_process():
    rounds = np.array([[1.0, 1.0, np.nan], [7.0, 7.0, 7.0]])
    medians, own = nested_medians(rounds, 500)
    assert set(own[:, 0]) == {1.0} and set(own[:, 1]) == {7.0}
    assert set(medians) == {1.0, 4.0, 7.0}


def test_median_spread_takes_the_process_as_unit_when_processes_differ():
    rounds = np.array([[0.0, 0.0], [4.0, 4.0], [8.0, 8.0]])
    assert median_spread(rounds, nested_medians(rounds, 200)[1]) == (16 / 3, 2)


def test_one_process_uses_order_statistics_of_its_rounds():
    values = np.arange(8.0)
    assert nested_interval(values[None], 0.95) == median_interval(values, 0.95) == (0.0, 7.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_round_makes_the_interval_unbounded(bad):
    table = as_rounds(np.array([1.0, 2.0, bad, 4.0]), [0, 0, 1, 1])
    assert nested_interval(table, 0.95) == UNBOUNDED


def test_as_rounds_pads_processes_that_ran_fewer():
    table = as_rounds(np.array([1.0, 5.0, 2.0]), ["b", "a", "b"])
    assert table[0].tolist() == pytest.approx([5.0, math.nan], nan_ok=True)
    assert table[1].tolist() == [1.0, 2.0]


@given(NUMBERS)
def test_sign_flip_equals_enumeration(values):
    flips = [abs(sum(s * v for s, v in zip(signs, values, strict=True)))
             for signs in itertools.product([1, -1], repeat=len(values))]
    bound = abs(sum(values)) - 1e-9 * sum(map(abs, values))
    assert sign_flip_p(values) == pytest.approx(np.mean([flip >= bound for flip in flips]), abs=1e-12)


def test_sign_flip_p_of_five_seeds_is_never_below_a_sixteenth():
    assert sign_flip_p([1, 2, 3, 4, 5]) == 0.0625
    assert sign_flip_p([]) == 1.0
    assert math.isnan(sign_flip_p([1.0, math.nan]))
    assert sign_flip_p(np.ones(40)) < 1e-4


def test_sign_flip_keeps_its_size():
    draws = np.random.default_rng(9).normal(0, 1, (500, 8))
    assert np.mean([sign_flip_p(row) <= 0.05 for row in draws]) < 0.08


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert first_step_level(4) == pytest.approx(0.9875)
    assert first_step_level(0) == pytest.approx(0.95)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_between_the_raw_and_the_bonferroni_p(p):
    adjusted = holm(p)
    assert (adjusted >= np.array(p) - 1e-12).all()
    assert (adjusted <= np.minimum(1, len(p) * np.array(p)) + 1e-12).all()
    assert adjusted[np.argmin(p)] == pytest.approx(min(1, len(p) * min(p)))
