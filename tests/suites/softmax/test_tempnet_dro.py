"""The suite's speed arms against the truth, and oracles that notice a broken equation."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.run import check
from harness.run.worker import load_suite
from reference.methods.softmax import tempnet_dro as dro
from reference.methods.softmax import tempnet_dro_contrastive as contrast
from reference.methods.softmax import tempnet_dro_numba

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/tempnet_dro")


def problem_of(suite):
    rng = np.random.default_rng(0)
    problem = suite.speeds["speed"]({"rows": 3, "vocabulary": 500, "threads": 1}, rng, "cpu")
    return problem, check.InputSet(problem, rng)


@pytest.mark.parametrize("name", ["tempnet", "bisection", "bisection_numba"])
def test_speed_arms_are_right(suite, name):
    problem, drawn = problem_of(suite)
    proof = check.prove(problem, problem.arms[name], drawn)
    assert proof.fault is None, proof.fault


def test_a_temperature_that_is_off_by_a_percent_is_wrong(suite, monkeypatch):
    problem, drawn = problem_of(suite)
    right = dro.exact_tau
    monkeypatch.setattr(dro, "exact_tau", lambda *args, **kwargs: 1.01 * right(*args, **kwargs))
    assert check.prove(problem, problem.arms["bisection"], drawn).fault is not None


def without_the_radius(logits, tau, rho, labels):
    """tau CE(h / tau, y) alone, whose best temperature is the smallest."""
    return tau * torch.nn.functional.cross_entropy(logits / tau[:, None], labels, reduction="none")


def over_rows(logits, tau):
    log_p = torch.log_softmax(logits / tau[:, None], 0)
    return -(log_p.exp() * log_p).sum(1)


def rising_slope(logits, tau, rho):
    return -(rho - math.log(logits.shape[1]) + dro.entropy(logits, tau))


def with_the_positive(self, similarity, anchors, tau):
    """The mean over the whole batch, positives among the negatives."""
    difference = similarity - similarity.diagonal()[:, None]
    scaled = (difference / tau[:, None]).detach()
    mean = torch.logsumexp(scaled, 1) - math.log(len(scaled))
    weights = (scaled - mean[:, None]).exp() / len(scaled)
    return contrast.Gradients((weights * difference).sum(1).mean(), mean + self.rho - (weights * scaled).sum(1))


@pytest.mark.parametrize(("module", "name", "fault", "oracle"), [
    (dro, "robust_loss", without_the_radius, "primal_equals_dual"),
    (dro, "entropy", over_rows, "the_best_temperature_levels_the_entropy"),
    (dro, "slope", rising_slope, "the_slope_is_rho_minus_kl_whatever_the_label"),
    (contrast.GlobalLoss, "__call__", with_the_positive, "contrastive_gradients_are_those_of_the_loss"),
    (tempnet_dro_numba, "_bisect", lambda h, target, *rest: rest[-1].fill(target),
     "the_best_temperature_levels_the_entropy"),
])
def test_planted_faults_are_caught(suite, monkeypatch, module, name, fault, oracle):
    suite.oracles[oracle]()
    monkeypatch.setattr(module, name, fault)
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()
