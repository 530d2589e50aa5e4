"""Words about two sides: a table for every reason, and what the intervals promise, by scipy and by simulation."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.judge.compare import (
    Decision,
    cell_alpha,
    decide_metric,
    decide_speed,
    holm,
    one_sided,
    process_medians,
    zone,
)
from harness.judge.comparison import REASONS, Comparison
from harness.judge.stats.bootstrap import bootstrap_interval, nested_interval

NAN, INF = math.nan, math.inf


def steady(change, pairs=8, rounds=6, spread=0.001):
    """Rounds whose process medians are log1p(change) on average and vary by ``spread``, evenly."""
    wobble = np.linspace(-spread, spread, pairs)[:, None] + np.linspace(-0.01, 0.01, rounds)
    return math.log1p(change) + wobble


SPEED = {
    "slower": (steady(0.05), "slower", "beyond_zone"),
    "faster": (steady(-0.05), "faster", "beyond_zone"),
    "same": (steady(0.0), "same", "inside_zone"),
    "same, though not nothing": (steady(0.005), "same", "inside_zone"),
    "on the bound": (steady(0.01), "inconclusive", "straddles_zone"),
    "too wide": (steady(0.05, spread=0.1), "inconclusive", "straddles_zone"),
    "one pair": (steady(0.5, pairs=1), "inconclusive", "few_units"),
    "no pair": (np.empty((0, 6)), "inconclusive", "few_units"),
    "nothing but gaps": (np.full((4, 6), NAN), "inconclusive", "few_units"),
    "too few pairs to be sure": (steady(0.5, pairs=3), "inconclusive", "few_units"),
    "few pairs are enough for same": (steady(0.0, pairs=3, spread=0.0001), "same", "inside_zone"),
    "a time of zero": (np.array([[0.0, -INF], [0.0, 0.0]]), "inconclusive", "undefined"),
}


@pytest.mark.parametrize("name", SPEED)
def test_speed_word_and_reason(name):
    rounds, word, reason = SPEED[name]
    found = decide_speed(rounds, 0.01, 0.99)
    assert (found.word, found.reason) == (word, reason)
    assert found.reason in REASONS and found.level == 0.99 and found.unit == "process"


METRIC = {
    # base, head, better, threshold, relative -> word, reason
    "identical": ([1, 2], [1, 2], "lower", 0.0, False, "same", "identical"),
    "identical without a number": ([1, NAN], [1, NAN], "lower", 0.0, False, "same", "identical"),
    "worse, lower is better": ([1.0, 1.1, 0.9], [2.0, 2.1, 1.9], "lower", 0.1, False, "worse", "beyond_zone"),
    "better, lower is better": ([2.0, 2.1, 1.9], [1.0, 1.1, 0.9], "lower", 0.1, False, "better", "beyond_zone"),
    "worse, higher is better": ([0.9, 0.8], [0.7, 0.6], "higher", 0.1, False, "worse", "beyond_zone"),
    "better, higher is better": ([0.7, 0.6], [0.9, 0.8], "higher", 0.1, False, "better", "beyond_zone"),
    "same": ([1.0, 2.0, 3.0], [1.001, 2.0, 3.0], "lower", 0.1, False, "same", "inside_zone"),
    "straddles": ([1.0, 2.0, 3.0], [1.5, 2.0, 3.1], "lower", 0.1, False, "inconclusive", "straddles_zone"),
    "no direction": ([1.0, 2.0], [5.0, 6.0], "none", 0.1, False, "inconclusive", "one_direction"),
    "no direction, same": ([1.0, 2.0], [1.05, 2.05], "none", 0.1, False, "same", "inside_zone"),
    "no direction, not sure": ([1.0, 2.0], [1.0, 2.5], "none", 0.1, False, "inconclusive", "straddles_zone"),
    "exact, worse": ([4.0], [5.0], "lower", 0.2, True, "worse", "beyond_zone"),
    "exact, on the threshold": ([4.0], [5.0], "lower", 0.25, True, "same", "inside_zone"),
    "from a base of zero": ([0.0, 0.0], [0.1, 0.1], "lower", 10.0, True, "worse", "beyond_zone"),
    "negative base, relative": ([-4.0], [-5.0], "higher", 0.2, True, "worse", "beyond_zone"),
    "head lost a number": ([1.0, 2.0], [1.0, NAN], "lower", 0.1, False, "worse", "beyond_zone"),
    "head overflowed": ([1.0, 2.0], [1.0, INF], "higher", 0.1, False, "worse", "beyond_zone"),
    "head lost one and mended one": ([NAN, 2.0], [1.0, NAN], "lower", 0.1, False, "worse", "beyond_zone"),
    "base had none": ([1.0, NAN], [1.0, 2.0], "lower", 0.1, False, "inconclusive", "undefined"),
    "both lack one": ([1.0, NAN], [2.0, NAN], "lower", 0.1, False, "inconclusive", "undefined"),
    "lost without a direction": ([1.0], [NAN], "none", 0.1, False, "inconclusive", "undefined"),
    "no seeds": ([], [], "lower", 0.1, False, "inconclusive", "few_units"),
}


@pytest.mark.parametrize("name", METRIC)
def test_metric_word_and_reason(name):
    base, head, better, threshold, relative, word, reason = METRIC[name]
    found = decide_metric(np.array(base, float), np.array(head, float), better, threshold, relative, 0.95)
    assert (found.word, found.reason) == (word, reason)
    assert found.unit == "seed" and found.n == len(base)


def test_a_single_seed_that_chance_moved_is_too_few():
    found = decide_metric(np.array([1.0]), np.array([2.0]), "lower", 0.1, False, 0.95, deterministic=False)
    assert (found.word, found.reason, found.change, found.low) == ("inconclusive", "few_units", 1.0, None)


def test_values_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="not paired"):
        decide_metric(np.ones(3), np.ones(2), "lower", 0.1, False, 0.95)


def test_detail_counts_the_seeds_that_were_lost():
    found = decide_metric(np.ones(3), np.array([1.0, NAN, INF]), "lower", 0.1, False, 0.95)
    assert "2 of 3 seeds" in found.detail and found.change is None


def test_zone_is_the_wider_of_what_matters_and_what_equal_code_showed():
    assert zone(0.01, 0.004) == 0.01
    assert zone(0.01, 0.02) == 0.02


def test_speed_interval_is_scipys_t_over_process_medians():
    rounds = np.random.default_rng(1).normal(0.03, 0.01, (6, 9))
    expected = stats.ttest_1samp(np.median(rounds, axis=1), 0).confidence_interval(0.98)
    found = decide_speed(rounds, 0.01, 0.98)
    assert (found.low, found.high) == pytest.approx((math.expm1(expected.low), math.expm1(expected.high)))
    assert found.change == pytest.approx(math.expm1(np.median(rounds, axis=1).mean()))


def test_metric_interval_is_scipys_paired_t():
    base, head = np.random.default_rng(2).normal(5, 1, (2, 7))
    expected = stats.ttest_rel(head, base).confidence_interval(0.9)
    absolute = decide_metric(base, head, "lower", 0.1, False, 0.9)
    relative = decide_metric(base, head, "lower", 0.1, True, 0.9)
    assert (absolute.low, absolute.high) == pytest.approx((expected.low, expected.high))
    assert (relative.low, relative.high) == pytest.approx((expected.low / base.mean(), expected.high / base.mean()))


@pytest.mark.parametrize("effect", [0.0, 0.5, 3.0], ids=lambda effect: f"process effect {effect}")
@pytest.mark.parametrize("level", [0.95, 0.999])
def test_speed_interval_covers(level, effect):
    """2,000 sets of 6 process pairs of 10 rounds with heavy tails, pairs that differ or not."""
    rng = np.random.default_rng(3)
    data = 0.02 + 0.01 * (rng.standard_t(4, (2000, 6, 10)) + effect * rng.normal(0, 1, (2000, 6, 1)))
    found = [decide_speed(rounds, 0.01, level) for rounds in data]
    coverage = np.mean([item.low <= math.expm1(0.02) <= item.high for item in found])
    assert 0.93 <= coverage <= 0.97 if level == 0.95 else coverage >= 0.997


def test_metric_interval_covers():
    rng = np.random.default_rng(4)
    seeds = rng.normal(10.0, 3.0, (2000, 5))
    data = zip(seeds, seeds + rng.normal(0.2, 0.5, (2000, 5)), strict=True)
    found = [decide_metric(base, head, "lower", 0.1, False, 0.95) for base, head in data]
    assert 0.93 <= np.mean([item.low <= 0.2 <= item.high for item in found]) <= 0.97


@pytest.mark.parametrize(("statistic", "n"), [("median", 40), ("mean", 60)])
def test_bootstrap_interval_covers(statistic, n):
    data = np.random.default_rng(5).normal(0.0, 1.0, (2000, n))
    found = [bootstrap_interval(row, 0.95, statistic, resamples=500) for row in data]
    assert 0.93 <= np.mean([low <= 0.0 <= high for low, high in found]) <= 0.97


@pytest.mark.slow
def test_nested_interval_covers():
    """2,000 sets of 6 processes of 10 rounds with heavy tails, processes that differ as much as rounds do."""
    rng = np.random.default_rng(6)
    data = rng.standard_t(4, (2000, 6, 10)) + rng.normal(0, 1, (2000, 6, 1))
    found = [nested_interval(rounds, 0.95, resamples=300) for rounds in data]
    assert 0.93 <= np.mean([low <= 0.0 <= high for low, high in found]) <= 0.97


@given(st.lists(st.lists(st.one_of(st.floats(-5, 5), st.just(NAN)), min_size=4, max_size=4), min_size=1, max_size=6))
def test_process_medians_are_numpys(rows):
    table = np.array(rows)
    table = table[~np.isnan(table).all(axis=1)]
    assert process_medians(table) == pytest.approx([np.median(row[~np.isnan(row)]) for row in table])


@given(st.floats(-0.3, 0.3), st.floats(0.001, 0.2), st.integers(2, 10))
def test_swapping_the_sides_swaps_the_word(change, spread, pairs):
    rounds = steady(change, pairs=pairs, spread=spread)
    there, back = decide_speed(rounds, 0.01, 0.95), decide_speed(-rounds, 0.01, 0.95)
    swapped = {"slower": "faster", "faster": "slower"}
    assert back.word == swapped.get(there.word, there.word) and back.reason == there.reason


@given(st.lists(st.floats(-9, 9), min_size=2, max_size=6), st.floats(0, 3), st.booleans())
def test_a_change_shrinks_to_doubt_as_the_level_rises(values, threshold, relative):
    base, head = np.ones(len(values)), np.array(values)
    words = [decide_metric(base, head, "lower", threshold, relative, level).word for level in (0.5, 0.9, 0.999)]
    assert all(later in (earlier, "inconclusive") for earlier, later in itertools.pairwise(words))


def compared(verdict="slower", reason="beyond_zone", low=0.02, high=0.04, **changes):
    values = {"suite": "s", "experiment": "e", "arm": "a", "metric": "time", "level": 0.99, **changes}
    return Comparison(verdict=verdict, reason=reason, low=low, high=high, **values)


def standing(errors):
    """``again`` for comparisons whose bad word stands down to an error rate, by the name of their arm."""

    def again(comparison, level):
        if 1 - level >= errors[comparison.arm] * (1 - 1e-6):
            return Decision(comparison.verdict, "beyond_zone", 0.03, 0.02, 0.04, level, 8, "process")
        return Decision("inconclusive", "straddles_zone", 0.03, 0.005, 0.05, level, 8, "process")

    return again


def after_holm(errors, others=(), alpha=0.05):
    comparisons = [compared(arm=name, level=0.95) for name in errors] + list(others)
    return [item.verdict for item in holm(comparisons, alpha, standing(errors))]


def test_holm_keeps_what_stands_at_the_level_of_its_step():
    # 0.05 / 3, then / 2, then / 1: the second smallest fails its step, and with it the largest.
    assert after_holm({"a": 0.01, "b": 0.03, "c": 0.04}) == ["slower", "inconclusive", "inconclusive"]
    assert after_holm({"a": 0.01, "b": 0.02, "c": 0.04}) == ["slower", "slower", "slower"]
    assert after_holm({"c": 0.04, "a": 0.01, "b": 0.02}) == ["slower", "slower", "slower"]
    assert after_holm({"a": 0.02}) == ["slower"]
    assert after_holm({"a": 0.06}) == ["inconclusive"]


def test_holm_counts_only_gating_comparisons_that_chance_could_turn():
    error = {"a": 0.02}
    same = compared("same", "inside_zone", arm="b")
    aside = [compared("same", "identical", arm="b"), compared("incomparable", "only_head", arm="b"),
             compared("slower", arm="b", gates=False), compared("incomparable", "head_status", arm="b")]
    assert after_holm(error, [same, same])[0] == "inconclusive"
    assert after_holm(error, aside) == ["slower", "same", "incomparable", "slower", "incomparable"]


def test_holm_says_what_did_not_survive_and_at_which_level():
    kept, lost = holm([compared(arm="a"), compared(arm="b")], 0.05, standing({"a": 1e-12, "b": 0.5}))
    assert kept.verdict == "slower" and kept.level == 0.99  # its own level is higher than 1 - 0.05 / 2
    assert (lost.verdict, lost.reason) == ("inconclusive", "not_after_holm")
    assert lost.low == 0.005 and lost.level == pytest.approx(0.95) and "slower at the level 0.99" in lost.detail


def test_holm_raises_the_level_of_what_it_keeps():
    found = holm([compared(arm="a")] + [compared("same", "inside_zone", arm="b")] * 99, 0.05, standing({"a": 1e-4}))
    assert found[0].verdict == "slower" and found[0].level == pytest.approx(0.9995)
    assert found[1:] == (compared("same", "inside_zone", arm="b"),) * 99


def test_holm_of_nothing_is_nothing():
    assert holm([], 0.05, standing({})) == ()


def test_holm_agrees_with_p_values_of_the_t_test():
    """The bisected p is that of the one-sample t test against the bound of the zone, so Holm can be done by hand."""
    rng = np.random.default_rng(9)
    data = {str(i): rng.normal(0.01 + shift, 0.004, (8, 1)) for i, shift in enumerate((0.003, 0.004, 0.008, 0.02))}
    bad = [compared(arm=name, level=0.9) for name in data]
    found = holm(bad, 0.05, lambda item, level: decide_speed(data[item.arm], math.expm1(0.01), level))
    p = np.sort([2 * stats.ttest_1samp(rows[:, 0], 0.01, alternative="greater").pvalue for rows in data.values()])
    kept = next((i for i, value in enumerate(p) if value > 0.05 / (4 - i)), 4)
    assert 0 < kept < 4 and sum(item.verdict == "slower" for item in found) == kept


def test_cell_alpha_shares_the_familys_error():
    assert cell_alpha(0) == cell_alpha(1) == cell_alpha(5) == 0.01
    assert cell_alpha(100) == 0.0005


def moved(slower, faster, still=3):
    return ([compared(low=0.01, high=0.02)] * slower + [compared("faster", low=-0.02, high=-0.01)] * faster
            + [compared("same", "inside_zone", low=-0.01, high=0.01)] * still)


def test_one_sided_changes_raise_an_alarm():
    assert "11 of the 11 times that moved got slower" in one_sided(moved(11, 0))
    assert "20 of the 22 times that moved got faster" in one_sided(moved(2, 20))


@pytest.mark.parametrize(("slower", "faster"), [(0, 0), (7, 0), (10, 0), (12, 4), (6, 6)])
def test_changes_that_chance_explains_raise_none(slower, faster):
    assert one_sided(moved(slower, faster)) is None


def test_one_sided_looks_at_times_alone():
    metrics = [compared("worse", metric="loss", low=0.1, high=0.2)] * 20
    unknown = [compared("inconclusive", "budget_spent", low=None, high=None)] * 20
    gone = [compared("incomparable", "machine", low=0.1, high=0.2)] * 20
    assert one_sided(metrics + unknown + gone) is None


@pytest.mark.parametrize(("slower", "faster"), [(11, 0), (12, 1), (15, 3), (9, 0)])
def test_one_sided_is_the_sign_test(slower, faster):
    p = 2 * stats.binom.sf(slower - 1, slower + faster, 0.5)
    assert (one_sided(moved(slower, faster)) is not None) == (p < 0.001)
