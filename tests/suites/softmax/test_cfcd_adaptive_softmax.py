"""The suite of CFCD's adaptive softmax: every claim, metrics as on the card, and faults that oracles catch."""

import math

import numpy as np
import pytest

from reference.methods.softmax import cfcd_adaptive_softmax as cfcd
from suites.softmax.cfcd_adaptive_softmax import suite as module

suite = module.suite
TUNED = {"scale": 16.0, "margin": 0.1}
POINT = {"steps": 3, "classes": 8, "unseen": 10, "noise": 0.03}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_claim_of_the_paper_is_on_the_card():
    assert suite.card.claim_ids == ["progressive_scale_margin", "better_retrieval_than_fixed", "no_tuning_needed"]


@pytest.mark.parametrize("arm", ["softmax", "arcface", "cosface", "adacos", "madacos"])
def test_a_trial_returns_the_metrics_of_its_card(arm):
    found = suite.trials["retrieval"](arm=arm, point=POINT, seed=0, device="cpu", tuned=TUNED)
    assert set(found) == set(suite.card.experiments["retrieval"].metrics)
    assert np.isfinite(list(found.values())).all()


def test_the_regimes_differ_and_cfcd_has_its_released_alpha_there():
    run = suite.trials["regimes"]
    found = {noise: run(arm="madacos", point={**POINT, "noise": noise}, seed=0, device="cpu", tuned={})
             for noise in (0.02, 0.12)}
    assert found[0.02] != found[0.12]
    chosen = run(arm="madacos", point={**POINT, "noise": 0.02}, seed=0, device="cpu", tuned={"alpha": 0.02})
    assert chosen == found[0.02]


@pytest.mark.parametrize("oracle", suite.oracles)
def test_every_oracle_agrees(oracle):
    assert suite.oracles[oracle]() is None


def flipped_margin(cosine, labels, scale, margin):
    return right_lowered(cosine, labels, scale, -margin)


def mean_for_median(cosine, labels, alpha=0.02, floor=32.0):
    found = right_adapt(cosine, labels, alpha, floor)
    mean = cosine.gather(1, labels[:, None]).mean().item()
    scale = math.log(cfcd.SURE_ODDS * (1 - alpha) / alpha) / (1 - mean)
    return cfcd.Adapted(max(scale, floor), found.margin, scale, found.free_margin, mean)


right_lowered, right_adapt = cfcd.lowered, cfcd.adapt
FAULTS = {
    "the margin's sign": ("lowered", flipped_margin),
    "the mean instead of the median": ("adapt", mean_for_median),
    "odds off by a factor of ten": (
        "adapt", lambda cosine, labels, alpha=0.02, floor=32.0: right_adapt(cosine, labels, alpha / 10, floor)
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    monkeypatch.setattr(cfcd, *FAULTS[fault])
    caught = []
    for name, oracle in suite.oracles.items():
        try:
            oracle()
        except AssertionError:
            caught.append(name)
    assert caught
