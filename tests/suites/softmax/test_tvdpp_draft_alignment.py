"""The suite's own functions at toy sizes, and broken equations that its oracles must notice."""

import numpy as np
import pytest
import torch

from harness.run import check
from reference.methods.softmax import speculative, speculative_numba
from reference.methods.softmax import tvdpp_draft_alignment as losses
from suites.softmax.tvdpp_draft_alignment import speed
from suites.softmax.tvdpp_draft_alignment.suite import suite

CLAIMS = ["tvdpp_block_efficiency", "kd_finetune_helps", "variance_reduction", "wall_clock"]


def broken(oracle):
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()


def test_every_claim_of_the_paper_is_on_the_card():
    assert suite.card.claim_ids == CLAIMS


@pytest.mark.parametrize("name", sorted(suite.oracles))
def test_oracles_agree(name):
    suite.oracles[name]()


def test_a_reward_of_the_wrong_sign_is_noticed(monkeypatch):
    monkeypatch.setattr(losses, "reward", lambda p, q: (p < q).to(p.dtype))
    broken("tvd_gradient_by_finite_differences")


def test_a_baseline_per_place_is_noticed(monkeypatch):
    def per_place(rewards, weights=None, eps=losses.EPS):
        mean = (weights * rewards).sum(-1, keepdim=True)
        return (rewards - mean) / ((weights * (rewards - mean).square()).sum(-1, keepdim=True).sqrt() + eps)

    monkeypatch.setattr(losses, "advantages", per_place)
    broken("over_the_vocabulary_tvdpp_is_tvd_over_std")


def test_a_ratio_upside_down_is_noticed(monkeypatch):
    right = speculative.verify
    monkeypatch.setattr(speculative, "verify", lambda p, q, drafts, accept, resample: right(
        torch.cat([q, p[:, -1:]], 1), p[:, :-1], drafts, accept, resample))
    broken("output_has_the_targets_distribution")


def test_a_residual_that_forgets_the_draft_is_noticed(monkeypatch):
    monkeypatch.setattr(speculative, "residual", lambda p, q: p)
    broken("output_has_the_targets_distribution")


def test_a_lost_bonus_is_noticed(monkeypatch):
    right = speculative.expected_blocks
    monkeypatch.setattr(speculative, "expected_blocks", lambda kept, lengths, gamma: right(kept, lengths, gamma - 1))
    broken("identical_models_accept_everything")


def verified(fault=None, monkeypatch=None):
    if fault:
        monkeypatch.setattr(speculative_numba, "verify", fault)
    problem = speed.verification_problem(4, 700)
    drawn = check.InputSet(problem, np.random.default_rng(0))
    return {name: check.prove(problem, arm, drawn, buffers=None).fault for name, arm in problem.arms.items()}


def test_verification_arms_are_right():
    assert verified() == {"numba": None, "torch": None}


def test_a_kernel_that_never_rejects_is_wrong(monkeypatch):
    def never(p, q, drafts, accept, resample, accepted, following, sums):
        accepted[:] = drafts.shape[1]
        following[:] = p[:, -1].argmax(-1)

    assert verified(never, monkeypatch)["numba"] is not None


def test_decoding_arms_write_the_targets_text(monkeypatch):
    from reference.methods.softmax.tvdpp_draft_alignment_training import model_of

    target, draft = model_of("1x16", 0).eval(), model_of("1x16", 1).eval()
    problem = speed.decoding_problem(target, draft, ["f(x):\n", "longer(x):\n", "the_longest(x):\n"], 1, 12)
    drawn = check.InputSet(problem, np.random.default_rng(0))
    for seed in range(6):  # prompts of any length are drawn into the same arrays
        drawn.redraw(np.random.default_rng(seed))
    for name, arm in problem.arms.items():
        proof = check.prove(problem, arm, drawn, buffers=None)
        assert proof.fault is None, (name, proof)
    out = torch.zeros(1, 12, dtype=torch.int64)
    assert problem.error(out, drawn.truth) > problem.tolerance
