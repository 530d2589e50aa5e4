"""The suite of progressive self-distillation: every claim, metrics as on the card, and faults that oracles catch."""

import numpy as np
import pytest
import torch

from harness.run import check
from reference.methods.softmax import ps_kd
from suites.softmax.ps_kd import suite as module

suite = module.suite
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_claim_of_the_paper_is_on_the_card():
    spec = {"accuracy_gain", "calibration", "confidence_ranking", "hard_example_mining"}
    assert spec <= set(suite.card.claim_ids)


@pytest.mark.parametrize("arm", ["ce", "label_smoothing", "kd", "ps_kd"])
def test_a_trial_returns_the_metrics_of_its_card(arm):
    experiment = suite.card.experiments["glyphs"]
    point = {"epochs": 2, "classes": 4, "lr": 0.1}
    found = suite.trials["glyphs"](arm=arm, point=point, seed=0, device="cpu", tuned={"strength": 0.5})
    assert set(found) == set(experiment.metrics)
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize("oracle", suite.oracles)
def test_every_oracle_agrees(oracle):
    suite.oracles[oracle]()


FAULTS = {
    "label and answer change places": ("mixed", lambda labels, answers, alpha: ps_kd_mixed(labels, answers, 1 - alpha)),
    "alpha lags an epoch behind": ("alpha_at", lambda epoch, epochs, last: last * epoch / epochs),
    "the entropy of the net, not of the targets": (
        "soft_cross_entropy", lambda logits, targets: -(torch.softmax(logits, 1) * targets.clamp_min(1e-9).log()).sum(1)
    ),
    "the factor's sign": (
        "true_class_factor", lambda p, answers, labels, alpha: 2 - ps_kd_factor(p, answers, labels, alpha)
    ),
}  # fmt: skip
ps_kd_mixed, ps_kd_factor = ps_kd.mixed, ps_kd.true_class_factor


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(fault, monkeypatch):
    name, broken = FAULTS[fault]
    monkeypatch.setattr(ps_kd, name, broken)
    caught = 0
    for oracle in suite.oracles.values():
        try:
            oracle()
        except AssertionError:
            caught += 1
    assert caught > 0


def test_a_softmax_over_the_wrong_axis_is_caught(monkeypatch):
    right = torch.softmax
    monkeypatch.setattr(ps_kd.torch, "softmax", lambda values, axis: right(values, 0 if values.ndim > 1 else axis))
    with pytest.raises(AssertionError):
        suite.oracles["the_second_epoch_mixes_in_the_answers_of_the_first"]()


def test_the_rate_of_all_arms_is_the_best_of_cross_entropy():
    assert suite.card.experiments["glyphs"].axes["lr"] == [suite.tuned.values("glyphs", "ce")["lr"]]


def test_steps_are_right_and_a_wrong_one_is_caught():
    rng = np.random.default_rng(0)
    problem = suite.speeds["step"](point={"classes": 8, "batch": 16}, rng=rng, device="cpu")
    drawn = check.InputSet(problem, rng)
    for name, arm in problem.arms.items():
        assert check.prove(problem, arm, drawn).fault is None, name
        losses, gradient, _ = arm.run(*drawn.inputs, *check.buffers_of(problem, arm, drawn.inputs))
        assert problem.error((losses, gradient.roll(1, 0), name), drawn.truth) > problem.tolerance, name
    assert problem.error((losses, gradient, "ce"), drawn.truth) > problem.tolerance
