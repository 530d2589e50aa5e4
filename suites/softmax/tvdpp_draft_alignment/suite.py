"""TVD++ draft alignment (arXiv 2403.00858): block efficiency by loss, gradient noise and decoding time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import speculative, speculative_numba
from reference.methods.softmax import tvdpp_draft_alignment as losses
from reference.methods.softmax import tvdpp_draft_alignment_training as training
from reference.methods.softmax.tvdpp_draft_alignment_text import PROMPT_CHARACTERS, instructions
from reference.testbeds import char_lm, text
from suites.softmax.tvdpp_draft_alignment.speed import decoding_problem, verification_problem

Metrics = dict[str, Any]

suite = Suite(__file__)

# The last is what tuning found for KLD.
TARGET_LR, DRAFT_LR, ALIGNED_LR = 0.003, 0.006, 0.06
DRAWS = 128


def target_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tuned target, its answers to seed instructions, and what it writes for the evaluation prompts."""
    target = training.pretrain(config["target"], config["pretrain"], TARGET_LR, 0)
    training.tune_target(target, max(2, config["pretrain"] // 4), TARGET_LR)
    count = config["asked"]
    plain = text.corpus("DOC").validation
    starts = torch.arange(count) * (len(plain) - PROMPT_CHARACTERS) // count
    other = [text.decode(plain[start : start + PROMPT_CHARACTERS]) for start in starts.tolist()]
    sides = {part: instructions(part).prompts[:count] for part in ("test", "validation")}
    return {
        "target": target,
        "digests": {"DOC": text.corpus("DOC").digest, "instructions": instructions("train").digest},
        "prompts": sides["test"],
        "distillation": training.distillation_set(target, config["seeds_asked"], 0),
        **{part: [training.write(target, prompts, t, 1) for t in training.TEMPERATURES]
           for part, prompts in sides.items()},
        "other": [training.write(target, other, t, 1, end=None) for t in training.TEMPERATURES],
    }


def prepared(point: Point, seed: int) -> tuple[dict[str, Any], char_lm.CharLM]:
    """The target with its texts, and this seed's pretrained draft."""
    config = {name: point[name] for name in ("target", "pretrain", "seeds_asked", "asked")}
    draft = {"draft": point["draft"], "steps": point["pretrain"] // 2, "seed": seed}
    known = suite.prepare("target", config, target_of)
    for name, digest in known["digests"].items():
        suite.uses_data(name, digest)
    return known, suite.prepare("draft", draft, draft_of)


def draft_of(config: Mapping[str, Any]) -> char_lm.CharLM:
    """Phase 1."""
    return training.pretrain(config["draft"], config["steps"], DRAFT_LR, seed_for("draft", config["seed"]))


@suite.trial("alignment")
def alignment(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Phase 3 with one loss, and what the draft is then worth."""
    known, draft = prepared(point, seed)
    if arm != "pretrained":
        training.align(draft, known["distillation"], arm, tuned["lr"], point["steps"], seed_for("data", seed))
    tau = training.efficiencies(draft, known["test"])
    ratio = char_lm.parameter_count(draft) / char_lm.parameter_count(known["target"])
    return {
        "tau": mean_of(tau),
        **{f"tau_g{gamma}_t{f'{t:g}'.replace('.', '')}": value for (gamma, t), value in tau.items()},
        "validation_tau": mean_of(training.efficiencies(draft, known["validation"])),
        "other_tau": mean_of(training.efficiencies(draft, known["other"])),
        "acceptance": training.mean_acceptance(draft, known["distillation"]),
        "mbsu_g3": speculative.memory_bound_speedup(tau[3, 1.0], ratio, 3),
    }


def mean_of(efficiencies: Mapping[tuple[int, float], float]) -> float:
    """Over gammas and temperatures."""
    return float(np.mean(list(efficiencies.values())))


@suite.trial("noise")
def noise(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Draws on one batch; the draft is the same for both estimators."""
    known, draft = prepared(point, seed)
    if point["state"] == "aligned":
        training.align(draft, known["distillation"], "kld", ALIGNED_LR, point["steps"], seed_for("data", seed))
    variance, scale = training.gradient_noise(
        draft, known["distillation"], arm == "tvdpp", DRAWS, seed_for("data", seed))
    return {"variance": variance, "scale": scale}


@suite.speed("decoding")
def decoding(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The target alone, and with the draft of seed 0 aligned by KLD."""
    known, draft = prepared(point, 0)
    training.align(draft, known["distillation"], "kld", ALIGNED_LR, point["steps"], seed_for("data", 0))
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
def numba_verifies_as_torch_does() -> None:
    """Equal numbers, equal characters, the bonus and equal rows included."""
    batch, gamma, letters = 64, 3, 1100
    p, q = random_distributions(batch, gamma + 1, letters, seed=5).float(), random_distributions(
        batch, gamma, letters, seed=6).float()
    q[:32] = 0.7 * p[:32, :gamma] + 0.3 * q[:32]
    q[:8] = p[:8, :gamma]
    random = torch.Generator().manual_seed(7)
    drafts = torch.multinomial(q.flatten(0, 1), 1, generator=random).view(batch, gamma)
    accept, resample = torch.rand(batch, gamma, generator=random), torch.rand(batch, generator=random)
    count, following = (np.empty(batch, np.int64) for _ in range(2))
    speculative_numba.verify(*(part.numpy() for part in (p, q, drafts, accept, resample)), count, following,
                             speculative_numba.scratch(letters))
    expected = speculative.verify(p.double(), q.double(), drafts, accept.double(), resample.double())
    assert (expected[0].numpy() == count).all()
    assert (count[:8] == gamma).all()
    assert (expected[1].numpy() == following).mean() > 0.95  # at an edge of the cumulated mass rounding may decide


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
def sampled_gradients_have_the_exact_mean() -> None:
    """With many samples per place both estimators come to the gradient of TVD, TVD++ up to its scale."""
    p, logits = random_distributions(1, 5, seed=13), random_distributions(1, 5, seed=14).log().requires_grad_()
    exact, = torch.autograd.grad(losses.policy_loss(p, logits, advantage=False), logits)
    for flag in (False, True):
        loss = losses.policy_loss(p, logits, advantage=flag, samples=4000, random=torch.Generator().manual_seed(15))
        found, = torch.autograd.grad(loss, logits)
        cosine = float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0))
        assert cosine > 0.995, (flag, cosine)


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


@suite.oracle
def expectation_agrees_with_enumeration() -> None:
    """Expected target calls over all 2^6 patterns of acceptance of a text of 6 characters."""
    kept, gamma = np.random.default_rng(0).random((1, 6)), 2
    total = 0.0
    for pattern in np.ndindex(*(2,) * 6):
        chance = float(np.prod(np.where(pattern, kept[0], 1 - kept[0])))
        place, calls = 0, 0
        while place < 6:
            run = 0
            while run < gamma and place + run < 6 and pattern[place + run]:
                run += 1
            place, calls = place + run + 1, calls + 1
        total += chance * calls
    assert abs(total - float(speculative.expected_blocks(kept, np.array([6]), gamma)[0])) < 1e-12
