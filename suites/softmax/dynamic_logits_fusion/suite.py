"""Dynamic logits fusion (arXiv 2406.15480): one expert, several experts, unseen tasks, and what the search costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import dynamic_logits_fusion as fusion
from reference.methods.softmax import dynamic_logits_fusion_models as models
from reference.methods.softmax.dynamic_logits_fusion_numba import alphas
from suites.softmax.dynamic_logits_fusion.speed import decode_problem, search_problem

suite = Suite(__file__)


def experts_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """This seed's small experts, by task."""
    small = suite.prepare("bases", config["bases"], models.bases)["small"]
    return models.specialists(small, config["share"], models.EXPERT_LR, config["seed"])


def large_ft_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The large model fine-tuned, and what it and the base answer alone."""
    return models.large_ft(suite.prepare("bases", config["bases"], models.bases)["large"], config)


class Bed:
    """The models of one point and seed; `tuned` has the rate of the large model's fine-tuning where that is known."""

    def __init__(self, point: Point, seed: int, tuned: Mapping[str, Any], at_once: bool):
        config = {"bases": {name: point[name] for name in ("large", "small", "pretrain")},
                  "seed": seed_for("tuning", seed), "share": point["tuning"]}
        bases = suite.prepare("bases", config["bases"], models.bases)
        suite.uses_data("DOC", bases["digest"])
        self.large, self.small = bases["large"], bases["small"]
        self.experts = suite.prepare("experts", config, experts_of)
        self.asked, self.large_ft, self.ends = point["asked"], {}, None
        if "lr" in tuned:
            more = {"at_once": at_once, "lr": tuned["lr"], "asked": self.asked}
            self.large_ft, self.ends = suite.prepare("large_ft", config | more, large_ft_of).values()


@suite.trial("single")
def single(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Every task with its own expert."""
    bed, scores, recorders = Bed(point, seed, tuned, at_once=False), {}, []
    alone = {"large": dict.fromkeys(bed.experts, bed.large), "expert": bed.experts, "large_ft": bed.large_ft}.get(arm)
    for task, expert in bed.experts.items():
        joined: models.Answers
        if alone is not None:
            joined = models.Alone(alone[task])
        else:
            joined = models.Fusion(bed.large, bed.small, (expert,), models.Recorder(models.dynamic))
            joined = models.weighed(joined, arm, tuned.get("alpha"), models.asked_of(task, bed.asked, "validation"))
            recorders.append(joined.weigh)
            if arm == "shuffled":
                joined = models.Shuffled(joined, seed_for("order", seed))
        scores[task] = models.scores(joined, task, bed.asked)
    return {**models.summary(scores, bed.ends), **models.used(recorders),
            **{f"exact_{task.lower()}": test for task, (test, _) in scores.items()}}


@suite.trial("multi")
def multi(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, Any]:
    """Every task with all experts; a recorder per task tells which expert was taken."""
    bed, scores, routed = Bed(point, seed, tuned, at_once=True), {}, []
    experts = tuple(bed.experts.values())

    def joined(index: int, task: str) -> models.Alone | models.Fusion:
        """The arm as it answers task `index`; only `oracle` looks at it."""
        if arm in ("large", "large_ft"):
            return models.Alone(bed.large if arm == "large" else bed.large_ft[task])
        if arm == "task_arithmetic":
            expert = models.merged(bed.small, experts, tuned["scale"])
            return models.Fusion(bed.large, bed.small, (expert,), models.static(1.0))
        rule = models.rule_of(arm, len(experts), index, tuned.get("alpha"))
        return models.Fusion(bed.large, bed.small, experts, models.Recorder(rule))

    for index, task in enumerate(bed.experts):
        made = joined(index, task)
        scores[task] = models.scores(made, task, bed.asked)
        routed += models.taken(made, index)
    unseen, made = models.asked_of(models.UNSEEN, bed.asked, "test"), joined(0, next(iter(bed.experts)))
    return {**models.summary(scores, bed.ends), "routed": float(np.mean(routed or [0.0])),
            "unseen_exact": unseen.exact_match(made.answers(unseen.prompts)), "unseen_loss": made.loss(unseen)}


@suite.speed("decode_step")
def decode_step(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Three models and one fusion."""
    return decode_problem(point["vocabulary"])


@suite.speed("search")
def search(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Alpha alone."""
    return search_problem(point["experts"], point["vocabulary"])


def random_models(batch: int, vocabulary: int, seed: int, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    """Log-probabilities float64 [batch, V] of a large model, a small base and an expert."""
    random = torch.Generator().manual_seed(seed)
    large, small, moved = (2 * torch.randn(batch, vocabulary, generator=random, dtype=torch.float64) for _ in range(3))
    return large.log_softmax(-1), small.log_softmax(-1), (small + spread * moved / 2).log_softmax(-1)


@suite.oracle
def kl_grows_with_alpha() -> None:
    """KL(P~ || P_L) rises from 0, with the slope alpha Var_alpha(D)."""
    large, small, expert = random_models(6, 30, 0)
    shift, grid, step = expert - small, torch.linspace(0, 2, 21, dtype=torch.float64), 1e-5
    found = torch.stack([fusion.fused_kl(large, shift, alpha.expand(6)) for alpha in grid])
    assert (found[0] < 1e-12).all()
    assert (found.diff(dim=0) > 0).all()
    alpha = torch.full((6,), 0.7, dtype=torch.float64)
    slope = (fusion.fused_kl(large, shift, alpha + step) - fusion.fused_kl(large, shift, alpha - step)) / (2 * step)
    p = fusion.fused(large, shift[None], alpha[None]).exp()
    variance = (p * shift.square()).sum(-1) - (p * shift).sum(-1).square()
    assert torch.allclose(slope, alpha * variance, rtol=1e-6)


@suite.oracle
def an_expert_of_the_large_model_gets_one() -> None:
    """M_S = M_L: the fused model is the expert, alpha is 1, in every implementation."""
    large, _, _ = random_models(5, 40, 1)
    _, _, expert = random_models(5, 40, 2)
    shift, target = expert - large, fusion.kl(expert, large)
    found = fusion.alpha_by_bisection(large, shift, target)
    assert (found.values - 1).abs().max() < 1e-9
    assert (fusion.fused(large, shift[None], found.values[None]) - expert).abs().max() < 1e-8
    assert (fusion.alpha_by_grid(large, shift, target).values - 1).abs().max() < 1e-12
    quick = alphas(*(part.float().numpy() for part in (large, shift, target)))
    assert np.abs(quick - 1).max() < 1e-3


@suite.oracle
def the_root_meets_its_target() -> None:
    """Residual below 1e-6 nats wherever the target is within reach; the cap where it is not."""
    large, small, expert = random_models(40, 50, 3)
    shift, target = expert - small, fusion.kl(expert, small)
    found = fusion.alpha_by_bisection(large, shift, target)
    left = (fusion.fused_kl(large, shift, found.values) - target).abs()
    assert left[~found.capped].max() < 1e-6, float(left[~found.capped].max())
    quick = torch.from_numpy(alphas(*(part.float().numpy() for part in (large, shift, target))))
    left = (fusion.fused_kl(large, shift, quick) - target).abs()
    assert left[~found.capped].max() < 1e-5, float(left[~found.capped].max())
    assert (quick[found.capped] == fusion.CAP).all()


@suite.oracle
def nothing_learnt_moves_nothing() -> None:
    """Alpha 0 returns the large model; where the expert is the small base alpha is 0."""
    large, small, expert = random_models(4, 20, 4)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    assert (fusion.fused(large, (expert - small)[None], zero) - large).abs().max() < 1e-12
    none = torch.zeros_like(small)
    for rule in (fusion.alpha_by_bisection, fusion.alpha_by_grid):
        assert (rule(large, none, zero[0]).values == 0).all()
    assert (fusion.sparse_grid(large, none[None], zero).values == 0).all()
    assert (alphas(large.float().numpy(), none.float().numpy(), np.zeros(4, np.float32)) == 0).all()
