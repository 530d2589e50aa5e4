"""TVD++ draft alignment (arXiv 2403.00858): block efficiency by loss, gradient noise and decoding time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import speculative
from reference.methods.softmax import tvdpp_draft_alignment as losses
from reference.methods.softmax import tvdpp_draft_alignment_training as training
from reference.testbeds import char_lm
from suites.softmax.tvdpp_draft_alignment.speed import decoding_problem, verification_problem

suite = Suite(__file__)

DRAWS = 128
TIMED_LR = 0.06  # of the draft that is timed: what tuning found for KLD


def prepared(point: Point, seed: int) -> tuple[dict[str, Any], char_lm.CharLM]:
    """The target with its texts, and this seed's pretrained draft."""
    draft = suite.prepare("draft", {
        "draft": point["draft"], "steps": point["pretrain"] // 2, "seed": seed_for("draft", seed)}, training.draft_of)
    config = {name: point[name] for name in ("target", "pretrain", "seeds_asked", "asked")}
    known = suite.prepare("target", config, training.target_of)
    for name, digest in known["digests"].items():
        suite.uses_data(name, digest)
    return known, draft


@suite.trial("alignment")
def alignment(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Phase 3 with one loss, and what the draft is then worth."""
    known, draft = prepared(point, seed)
    if arm != "pretrained":
        training.align(draft, known["distillation"], arm, tuned["lr"], point["steps"], seed_for("data", seed))
    tau = training.efficiencies(draft, known["test"])
    ratio = char_lm.parameter_count(draft) / char_lm.parameter_count(known["target"])
    return {
        "tau": float(np.mean(list(tau.values()))),
        **{f"tau_g{gamma}_t{f'{t:g}'.replace('.', '')}": value for (gamma, t), value in tau.items()},
        "validation_tau": training.mean_efficiency(draft, known["validation"]),
        "other_tau": training.mean_efficiency(draft, known["other"]),
        "acceptance": training.mean_acceptance(draft, known["distillation"]),
        "mbsu_g3": speculative.memory_bound_speedup(tau[3, 1.0], ratio, 3),
    }


@suite.trial("noise")
def noise(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Draws on one batch; the draft is the same for both estimators."""
    known, draft = prepared(point, seed)
    if point["state"] == "aligned":
        training.align(draft, known["distillation"], "kld", tuned["lr"], point["steps"], seed_for("data", seed))
    variance, scale = training.gradient_noise(
        draft, known["distillation"], arm == "tvdpp", DRAWS, seed_for("data", seed))
    return {"variance": variance, "scale": scale}


@suite.speed("decoding")
def decoding(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The target alone, and with the draft of seed 0 aligned by KLD."""
    known, draft = prepared(point, 0)
    training.align(draft, known["distillation"], "kld", TIMED_LR, point["steps"], seed_for("data", 0))
    return decoding_problem(known["target"], draft, known["prompts"], point["texts"], point["new"])


@suite.speed("verification")
def verification(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The kernel alone."""
    return verification_problem(point["batch"], point["vocabulary"])


def random_distributions(*shape: int, seed: int, sharpness: float = 1.5) -> torch.Tensor:
    """Softmax of Gaussian logits, float64."""
    random = torch.Generator().manual_seed(seed)
    return torch.softmax(sharpness * torch.randn(*shape, generator=random, dtype=torch.float64), dim=-1)


@suite.oracle
def acceptance_is_one_minus_tvd() -> None:
    """sum min(p, q) = 1 - TVD, and that is how often a drafted character is accepted."""
    p, q = random_distributions(2, 6, seed=0)
    rate = speculative.acceptance(p, q)
    assert abs(rate - (1 - speculative.total_variation(p, q))) < 1e-12
    random, n = torch.Generator().manual_seed(1), 40_000
    drafts = torch.multinomial(q, n, replacement=True, generator=random)[:, None]
    uniform = torch.rand(n, 2, generator=random, dtype=torch.float64)
    accepted, _ = speculative.verify(p.expand(n, 2, -1), q.expand(n, 1, -1), drafts, uniform[:, :1], uniform[:, 1])
    error = abs(accepted.double().mean() - rate)
    assert error < 5 * float(rate * (1 - rate) / n) ** 0.5, float(error)


@suite.oracle
def output_has_the_targets_distribution() -> None:
    """Chi-square of the first two characters of a chain on 4 letters, 20,000 blocks of gamma 2."""
    n, letters = 20_000, 4
    p, q = random_distributions(2, letters, letters, seed=3)  # the row of a letter is what follows it
    random = torch.Generator().manual_seed(4)
    first = torch.multinomial(q[0], n, replacement=True, generator=random)
    second = torch.multinomial(q[first], 1, generator=random)[:, 0]
    drafts, uniform = torch.stack([first, second], 1), torch.rand(n, 3, generator=random, dtype=torch.float64)
    rows = torch.stack([torch.zeros_like(first), first, second], 1)
    accepted, following = speculative.verify(p[rows], q[rows[:, :2]], drafts, uniform[:, :2], uniform[:, 2])
    one = torch.where(accepted >= 1, first, following)
    fresh = torch.multinomial(p[one], 1, generator=random)[:, 0]  # where the block ended with its first character
    two = torch.where(accepted >= 2, second, torch.where(accepted == 1, following, fresh))
    counts = torch.bincount(one * letters + two, minlength=letters**2)
    expected = n * (p[0][:, None] * p).flatten()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < 44.3, f"chi-square {statistic:.1f} on 15 degrees of freedom (44.3 is passed once in 10,000)"


@suite.oracle
def tvd_gradient_by_finite_differences() -> None:
    """The surrogate's gradient over the whole vocabulary is that of 1/2 sum |p - q|."""
    p, logits = random_distributions(5, 7, seed=8), random_distributions(5, 7, seed=9).log().requires_grad_()
    gradient, = torch.autograd.grad(losses.policy_loss(p, logits, advantage=False), logits)
    direction = torch.randn(5, 7, generator=torch.Generator().manual_seed(10), dtype=torch.float64)
    at = [float(losses.distance(p, logits.detach() + step * direction)) for step in (1e-6, -1e-6)]
    assert abs((at[0] - at[1]) / 2e-6 - float((gradient * direction).sum())) < 1e-9


@suite.oracle
def over_the_vocabulary_tvdpp_is_tvd_over_std() -> None:
    """Gradient cosine 1: a constant baseline cancels, and the scale is 1 / std of the rewards under q."""
    p, logits = random_distributions(9, 12, seed=11), random_distributions(9, 12, seed=12).log().requires_grad_()
    plain, scaled = (torch.autograd.grad(losses.policy_loss(p, logits, advantage=flag, eps=0.0), logits)[0].flatten()
                     for flag in (False, True))
    q, rewards = logits.detach().exp(), losses.reward(p, logits.detach().exp())
    std = ((q * rewards.square()).sum(-1).mean() - (q * rewards).sum(-1).mean().square()).sqrt()
    assert torch.allclose(scaled, plain / std, rtol=1e-9, atol=1e-12)


@suite.oracle
def identical_models_accept_everything() -> None:
    """Block efficiency gamma + 1, greedy and sampled, by the decoder and by the expectation."""
    model = char_lm.make("S", 0, context=40, width=16, layers=1).eval()
    for temperature in (0.0, 1.0):
        readers = [training.reader(model, 1) for _ in range(2)]
        made = speculative.speculate(*readers, torch.tensor([65, 66]), 16, 3, temperature,
                                     torch.Generator().manual_seed(0))
        assert made.accepted == (3,) * 4, made.accepted
        assert made.block_efficiency == 4.0
    lengths = np.array([16, 32])
    assert speculative.block_efficiency(np.ones((2, 32)), lengths, 3) == 4.0
    assert speculative.block_efficiency(np.zeros((2, 32)), lengths, 3) == 1.0
