"""Dynamic logits fusion (arXiv 2406.15480): one expert, several experts, unseen tasks, and what the search costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import dynamic_logits_fusion as fusion
from reference.methods.softmax import dynamic_logits_fusion_models as models
from reference.methods.softmax.dynamic_logits_fusion_numba import alphas
from reference.testbeds import char_lm, text
from suites.softmax.dynamic_logits_fusion.speed import decode_problem, search_problem

Metrics = dict[str, Any]

suite = Suite(__file__)

# Steps of fine-tuning at `tuning` 1, as many for small as for large: experts know their task, and not perfectly.
STEPS = {"ADD2": 700, "DATE": 140, "REV4": 200}
ALL_STEPS = 300
UNSEEN = "SUB2"
GRID = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)
METRIC = {"ADD2": "exact_add", "DATE": "exact_date", "REV4": "exact_reverse"}
FIXED = {"static_05": 0.5, "static_10": 1.0, "static_15": 1.5}


def bases_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The two base models."""
    tasks = [*STEPS, UNSEEN]
    return {size: models.base(config[size], config["pretrain"], tasks) for size in ("large", "small")} | {
        "digest": text.corpus("DOC").digest}


def tuned_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """This seed's experts, the large models tuned alike, and what large models alone answer."""
    bases, seed = suite.prepare("bases", config["bases"], bases_of), seed_for("tuning", config["seed"])

    def tune(size: str, tasks: list[str], steps: int) -> char_lm.CharLM:
        return models.tuned(bases[size], tasks, max(2, round(steps * config["tuning"])), models.EXPERT_LR, seed)

    found: dict[str, Any] = {size: {task: tune(size, [task], steps) for task, steps in STEPS.items()}
                             for size in ("large", "small")}
    found["all"] = tune("large", list(STEPS), ALL_STEPS)
    asked = models.asked_of(list(STEPS), config["asked"], "test")
    found["ends"] = {name: float(np.mean([item.exact_match(models.alone(model[task]).answers(item.prompts))
                                          for task, item in asked.items()]))
                     for name, model in (("large", dict.fromkeys(STEPS, bases["large"])), ("large_ft", found["large"]),
                                         ("all", dict.fromkeys(STEPS, found["all"])))}
    return found


def prepared(point: Point, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bases, and what this seed tuned."""
    bases = {name: point[name] for name in ("large", "small", "pretrain")}
    config = {"bases": bases, "seed": seed, "tuning": point["tuning"], "asked": point["asked"]}
    known = suite.prepare("bases", bases, bases_of)
    suite.uses_data("DOC", known["digest"])
    return known, suite.prepare("tuned", config, tuned_of)


def closure(exact: float, ends: Mapping[str, float], top: str) -> float:
    """Share of the gap; not a number where the tuned large model is not above the large one."""
    gap = ends[top] - ends["large"]
    return (exact - ends["large"]) / gap if gap > 0 else math.nan


@suite.trial("single")
def single(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Every task with its own expert."""
    bases, found = prepared(point, seed)
    sides = {part: models.asked_of(list(STEPS), point["asked"], part) for part in ("test", "validation")}
    exact: dict[str, list[float]] = {part: [] for part in sides}
    weights: list[torch.Tensor] = []
    capped: list[torch.Tensor] = []
    for task in STEPS:
        recorder = models.Recorder(models.dynamic)
        if arm in ("large", "expert", "large_ft"):
            model = {"large": bases["large"], "expert": found["small"][task], "large_ft": found["large"][task]}[arm]
            joined = models.alone(model)
        else:
            large, small, expert = bases["large"], bases["small"], found["small"][task]
            if arm not in ("dynamic", "shuffled"):
                alpha = FIXED.get(arm) or tuned.get("alpha") or models.best_static(
                    large, small, expert, sides["validation"][task], GRID)
                recorder = models.Recorder(models.static(alpha))
            joined = models.Fusion(large, small, (expert,), recorder)
        for part, asked in sides.items():
            answers = (models.shuffled(joined, asked[task].prompts, seed_for("order", seed)) if arm == "shuffled"
                       else joined.answers(asked[task].prompts))
            exact[part].append(asked[task].exact_match(answers))
        weights += recorder.values or [torch.zeros(1)]
        capped += recorder.capped or [torch.zeros(1)]
    mean = float(np.mean(exact["test"]))
    return {
        "exact": mean,
        **{METRIC[task]: score for task, score in zip(STEPS, exact["test"], strict=True)},
        "validation_exact": float(np.mean(exact["validation"])),
        "closure": closure(mean, found["ends"], "large_ft"),
        "alpha": float(torch.cat([part.flatten() for part in weights]).mean()),
        "capped": float(torch.cat([part.flatten().float() for part in capped]).mean()),
    }


@suite.trial("multi")
def multi(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Every task with all experts; a recorder per task tells which expert was taken."""
    bases, found = prepared(point, seed)
    large, small, experts = bases["large"], bases["small"], tuple(found["small"].values())

    def joined(index: int) -> models.Fusion:
        """The arm as it answers task `index`; only `oracle` looks at it."""
        if arm in ("large", "large_ft"):
            return models.alone(large if arm == "large" else found["all"])
        if arm == "task_arithmetic":
            return models.Fusion(large, small, (models.merged(small, experts, tuned["scale"]),), models.static(1.0))
        rule = {"static": lambda: models.static(*[tuned["alpha"]] * len(experts)), "joint": lambda: fusion.sparse_grid,
                "largest": lambda: fusion.largest_shift, "oracle": lambda: models.routed(index)}[arm]
        return models.Fusion(large, small, experts, models.Recorder(rule()))

    exact: dict[str, list[float]] = {"test": [], "validation": []}
    routed: list[float] = []
    for index, task in enumerate(STEPS):
        made = joined(index)
        for part, scores in exact.items():
            asked = models.asked_of([task], point["asked"], part)[task]
            scores.append(asked.exact_match(made.answers(asked.prompts)))
        if isinstance(made.weigh, models.Recorder):
            routed += [float((values.argmax(0) == index).float().mean()) for values in made.weigh.values]
    unseen, made = models.asked_of([UNSEEN], point["asked"], "test")[UNSEEN], joined(0)
    mean = float(np.mean(exact["test"]))
    return {
        "exact": mean,
        "validation_exact": float(np.mean(exact["validation"])),
        "closure": closure(mean, found["ends"], "all"),
        "unseen_exact": unseen.exact_match(made.answers(unseen.prompts)),
        "unseen_loss": made.loss(unseen),
        "routed": float(np.mean(routed)) if routed else 0.0,
    }


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
    assert not found.capped.any()
    assert (fusion.fused(large, shift[None], found.values[None]) - expert).abs().max() < 1e-8
    assert (fusion.alpha_by_grid(large, shift, target).values - 1).abs().max() < 1e-12
    quick = alphas(*(part.float().numpy() for part in (large, shift, target)))
    assert np.abs(quick - 1).max() < 1e-3


@suite.oracle
def the_root_meets_its_target() -> None:
    """Residual below 1e-6 nats wherever the target is within reach; the cap, and marked, where it is not."""
    large, small, expert = random_models(40, 50, 3)
    shift, target = expert - small, fusion.kl(expert, small)
    found = fusion.alpha_by_bisection(large, shift, target)
    left = (fusion.fused_kl(large, shift, found.values) - target).abs()
    assert left[~found.capped].max() < 1e-6, float(left[~found.capped].max())
    far = fusion.alpha_by_bisection(large, shift, target * 1e3)
    assert far.capped.all()
    assert (far.values == fusion.CAP).all()
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


@suite.oracle
def the_joint_objective_sees_one_number() -> None:
    """With one expert it is the grid of the single task; with several, every expert reaches the mean target alike."""
    large, small, expert = random_models(8, 25, 5, 0.5)
    shift, target = (expert - small)[None], fusion.kl(expert, small)[None]
    assert torch.equal(fusion.sparse_grid(large, shift, target).values[0],
                       fusion.alpha_by_grid(large, shift[0], target[0]).values)
    other = random_models(8, 25, 6, 0.5)
    shifts, targets = torch.cat([shift, (other[2] - other[1])[None]]), torch.cat([target, target / 2])
    for each in shifts:
        alpha = fusion.alpha_by_bisection(large, each, targets.mean(0))
        reached = fusion.fused_kl(large, each, alpha.values)
        assert ((reached - targets.mean(0)).abs()[~alpha.capped] < 1e-9).all()
    chosen = fusion.largest_shift(large, shifts, targets).values
    assert (chosen[1] == 0).all()
    assert (chosen[0] > 0).all()
