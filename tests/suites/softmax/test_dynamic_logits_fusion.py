"""The suite's own functions at toy sizes, and broken equations that its oracles must notice."""

import numpy as np
import pytest
import torch

from harness.run import check
from reference.methods.softmax import dynamic_logits_fusion as fusion
from suites.softmax.dynamic_logits_fusion import speed
from suites.softmax.dynamic_logits_fusion.suite import suite

CLAIMS = ["gap_closure_single", "dynamic_beats_static", "multi_and_unseen", "overhead"]


def broken(oracle):
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()


def test_every_claim_of_the_paper_is_on_the_card():
    assert suite.card.claim_ids == CLAIMS


@pytest.mark.parametrize("name", sorted(suite.oracles))
def test_oracles_agree(name):
    suite.oracles[name]()


def test_the_other_direction_of_the_divergence_is_noticed(monkeypatch):
    right = fusion.kl
    monkeypatch.setattr(fusion, "fused_kl", lambda large, shift, alpha: right(
        large, (large + alpha[..., None] * shift).log_softmax(-1)))
    broken("kl_grows_with_alpha")
    broken("an_expert_of_the_large_model_gets_one")


def test_a_shift_of_the_wrong_sign_is_noticed(monkeypatch):
    right = fusion.fused_kl
    monkeypatch.setattr(fusion, "fused_kl", lambda large, shift, alpha: right(large, -shift, alpha))
    broken("an_expert_of_the_large_model_gets_one")
    broken("the_root_meets_its_target")


def test_a_fusion_that_does_not_normalise_is_noticed(monkeypatch):
    monkeypatch.setattr(fusion, "fused", lambda large, shifts, alphas: large + (alphas[..., None] * shifts).sum(0))
    broken("kl_grows_with_alpha")


@pytest.mark.parametrize("problem", [speed.decode_problem(200), speed.search_problem(2, 600)], ids=["decode", "search"])
def test_arms_are_right(problem):
    drawn = check.InputSet(problem, np.random.default_rng(0))
    for name, arm in problem.arms.items():
        proof = check.prove(problem, arm, drawn, buffers=None)
        assert proof.fault is None, (name, proof)


def test_a_search_that_always_says_one_is_wrong(monkeypatch):
    monkeypatch.setattr(speed, "alphas", lambda large, shifts, targets: np.ones(len(shifts)))
    for problem, name in ((speed.decode_problem(200), "bisection"), (speed.search_problem(2, 600), "bisection_numba")):
        drawn = check.InputSet(problem, np.random.default_rng(0))
        assert check.prove(problem, problem.arms[name], drawn, buffers=None).fault is not None


def test_trials_return_the_metrics_of_the_card(kept, monkeypatch):
    monkeypatch.setattr(suite, "artefacts", kept)
    point = {"large": "1x16", "small": "1x16", "pretrain": 2, "tuning": 0.005, "asked": 4}
    for name, tuned in (("single", {"static_tuned": {"alpha": 1.0}}),
                        ("multi", {"static": {"alpha": 0.5}, "task_arithmetic": {"scale": 0.5}})):
        experiment = suite.card.experiments[name]
        for arm in experiment.arms:
            given = {"lr": 0.004, **tuned.get(arm, {})}
            found = suite.trials[name](arm=arm, point=point, seed=0, device="cpu", tuned=given)
            assert set(found) == set(experiment.metrics), arm
            assert 0 <= found["exact"] <= 1
    assert torch.is_grad_enabled()
