"""VQ-Logits: arms against truth, every arm's metrics at toy size, and faults that the oracles catch."""

import numpy as np
import pytest
import torch

from harness.run import check
from reference.methods.softmax import vq_logits as vq
from reference.methods.softmax import vq_logits_words as experiment
from suites.softmax.vq_logits import speed
from suites.softmax.vq_logits.suite import suite

POINT = {"rows": 5, "shape": "300x16", "threads": 1}
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_claim_of_the_paper_is_on_the_card():
    assert suite.card.claim_ids == ["ppl_at_99pct_reduction", "logit_speedup", "pareto_at_equal_bytes"]


@pytest.mark.parametrize("name", ["perplexity", "pareto"])
def test_every_arm_returns_the_metrics_of_the_card_and_repeats_them(name, kept, monkeypatch):
    monkeypatch.setattr(suite, "artefacts", kept)
    card = suite.card.experiments[name].in_profile("smoke")
    for arm in card.arms:
        found = [suite.trials[name](arm=arm, point=card.grid()[0], seed=0, device="cpu", tuned={"lr": 0.01})
                 for _ in range(2)]
        assert set(found[0]) == set(card.metrics), arm
        assert found[0] == found[1], arm
        assert all(np.isfinite(value) for value in found[0].values()), arm
        if name == "pareto":
            assert found[0]["head_bytes"] <= 33 * 1024, arm


def test_at_the_first_budget_a_codebook_is_as_large_as_the_integers():
    assert 4096 * (128 // 2 + 2) == 264 * 1024
    count = vq.largest_count(experiment.WIDTH, 4096, 264 * 1024)
    assert 4 * count * 128 + vq.random_codes(4096, count, torch.Generator()).map_bytes() == 264 * 1024


@pytest.mark.parametrize("threads", [1, 2])
def test_every_arm_that_is_timed_is_right(threads):
    problem = suite.speeds["logits"](point={**POINT, "threads": threads}, rng=np.random.default_rng(0), device="cpu")
    assert set(problem.arms) == set(suite.card.experiments["logits"].arms)
    for name, arm in problem.arms.items():
        proof = check.prove(problem, arm, check.InputSet(problem, np.random.default_rng(1)))
        assert proof.fault is None, (name, proof)


def test_a_device_has_no_numba_arm_and_gives_the_same():
    problem = speed.logits_problem(POINT, "cpu")
    assert set(problem.arms) - {"scatter_numba"} == set(suite.card.experiments["gpu_logits"].arms)


@pytest.mark.parametrize("fault", ["sizes", "shape", "logit", "nan"])
def test_a_wrong_result_is_seen(fault):
    problem = speed.logits_problem(POINT, "cpu")
    drawn = check.InputSet(problem, np.random.default_rng(1))
    log_p, logits = check.buffers_of(problem, problem.arms["scatter"], drawn.inputs)
    problem.arms["scatter"].run(*drawn.inputs, log_p, logits)
    assert problem.error((log_p, logits), drawn.truth) < 1e-5
    if fault == "sizes":
        log_p += 0.1
    elif fault == "shape":
        logits = logits[:, :-1]
    elif fault == "logit":
        logits[3, 299] += 0.1
    else:
        log_p[0] = torch.nan
    assert problem.error((log_p, logits), drawn.truth) > 1e-3


def no_sizes(self):
    return torch.zeros(len(self.codebook), dtype=self.codebook.dtype)


def test_forgetting_how_many_words_a_code_has_is_seen(monkeypatch):
    monkeypatch.setattr(vq.VQHead, "log_members", no_sizes)
    with pytest.raises(AssertionError, match="differ"):
        suite.oracles["code_level_equals_scattered"]()


def test_a_normaliser_of_the_wrong_sign_is_seen(monkeypatch):
    right = vq.VQHead.log_members
    monkeypatch.setattr(vq.VQHead, "log_members", lambda self: -right(self))
    for name in ("code_level_equals_scattered", "codebook_gradient_is_the_sum_of_members"):
        with pytest.raises(AssertionError):
            suite.oracles[name]()


def test_scattering_by_the_wrong_map_is_seen(monkeypatch):
    def scattered(self, hidden):
        return (hidden @ self.codebook.T)[:, self.code_of.flip(0)]

    monkeypatch.setattr(vq.VQHead, "scattered", scattered)
    with pytest.raises(AssertionError):
        suite.oracles["identity_map_is_the_full_head"]()


def test_a_penalty_without_the_codes_sizes_is_seen(monkeypatch):
    monkeypatch.setattr(vq.Codes, "sizes", lambda self: torch.ones(self.count))
    with pytest.raises(AssertionError):
        suite.oracles["trained_loss_is_entropy_plus_penalty"]()
