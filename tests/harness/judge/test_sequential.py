"""The stopping rule: its bookkeeping, and its error rates and power over synthetic and recorded noise."""

import importlib.util
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.judge.compare import Sequential, cell_alpha, decide_speed, holm
from harness.judge.comparison import Comparison
from harness.judge.stats.sequential import least_pairs, shares

ROOT = Path(__file__).resolve().parents[3]
PLAN = Sequential(0.01)


def simulation():
    spec = importlib.util.spec_from_file_location("ci_stopping_rates", ROOT / "ci" / "stopping_rates.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SIM = simulation()
RECORDED = ("canary", "canary, processes apart", "all cells")


@pytest.fixture(scope="module")
def noise_of():
    """A kind of noise by its name; the recorded kinds come from the newest stored run."""
    known = dict(SIM.SYNTHETIC)

    def find(name):
        if name not in known:
            known.update(SIM.recorded(SIM.newest(ROOT / "results")))
        return known[name]

    return find


def pairs_of(change, pairs, spread=0.001):
    return np.full((pairs, 5), math.log1p(change)) + np.linspace(-spread, spread, pairs)[:, None]


@given(st.sets(st.integers(1, 60), min_size=1, max_size=8), st.floats(0.5, 4))
def test_shares_spend_the_error_rate_once(looks, rho):
    spent = shares(sorted(looks), rho)
    assert (spent > 0).all() and spent.sum() == pytest.approx(1)


@pytest.mark.parametrize("looks", [[], [0, 4], [4, 4], [6, 4]])
def test_looks_that_do_not_grow_are_refused(looks):
    with pytest.raises(ValueError, match="positive and increasing"):
        shares(looks)


@pytest.mark.parametrize(("error", "pairs"), [(0.5, 2), (0.05, 3), (0.01, 4), (2 / 4**6, 6), (1e-4, 8)])
def test_least_pairs_bounds_the_luck_of_two_layouts(error, pairs):
    assert least_pairs(error) == pairs
    assert 2 / 4**pairs <= error * (1 + 1e-9) and (pairs == 2 or 2 / 4 ** (pairs - 1) > error)


def test_a_steady_change_is_said_at_the_first_look_that_may():
    assert PLAN.look(pairs_of(0.05, 4)) is None  # one chance in 128 where layouts come in two kinds
    found = PLAN.look(pairs_of(0.05, 6))
    assert (found.word, found.reason, found.n, found.level) == ("slower", "beyond_zone", 6, 0.99)
    assert PLAN.look(pairs_of(-0.05, 6)).word == "faster"


def test_equal_sides_are_said_to_be_the_same_at_the_first_look():
    found = PLAN.look(pairs_of(0.0, 4))
    assert (found.word, found.reason, found.level) == ("same", "inside_zone", 0.9)


def test_between_looks_nothing_is_said():
    assert PLAN.look(pairs_of(0.05, 7)) is None
    assert PLAN.look(pairs_of(0.0, 3)) is None
    assert PLAN.look(np.empty((0, 5))) is None


def test_pairs_without_rounds_do_not_count():
    gap = np.full((2, 5), np.nan)
    assert PLAN.look(np.vstack([gap, pairs_of(0.05, 4)])) is None
    assert PLAN.look(np.vstack([gap, pairs_of(0.05, 6)])).word == "slower"


@pytest.mark.parametrize("pairs", [12, 13])
def test_the_last_look_ends_it(pairs):
    found = PLAN.look(pairs_of(0.01, pairs))
    assert (found.word, found.reason, found.n) == ("inconclusive", "straddles_zone", pairs)
    assert PLAN.finish(pairs_of(0.01, pairs)) == found


def test_a_time_that_is_no_number_ends_it():
    rounds = pairs_of(0.0, 4)
    rounds[2, 1] = math.inf
    assert PLAN.look(rounds).reason == PLAN.finish(rounds).reason == "undefined"


@pytest.mark.parametrize("pairs", [0, 1, 4, 7])
def test_an_early_end_is_told(pairs):
    found = PLAN.finish(pairs_of(0.01, pairs))
    assert (found.word, found.reason, found.detail) == ("inconclusive", "budget_spent",
                                                        f"{pairs} of 12 planned process pairs")


def test_an_early_end_may_still_decide():
    assert PLAN.finish(pairs_of(0.0, 3, spread=0.0001)).word == "same"
    assert PLAN.finish(pairs_of(0.05, 7)).word == "slower"


def test_next_look_counts_up():
    assert [PLAN.next_look(pairs) for pairs in (0, 4, 5, 8, 12, 20)] == [4, 6, 6, 12, None, None]


def test_again_spends_the_looks_share_of_another_error_rate():
    rounds = pairs_of(0.03, 8, spread=0.01)
    share = (8 / 12) ** 1.5 - (6 / 12) ** 1.5
    found, plain = PLAN.again(rounds, 0.9995), decide_speed(rounds, 0.01, 1 - 0.0005 * share)
    assert found.level == 0.9995
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))
    half = stats.t.ppf(1 - 0.0005 * share / 2, 7) * rounds.mean(axis=1).std(ddof=1) / math.sqrt(8)
    assert found.low == pytest.approx(math.expm1(rounds.mean() - half))


# Error rates and power.

MODERATE = ("quiet", "usual", "heavy tails", "two speeds, rare", "one side hit, 10 %", "drift", "canary")


def full_name(name):
    return f"recorded: {name}" if name in RECORDED else name


@pytest.mark.parametrize("name", [*SIM.SYNTHETIC, *RECORDED])
def test_equal_sides_seldom_raise_a_false_alarm(noise_of, name):
    assert SIM.rates(noise_of(full_name(name)), 0.0, PLAN, 200).changed <= 0.01


@pytest.mark.parametrize("name", MODERATE)
@pytest.mark.parametrize(("effect", "least"), [(0.05, 0.95), (0.03, 0.5)])
def test_slowdowns_are_found(noise_of, name, effect, least):
    found = SIM.rates(noise_of(full_name(name)), effect, PLAN, 100)
    assert found.words["slower"] >= least and found.mean_pairs <= 8


def test_slowdowns_are_found_among_the_largest_noise_expected(noise_of):
    """Processes that differ by 1 %, rounds by 3 %."""
    assert SIM.rates(noise_of("loud"), 0.05, PLAN, 200).words["slower"] >= 0.95
    assert SIM.rates(noise_of("loud"), 0.03, PLAN, 200).words["slower"] >= 0.5


@pytest.mark.parametrize("name", ["quiet", "usual", "canary"])
def test_equal_sides_are_usually_the_same(noise_of, name):
    assert SIM.rates(noise_of(full_name(name)), 0.0, PLAN, 100).words["same"] >= 0.9


@pytest.mark.parametrize("sign", [1, -1])
def test_on_the_bound_of_the_zone_errors_keep_to_their_rates(noise_of, sign):
    """Where it is hardest: the sides differ by the zone itself."""
    effect = math.expm1(sign * math.log1p(PLAN.zone))
    found = SIM.rates(noise_of("usual"), effect, PLAN, 1500)
    assert found.changed <= PLAN.alpha / 2 + 0.006 and found.words["same"] <= PLAN.same_alpha / 2 + 0.015


def test_a_quarter_chance_of_one_layout_difference_raises_no_alarm(noise_of):
    """Two kinds of layouts 6 % apart and almost no other noise: four pairs agree once in 128 trials, six in 2,048."""
    noise = noise_of("layouts, 6 % half, still")
    at_four = SIM.rates(noise, 0.0, Sequential(0.01, looks=(4,)), 3000)
    assert abs(at_four.changed - 2 / 4**4) < 0.005  # the t interval is fooled whenever four agree
    assert SIM.rates(noise, 0.0, Sequential(0.01, alpha=0.001, looks=(4,)), 3000).changed == 0
    assert SIM.rates(noise, 0.0, PLAN, 1000).changed <= 0.002


@pytest.mark.parametrize("name", ["usual", "canary"])
def test_what_stops_at_the_cells_alpha_survives_holm(noise_of, name):
    """One cell of 60 is 5 % slower; it is found, and Holm over all of them keeps it."""
    plan = Sequential(0.01, alpha=cell_alpha(60))
    rng = np.random.default_rng(5)
    same = Comparison("s", "e", "b", "time", "same", "inside_zone")
    words = []
    for rounds in noise_of(full_name(name))(rng, 60, 12, SIM.ROUNDS) + math.log1p(0.05):
        found = next(filter(None, (plan.look(rounds[:pairs]) for pairs in plan.looks)))
        slow = found.onto(replace(same, arm="a"))
        words.append(holm([slow, *[same] * 59], 0.05, lambda item, level, rounds=rounds:
                          plan.again(rounds[:item.n], level))[0].verdict)
    assert words.count("slower") >= 57


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SIM.SYNTHETIC, *RECORDED])
def test_false_alarms_over_many_trials(noise_of, name):
    assert SIM.rates(noise_of(full_name(name)), 0.0, PLAN, 4000, seed=1).changed <= 0.01


def test_recorded_noise_holds_the_stored_rounds():
    canary, other = SIM.recorded_ratios(SIM.newest(ROOT / "results"))
    assert len(canary) >= 2 and len(other) > 20
    assert all(np.isfinite(table[:, 0]).all() and table.ndim == 2 for table in canary + other)
    assert np.abs(np.concatenate([np.nanmedian(table, axis=1) for table in canary])).max() < 0.1


def test_a_round_is_the_ratio_of_two_turns_of_each_side():
    turns = np.log([[[1.0, 2.0, 4.0, 3.0]]])
    assert abs(SIM.of_turns(np.random.default_rng(0), turns)[0, 0]) == pytest.approx(math.log(3 / 2))


def test_the_script_prints_a_line_for_each_noise_and_effect(capsys):
    assert SIM.main([str(SIM.newest(ROOT / "results")), "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + (len(SIM.SYNTHETIC) + 3) * len(SIM.EFFECTS) + 1
    assert lines[-1].startswith("the largest rate of false alarms: 0.00%")
