"""Margin losses on cosines: the adaptive one of CFCD (2023), and the fixed and adaptive ones it is held against.

Features and class weights are normalised, so a logit is a scale times a cosine, and training lowers or turns the cosine
of the target by a margin. CFCD's first stage reads both off every batch (called MadaCos in its code), so that
P(target) is `alpha` for the sample whose target cosine is the batch's median, and 1 - 1e-7 for a cosine of 1:

    scale  s = ln(9999999 (1 - alpha) / alpha) / (1 - med),      at least 32
    margin m = med - ln(B alpha / (1 - alpha)) / s,              at least 0, and 0 in evaluation
    logits   = s cos, the target's s (cos - m)

med is the lower median of the target cosines and B the sum of exp(s cos) over the other classes of that very sample.
No gradient passes through s, m, med and B. As the median rises, so do both.
"""

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from reference.testbeds.seeding import fill_normal

SURE_ODDS = 9999999.0  # P(target | cosine 1) = 1 - 1e-7
SCALE_FLOOR = 32.0
_SMALLEST_GAP = 1e-6


class Rule(Protocol):
    """How cosines [n, classes] become logits [n, classes]: in training with the labels int64 [n], else `plain`."""

    def __call__(self, cosine: Tensor, labels: Tensor) -> Tensor: ...  # noqa: D102

    def plain(self, cosine: Tensor) -> Tensor: ...  # noqa: D102


@dataclass(frozen=True)
class Adapted:
    """What a batch gave: scale and margin, and, for CFCD, their values before the floors; the median target cosine."""

    scale: float
    margin: float
    free_scale: float
    free_margin: float
    median: float


def cosines(features: Tensor, weights: Tensor) -> Tensor:
    """Cosines [n, classes] of features [n, dim] with class weights [classes, dim], both of any length."""
    return normalize(features, dim=1) @ normalize(weights, dim=1).T


@torch.no_grad()
def adapt(cosine: Tensor, labels: Tensor, alpha: float = 0.02, floor: float = SCALE_FLOOR) -> Adapted:
    """CFCD's scale and margin for one batch of cosines [n, classes] with labels int64 [n].

    `free_scale` and `free_margin` are the solution of the two conditions on P(target); where the floor binds, the
    margin is the one that belongs to the floored scale. Raises ValueError unless 0 < alpha < 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a probability between 0 and 1, not {alpha}")
    target = cosine.gather(1, labels[:, None])[:, 0]
    median, row = target.median(0)
    free_scale = math.log(SURE_ODDS * (1 - alpha) / alpha) / max(1 - median.item(), _SMALLEST_GAP)
    others = cosine[row].double().clone()
    others[labels[row]] = -math.inf

    def margin(scale: float) -> float:
        log_b = torch.logsumexp(scale * others, 0).item()  # B itself overflows for a scale above 80
        return median.item() - (log_b + math.log(alpha / (1 - alpha))) / scale

    scale = max(free_scale, floor)
    return Adapted(scale, max(margin(scale), 0.0), free_scale, margin(free_scale), median.item())


def lowered(cosine: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Logits s cos, the target's s (cos - m); CosFace with both fixed (Wang et al. 2018, arXiv 1801.09414)."""
    return scale * (cosine - margin * _one_hot(cosine, labels))


@dataclass
class MadaCos:
    """CFCD's rule. `log` keeps what every training batch gave, in order."""

    alpha: float = 0.02
    floor: float = SCALE_FLOOR
    log: list[Adapted] = field(default_factory=list)

    def __call__(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Logits [n, classes] of a training batch."""
        self.log.append(adapt(cosine, labels, self.alpha, self.floor))
        return lowered(cosine, labels, self.log[-1].scale, self.log[-1].margin)

    def plain(self, cosine: Tensor) -> Tensor:
        """Logits without a margin, at the scale of the last training batch."""
        return (self.log[-1].scale if self.log else self.floor) * cosine


@dataclass(frozen=True)
class CosFace:
    """A fixed scale and a fixed margin on the cosine; margin 0 is the normalised softmax."""

    scale: float
    margin: float = 0.0

    def __call__(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Logits [n, classes] of a training batch."""
        return lowered(cosine, labels, self.scale, self.margin)

    def plain(self, cosine: Tensor) -> Tensor:
        """Logits without the margin."""
        return self.scale * cosine


@dataclass(frozen=True)
class ArcFace:
    """A fixed scale and a fixed margin on the angle, in radians (Deng et al. 2019, arXiv 1801.07698).

    The target's logit is s cos(theta + m). Beyond theta = pi - m, where that would rise again, it is s (cos theta -
    m sin m), as in the authors' code.
    """

    scale: float
    margin: float

    def __call__(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Logits [n, classes] of a training batch."""
        target = cosine.gather(1, labels[:, None])
        theta = torch.acos(target.clamp(-1 + _SMALLEST_GAP, 1 - _SMALLEST_GAP))
        turned = torch.where(
            theta <= math.pi - self.margin, torch.cos(theta + self.margin), target - self.margin * math.sin(self.margin)
        )
        return self.scale * torch.where(_one_hot(cosine, labels).bool(), turned, cosine)

    def plain(self, cosine: Tensor) -> Tensor:
        """Logits without the margin."""
        return self.scale * cosine


class AdaCos:
    """A scale read off every batch, without margin and without hyperparameter (Zhang et al. 2019, arXiv 1905.00292).

    s = ln(mean over the batch of B) / cos(min(pi/4, median target angle)), B the sum of exp(s' cos) over the other
    classes at the scale s' of the batch before; the first s' is sqrt(2) ln(classes - 1).
    """

    def __init__(self, classes: int):
        self.scale = math.sqrt(2) * math.log(classes - 1)
        self.log: list[Adapted] = []

    def __call__(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Logits [n, classes] of a training batch."""
        self.log.append(self.following(cosine.detach().double(), labels))
        self.scale = self.log[-1].scale
        return self.scale * cosine

    def following(self, cosine: Tensor, labels: Tensor) -> Adapted:
        """What this batch asks for after `self.scale`."""
        others = cosine.masked_fill(_one_hot(cosine, labels).bool(), -math.inf)
        log_mean_b = torch.logsumexp((self.scale * others).flatten(), 0).item() - math.log(len(labels))
        angle = cosine.gather(1, labels[:, None]).clamp(-1, 1).acos().median().item()
        scale = log_mean_b / math.cos(min(math.pi / 4, angle))
        return Adapted(scale, 0.0, scale, 0.0, math.cos(angle))

    def plain(self, cosine: Tensor) -> Tensor:
        """Logits at the last scale."""
        return self.scale * cosine


class CosineHead(nn.Module):
    """Class weights and a rule: mean cross entropy of features under the rule's logits, a scalar."""

    def __init__(self, rule: Rule, classes: int, dim: int, seed: int):
        super().__init__()
        self.rule = rule
        self.weight = nn.Parameter(torch.empty(classes, dim))
        fill_normal(self.weight, dim**-0.5, seed, "class weights")

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Features [n, dim], labels int64 [n]; in evaluation mode without a margin."""
        cosine = cosines(features, self.weight)
        logits = self.rule(cosine, labels) if self.training else self.rule.plain(cosine)
        return cross_entropy(logits, labels)


def _one_hot(cosine: Tensor, labels: Tensor) -> Tensor:
    return torch.zeros_like(cosine).scatter_(1, labels[:, None], 1.0)
