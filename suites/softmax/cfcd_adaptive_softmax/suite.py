"""CFCD's adaptive softmax (2023) on glyphs: scale and margin in training, retrieval among unseen classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, SkipArm, Suite
from reference.methods.softmax import cfcd_adaptive_softmax as cfcd
from reference.methods.softmax import cfcd_adaptive_softmax_retrieval as glyphs

suite = Suite(__file__)

LR = 0.04  # best of 0.005 to 0.08 for the normalised softmax on seeds of its own, and used for every loss
RELEASED = {"alpha": 0.02}


@suite.trial("retrieval")
@suite.trial("regimes")
def unseen_classes(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, float]:
    """One loss, with the values that did best on the validation classes."""
    look = replace(glyphs.LOOK, noise=point["noise"])
    setting = glyphs.Setting(
        point["steps"], seed_for("data", seed), seed_for("init", seed), point["classes"], point["unseen"], look=look
    )
    try:
        head = glyphs.head_of(arm, setting, {**RELEASED, **tuned})
    except ImportError as missing:
        raise SkipArm("peer not installed") from missing
    trained = glyphs.train_retriever(setting, head, LR)
    suite.uses_data("glyphs", trained.history.data_digest)
    return {
        **glyphs.retrieval(trained.model, setting, "test"),
        "val_map": glyphs.retrieval(trained.model, setting, "val")["map"],
        "angle_deg": glyphs.intra_class_angle_deg(trained.model, setting),
        **glyphs.progress(trained.log),
    }


def _cosines(n: int = 33, classes: int = 20) -> tuple[Tensor, Tensor]:
    """Cosines of features that lean towards their class, float64, and labels."""
    random = torch.Generator().manual_seed(0)
    weights = torch.randn(classes, 16, generator=random, dtype=torch.float64)
    labels = torch.randint(classes, (n,), generator=random)
    features = weights[labels] + 1.5 * torch.randn(n, 16, generator=random, dtype=torch.float64)
    return cfcd.cosines(features, weights), labels


@suite.oracle
def the_median_sample_and_the_perfect_match_have_their_probabilities() -> None:
    """Without the floors: P(target) is alpha for the median sample, and 1 - 1e-7 if its cosine were 1."""
    cosine, labels = _cosines()
    for alpha in (0.02, 0.1, 0.5):
        found = cfcd.adapt(cosine, labels, alpha)
        target = cosine.gather(1, labels[:, None])[:, 0]
        row = int(target.argsort()[(len(target) - 1) // 2])
        logits = cfcd.lowered(cosine, labels, found.free_scale, found.free_margin)[row]
        assert abs(math.log(torch.softmax(logits, 0)[labels[row]].item() / alpha)) < 1e-9
        logits[labels[row]] = found.free_scale * (1 - found.free_margin)
        logits = logits - logits[labels[row]]
        miss = logits.exp().sum().item() - 1  # the odds against the target
        assert abs(miss * cfcd.SURE_ODDS - 1) < 1e-6


@suite.oracle
def scales_of_the_paper() -> None:
    """With alpha 0.02: 20.0 at a median of 0, which the floor lifts to 32, and 40.0 at 0.5."""
    labels = torch.zeros(3, dtype=torch.long)
    for median, free, floored in ((0.0, 20.01, 32.0), (0.5, 40.02, 40.02)):
        cosine = torch.tensor([[median - 0.3, 0.1], [median, 0.1], [median + 0.2, 0.1]], dtype=torch.float64)
        found = cfcd.adapt(cosine, labels)
        assert abs(found.free_scale - free) < 0.005
        assert abs(found.scale - floored) < 0.005
        margin = median - (found.scale * 0.1 + math.log(0.02 / 0.98)) / found.scale
        assert abs(found.margin - max(margin, 0.0)) < 1e-9


@suite.oracle
def no_gradient_passes_through_scale_and_margin() -> None:
    """The gradient by the cosines is s (softmax - onehot) / n at the lowered logits, and nothing else."""
    cosine, labels = _cosines()
    cosine.requires_grad_()
    logits = cfcd.MadaCos(0.1)(cosine, labels)
    torch.nn.functional.cross_entropy(logits, labels).backward()
    found = cfcd.adapt(cosine, labels, 0.1)
    shifted = found.scale * cosine.detach()
    shifted[torch.arange(len(labels)), labels] -= found.scale * found.margin
    error = torch.softmax(shifted, 1)
    error[torch.arange(len(labels)), labels] -= 1
    assert cosine.grad is not None
    assert found.margin > 0
    assert torch.allclose(cosine.grad, found.scale * error / len(labels))


@suite.oracle
def adacos_by_its_closed_form() -> None:
    cosine, labels = _cosines()
    rule = cfcd.AdaCos(20)
    first = math.sqrt(2) * math.log(19)
    assert abs(rule.scale - first) < 1e-12
    target = cosine.gather(1, labels[:, None])[:, 0]
    b = ((first * cosine).exp().sum(1) - (first * target).exp()).mean().item()
    angle = min(math.pi / 4, target.acos().sort().values[16].item())
    assert torch.allclose(rule(cosine, labels), math.log(b) / math.cos(angle) * cosine)


@suite.oracle
def margins_lower_the_target_alone() -> None:
    """Against the formulas; the other classes' logits stay s cos."""
    cosine, labels = _cosines()
    theta = cosine.acos()
    target = torch.zeros_like(cosine, dtype=torch.bool)
    target[torch.arange(len(labels)), labels] = True
    for rule, lowered in ((cfcd.ArcFace(8.0, 0.3), (theta + 0.3).cos()), (cfcd.CosFace(8.0, 0.3), cosine - 0.3)):
        logits, expected = rule(cosine, labels), 8 * lowered
        assert torch.allclose(logits[target], expected[target])
        assert torch.equal(logits[~target], 8 * cosine[~target])
