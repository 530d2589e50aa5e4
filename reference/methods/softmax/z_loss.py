"""The Z-loss (arXiv 1604.08859) and the other losses of the spherical family that it is compared with.

Outputs o = W h of D classes. With s = sum_j o_j and q = sum_j o_j^2, a loss is spherical when it depends on (s, q, o_c)
alone, c being the target (de Brebisson and Vincent 2015, arXiv 1511.05042). The Z-loss standardises o_c,

    mu = s / D,   sigma^2 = q / D - mu^2,   z_c = (o_c - mu) / sigma,   L = log(1 + exp(a (b - z_c))) / a,

so it does not change when all outputs are shifted, or scaled by a positive number. At most z_c = sqrt(D - 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax, softplus

from reference.testbeds.seeding import fill_normal

SPHERICAL_EPSILON = 1e-3


class Parts(NamedTuple):
    """What a spherical loss needs of each row's outputs: s, q and o_c, each [rows]."""

    s: Tensor
    q: Tensor
    o: Tensor


class Slopes(NamedTuple):
    """Derivatives of a row's loss with respect to s, q and (beside them) o_c, each [rows]."""

    s: Tensor
    q: Tensor
    o: Tensor


@dataclass(frozen=True)
class ZLoss:
    """Its two hyperparameters: sharpness a > 0, and b as a share of sqrt(D - 1), the largest z there is."""

    sharpness: float
    location: float

    def __post_init__(self) -> None:
        if not self.sharpness > 0:
            raise ValueError(f"the sharpness must be positive, not {self.sharpness}")

    def b(self, classes: int) -> float:
        """The location on the scale of z."""
        return self.location * math.sqrt(classes - 1)

    def loss(self, parts: Parts, classes: int) -> Tensor:
        """L of each row, [rows]."""
        z = _standardised(parts, classes)[0]
        return softplus(self.sharpness * (self.b(classes) - z)) / self.sharpness

    def slopes(self, parts: Parts, classes: int) -> Slopes:
        """dL/ds, dL/dq and dL/do_c of each row.

        With g = -sigmoid(a (b - z_c)):  L_c = g / sigma,  L_s = g (mu z_c / (D sigma^2) - 1 / (D sigma)),
        L_q = -g z_c / (2 D sigma^2).
        """
        z, mean, variance = _standardised(parts, classes)
        sigma = variance.sqrt()
        g = -torch.sigmoid(self.sharpness * (self.b(classes) - z))
        return Slopes(
            s=g * (mean * z / (classes * variance) - 1 / (classes * sigma)),
            q=-g * z / (2 * classes * variance),
            o=g / sigma,
        )


def _standardised(parts: Parts, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    mean = parts.s / classes
    variance = parts.q / classes - mean**2
    return (parts.o - mean) / variance.sqrt(), mean, variance


@dataclass(frozen=True)
class SquaredError:
    """|o - e_c|^2 = q - 2 o_c + 1."""

    def loss(self, parts: Parts, classes: int) -> Tensor:
        """L of each row, [rows]."""
        return parts.q - 2 * parts.o + 1

    def scores(self, outputs: Tensor) -> Tensor:
        """What the classes are ranked by."""
        return outputs


@dataclass(frozen=True)
class SphericalSoftmax:
    """-log((o_c^2 + epsilon) / (q + D epsilon))."""

    epsilon: float = SPHERICAL_EPSILON

    def loss(self, parts: Parts, classes: int) -> Tensor:
        """L of each row, [rows]."""
        return (parts.q + classes * self.epsilon).log() - (parts.o**2 + self.epsilon).log()

    def scores(self, outputs: Tensor) -> Tensor:
        """log p of every class."""
        unnormalised = outputs**2 + self.epsilon
        return unnormalised.log() - unnormalised.sum(-1, keepdim=True).log()


@dataclass(frozen=True)
class TaylorSoftmax:
    """-log((1 + o_c + o_c^2 / 2) / (D + s + q / 2)), the exponential's Taylor series to second order."""

    def loss(self, parts: Parts, classes: int) -> Tensor:
        """L of each row, [rows]."""
        return (classes + parts.s + parts.q / 2).log() - (1 + parts.o + parts.o**2 / 2).log()

    def scores(self, outputs: Tensor) -> Tensor:
        """log p of every class."""
        unnormalised = 1 + outputs + outputs**2 / 2
        return unnormalised.log() - unnormalised.sum(-1, keepdim=True).log()


@dataclass(frozen=True)
class LogSoftmax:
    """The yardstick, -log softmax(o)_c; it is not spherical, so it needs all outputs."""

    def scores(self, outputs: Tensor) -> Tensor:
        """log p of every class."""
        return log_softmax(outputs, dim=-1)


Loss = ZLoss | SquaredError | SphericalSoftmax | TaylorSoftmax | LogSoftmax


def parts_of(outputs: Tensor, targets: Tensor) -> Parts:
    """s, q and o_c of outputs [rows, D]."""
    return Parts(outputs.sum(-1), outputs.square().sum(-1), outputs.gather(-1, targets[:, None])[:, 0])


def parts_without_outputs(weight: Tensor, hidden: Tensor, targets: Tensor) -> Parts:
    """The same of outputs hidden @ weight^T, from W^T 1, W^T W and the targets' rows of W: O(D d^2) for any batch."""
    q = ((hidden @ (weight.T @ weight)) * hidden).sum(-1)
    return Parts(hidden @ weight.sum(0), q, (weight[targets] * hidden).sum(-1))


class DenseHead(nn.Module):
    """An output layer that can be trained with any of the losses; weights N(0, scale^2 / width)."""

    def __init__(self, width: int, classes: int, loss: Loss, seed: int, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))
        self.kind = loss
        fill_normal(self.weight, scale / math.sqrt(width), seed, "head.weight")

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[rows, width] -> log p [rows, D], or outputs that rank the classes where the loss has no probabilities."""
        outputs = linear(hidden, self.weight)
        return outputs if isinstance(self.kind, ZLoss) else self.kind.scores(outputs)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a scalar; of a spherical loss by the cheaper way, which for large batches computes no outputs."""
        if isinstance(self.kind, LogSoftmax):
            return nn.functional.cross_entropy(linear(hidden, self.weight), targets)
        if len(hidden) > self.weight.shape[1]:
            parts = parts_without_outputs(self.weight, hidden, targets)
        else:
            parts = parts_of(linear(hidden, self.weight), targets)
        return self.kind.loss(parts, len(self.weight)).mean()
