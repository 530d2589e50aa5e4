"""The suite of adaptive smoothing: its oracles, that they fail when an equation is broken, its trials at toy size."""

import numpy as np
import pytest

from reference.methods.softmax import adaptive_smoothing as smoothing
from suites.softmax.adaptive_smoothing.suite import suite

TINY = {"classes": 5, "steps": 6, "attack_steps": 1}
TUNED = {"standard_lr": 0.01, "adversarial_lr": 0.01, "trades_lr": 0.01, "lr": 0.005}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(kept):
    def trial(experiment, arm):
        return suite.trials[experiment](arm=arm, point=TINY, seed=0, device="cpu", tuned=TUNED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "artefacts", kept)
        yield trial


def test_the_card_has_every_claim():
    assert suite.card.claim_ids == ["better_tradeoff", "confidence_gap", "adaptive_alpha_gain"]


@pytest.mark.parametrize("oracle", suite.oracles)
def test_every_oracle_agrees(oracle):
    assert suite.oracles[oracle]() is None


def swapped(g, h, alpha, g_scale=2.0, h_scale=1.0):
    return original_mix(h, g, alpha, h_scale, g_scale)


def logits_mixed(g, h, alpha, g_scale=2.0, h_scale=1.0):
    return ((1 - alpha) * g_scale * g + alpha * h_scale * h).log_softmax(1)


def without_the_last_term(h, lipschitz, alpha):
    top, y = h.max(1, keepdim=True)
    room = (top - h) / (lipschitz[y] + lipschitz)
    return room.scatter(1, y, np.inf).min(1).values


original_mix, original_margin = smoothing.mix, smoothing.needed_margin
FAULTS = {
    "swapped": ("mix", swapped, "ends_of_alpha_are_the_classifiers"),
    "logits": ("mix", logits_mixed, "a_margin_of_h_is_safe_from_any_g"),
    "margin": ("needed_margin", lambda alpha: 1 - alpha, "just_below_the_margin_a_g_turns_it"),
    "factor": ("needed_margin", lambda alpha: 0.5 * original_margin(alpha), "a_margin_of_h_is_safe_from_any_g"),
    "radius": ("lipschitz_radius", without_the_last_term, "no_attack_succeeds_inside_the_radius"),
    "axis": ("margins", lambda f: (f.exp().topk(2, dim=0).values).diff(dim=0).abs()[0].repeat(len(f))[: len(f)],
             "a_margin_of_h_is_safe_from_any_g"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(monkeypatch, fault):
    name, replacement, oracle = FAULTS[fault]
    monkeypatch.setattr(smoothing, name, replacement)
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()


@pytest.mark.parametrize("experiment", suite.card.experiments)
def test_every_arm_returns_the_metrics_of_the_card(run, experiment):
    card = suite.card.experiments[experiment]
    for arm in card.arms:
        found = run(experiment, arm)
        assert set(found) == set(card.metrics), arm
        assert np.isfinite(list(found.values())).all(), arm


def test_rivals_are_read_at_the_mixtures_robust_accuracy(run):
    found = {arm: run("tradeoff", arm) for arm in suite.card.experiments["tradeoff"].arms}
    assert {found[arm]["robust"] for arm in ("mixed", "chance", "trades", "smaller_eps")} == {found["mixed"]["robust"]}
    assert len({found[arm]["alpha"] for arm in found}) == 1
    assert 0.5 <= found["mixed"]["alpha"] <= 1.0
    assert found["smaller_eps"]["clean"] >= found["adversarial"]["clean"] or (
        found["adversarial"]["robust"] < found["mixed"]["robust"])


def test_excess_is_the_gain_over_half_the_plain_gain(run):
    plain, flattened = (run("confidence", arm) for arm in ("plain", "flattened"))
    assert plain["excess"] == pytest.approx(0.5 * plain["gain"])
    assert flattened["excess"] == pytest.approx(flattened["gain"] - 0.5 * plain["gain"])
    assert abs(flattened["gap"]) < abs(plain["gap"])


def test_the_case_is_built_once_for_all_experiments(run, kept):
    for experiment, arm in (("tradeoff", "mixed"), ("confidence", "plain"), ("network", "network")):
        run(experiment, arm)
    assert sum(name == "case" for name, _ in kept.built) == 1
