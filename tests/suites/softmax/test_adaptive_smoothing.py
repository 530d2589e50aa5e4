"""The suite of adaptive smoothing: its oracles, that they fail when an equation is broken, its trials at toy size."""

from pathlib import Path

import pytest
import torch

from harness.run.worker import load_suite
from reference.methods.softmax import adaptive_smoothing as smoothing

ROOT = Path(__file__).resolve().parents[3]
TINY = {"data": "digits", "steps": 6, "attack_steps": 1}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/adaptive_smoothing")


@pytest.fixture(scope="module")
def prepared(suite, kept):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suite, "artefacts", kept)
        yield suite


def test_every_oracle_agrees(suite):
    for name, oracle in suite.oracles.items():
        assert oracle() is None, name


def swapped(g, h, alpha, g_scale=2.0, h_scale=1.0):
    return original_mix(h, g, alpha, h_scale, g_scale)


def logits_mixed(g, h, alpha, g_scale=2.0, h_scale=1.0):
    return ((1 - alpha) * g_scale * g + alpha * h_scale * h).log_softmax(1)


def without_the_last_term(h, lipschitz, alpha):
    top, y = h.max(1, keepdim=True)
    room = (top - h) / (lipschitz[y] + lipschitz)
    return room.scatter(1, y, torch.inf).min(1).values


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
def test_a_planted_fault_is_caught(suite, monkeypatch, fault):
    name, replacement, oracle = FAULTS[fault]
    monkeypatch.setattr(smoothing, name, replacement)
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()


def test_the_card_has_every_claim(suite):
    assert suite.card.claim_ids == ["better_tradeoff", "confidence_gap", "adaptive_alpha_gain"]


def test_training_reports_what_it_is_tuned_on(prepared):
    found = {arm: prepared.trials["training"](arm, TINY, 0, "cpu", {"lr": 0.01})
             for arm in ("standard", "adversarial", "trades")}
    for metrics in found.values():
        assert 0.0 <= metrics["robust"] <= metrics["clean"] <= 1.0
        assert 0.0 <= metrics["val_error"] <= 1.0


def test_rivals_are_read_at_the_mixtures_robust_accuracy(prepared):
    found = {arm: prepared.trials["tradeoff"](arm, TINY, 0, "cpu")
             for arm in ("mixed", "adversarial", "chance", "trades", "smaller_eps")}
    assert {found[arm]["robust"] for arm in ("mixed", "chance", "trades", "smaller_eps")} == {found["mixed"]["robust"]}
    assert 0.5 <= found["mixed"]["alpha"] <= 1.0
    assert found["chance"]["clean"] >= found["adversarial"]["clean"] or found["mixed"]["robust"] > 0


def test_excess_is_the_gain_over_half_the_plain_gain(prepared):
    found = {arm: prepared.trials["confidence"](arm, TINY, 0, "cpu") for arm in ("plain", "flattened")}
    assert found["plain"]["excess"] == pytest.approx(0.5 * found["plain"]["gain"])
    assert found["flattened"]["excess"] == pytest.approx(found["flattened"]["gain"] - 0.5 * found["plain"]["gain"])


def test_constant_alphas_are_read_at_the_networks_robust_accuracy(prepared):
    found = {arm: prepared.trials["network"](arm, TINY, 0, "cpu", {"lr": 0.005} if arm == "network" else {})
             for arm in ("network", "constant")}
    assert found["network"]["robust"] == found["constant"]["robust"]
    assert 0.5 <= found["network"]["alpha_clean"] <= 1.0
    assert found["constant"]["alpha_clean"] == found["constant"]["alpha_attacked"]
