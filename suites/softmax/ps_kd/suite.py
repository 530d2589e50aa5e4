"""Progressive self-distillation (arXiv 2006.12000) on glyphs: error, calibration, ranking, hard examples, time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.calibration import aurc, ece
from reference.methods.softmax import ps_kd
from reference.methods.softmax.ps_kd_training import Recipe, Setting, fit, quality, teacher_answers
from suites.softmax.ps_kd.speed import step_problem

suite = Suite(__file__)


@suite.trial("glyphs")
def glyphs(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, float]:
    """One kind of targets; the teacher of `kd` is prepared once per seed, by plain cross entropy."""
    setting = Setting(point["epochs"], seed_for("data", seed), seed_for("init", seed), point["classes"])
    teacher = None
    if arm == "kd":
        config = {"data_seed": setting.data_seed, "init_seed": seed_for("teacher", seed)}
        teacher = suite.prepare("teacher", dict(point) | config, teacher_answers)
    model, history = fit(setting, Recipe(arm, tuned.get("strength", 0.0), tuned.get("lr", point["lr"])), teacher)
    suite.uses_data("glyphs", history.data_digest)
    return quality(model, setting) | model.mining.rank_correlations()


@suite.speed("step")
def step(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One training step by where old answers come from."""
    return step_problem(point["classes"], point["batch"])


def _draw(n: int = 40, classes: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a net, another's answers and labels, float64."""
    random = torch.Generator().manual_seed(0)
    logits, old = torch.randn(2, n, classes, generator=random, dtype=torch.float64)
    return logits, torch.softmax(2 * old, 1), torch.randint(classes, (n,), generator=random)


@suite.oracle
def the_gradient_is_the_papers() -> None:
    """By autograd: CE's true-class gradient times the factor, and the share as measured."""
    logits, answers, labels = _draw()
    alpha = 0.6
    logits.requires_grad_()
    (plain,) = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), logits)
    targets = ps_kd.mixed(labels, answers, alpha)
    (soft,) = torch.autograd.grad(ps_kd.soft_cross_entropy(logits, targets).sum(), logits)
    factor = ps_kd.true_class_factor(torch.softmax(logits, 1), answers, labels, alpha)
    column = labels[:, None]
    assert torch.allclose(soft.gather(1, column), plain.gather(1, column) * factor[:, None])
    share, signed, difficulty = ps_kd.gradient_pulls(logits, targets, labels)
    assert torch.allclose(share, soft.abs().sum(1) / plain.abs().sum(1))
    assert torch.allclose(signed, factor)
    assert torch.allclose(difficulty, -plain.gather(1, column)[:, 0])


@suite.oracle
def the_first_epoch_is_plain_cross_entropy() -> None:
    logits, _, labels = _draw()
    targets = ps_kd.Answers(labels, 7).targets(torch.arange(40), labels, ps_kd.alpha_at(0, 30, 0.8))
    loss = ps_kd.soft_cross_entropy(logits, targets)
    assert torch.allclose(loss, cross_entropy(logits, labels, reduction="none"))


@suite.oracle
def the_second_epoch_mixes_in_the_answers_of_the_first() -> None:
    logits, _, labels = _draw()
    answers, rows = ps_kd.Answers(labels, 7), torch.arange(39, -1, -1)
    answers.keep(rows, logits[rows])
    targets = answers.targets(rows[:5], labels[rows[:5]], ps_kd.alpha_at(1, 4, 0.8))
    for place, row in enumerate(rows[:5].tolist()):
        expected = 0.4 * torch.softmax(logits[row], 0)  # alpha is 0.8 * 2/4
        expected[labels[row]] += 0.6
        assert torch.allclose(targets[place].double(), expected, atol=1e-6)
    assert [round(ps_kd.alpha_at(t, 4, 0.8), 12) for t in range(4)] == [0.2, 0.4, 0.6, 0.8]


@suite.oracle
def smoothing_is_torchs() -> None:
    logits, _, labels = _draw()
    loss = ps_kd.soft_cross_entropy(logits, ps_kd.smoothed(labels, 7, 0.1).double()).mean()
    assert torch.allclose(loss, cross_entropy(logits, labels, label_smoothing=0.1), atol=1e-6)


@suite.oracle
def calibration_by_hand() -> None:
    p = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.65, 0.35], [0.55, 0.45]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1])
    assert abs(ece(p, labels, 10) - (0.05 + 0.85 + 0.35 + 0.55) / 4) < 1e-12
    assert abs(aurc(p, labels) - (0 + 1 / 2 + 1 / 3 + 1 / 2) / 4) < 1e-12
