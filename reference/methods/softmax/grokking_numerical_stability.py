"""Grokking at the Edge of Numerical Stability (Prieto et al. 2025, arXiv 2501.04697): why learning stops, two remedies.

Softmax collapse: with logits z shifted by their maximum, the loss of a row is log(sum_k exp(z_k)) - z_y. In a finite
dtype the sum of a confident row is exactly 1, and with it both the loss and its gradient at the row's class are 0.

Naive loss minimisation: once all rows are right, a homogeneous net lowers the loss by growing along its own weights.

StableMax replaces exp by s(x) = x + 1 for x >= 0 and 1 / (1 - x) below, whose sum does not collapse. PerpGrad takes
the part of each gradient along its own weights away.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

AnyOptimizer = TypeVar("AnyOptimizer", bound=torch.optim.Optimizer)
Loss = Callable[[Tensor, Tensor], Tensor]

_TINY = 1e-30


def collapse_gap(dtype: torch.dtype) -> float:
    """The gap between two logits from which 1 + exp(-gap) rounds to 1: -ln(eps / 2).

    7.62 in float16, 16.64 in float32, 36.74 in float64.
    """
    return -math.log(torch.finfo(dtype).eps / 2)


def row_losses(logits: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Softmax cross entropy of each row ([n, classes], [n]) -> [n], every step of it in ``dtype``.

    Written out, since torch's fused cross entropy is free to compute float16 in float32.
    """
    z = logits.to(dtype)
    z = z - z.amax(-1, keepdim=True).detach()
    return z.exp().sum(-1).log() - z.gather(-1, labels[:, None])[:, 0]


def cross_entropy_in(dtype: torch.dtype) -> Loss:
    """The mean of :func:`row_losses`, taken in ``dtype`` as well."""
    return lambda logits, labels: row_losses(logits, labels, dtype).mean()


def collapsed(logits: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
    """Which rows have collapsed, bool [n]: the label's logit is the largest, and the shifted sum of exp exactly 1."""
    z = logits.detach().to(dtype)
    z = z - z.amax(-1, keepdim=True)
    return (z.exp().sum(-1) == 1.0) & (z.gather(-1, labels[:, None])[:, 0] == 0.0)


def stable_map(x: Tensor) -> Tensor:
    """s(x) = x + 1 for x >= 0, 1 / (1 - x) for x < 0: positive, rising, linear where exp explodes."""
    # each branch sees only arguments it is finite for, or the gradient of the unused one would be NaN
    return torch.where(x >= 0, x.clamp_min(0) + 1, 1 / (1 - x.clamp_max(0)))


def stablemax(logits: Tensor) -> Tensor:
    """Probabilities s(x_k) / sum_j s(x_j) over the last axis."""
    mapped = stable_map(logits)
    return mapped / mapped.sum(-1, keepdim=True)


def stablemax_row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """-log of the label's StableMax probability for each row, [n], in the dtype of the logits."""
    mapped = stable_map(logits)
    return mapped.sum(-1).log() - mapped.gather(-1, labels[:, None])[:, 0].log()


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of :func:`stablemax_row_losses`, in float64 as in the paper."""
    return stablemax_row_losses(logits.double(), labels).mean()


LOSSES: Mapping[str, Loss] = {
    "fp16": cross_entropy_in(torch.float16),
    "fp32": cross_entropy_in(torch.float32),
    "fp64": cross_entropy_in(torch.float64),
    "stablemax": stablemax_cross_entropy,
}


def perpendicular(w: Tensor, g: Tensor) -> Tensor:
    """g - (w.g) / (w.w + 1e-30) w, rescaled to the norm of g; all of a tensor is one vector.

    A gradient parallel to the weights leaves nothing but rounding errors, which are rescaled like anything else.
    """
    remaining = torch.add(g, w, alpha=-float(torch.sum(w * g) / (torch.sum(w * w) + _TINY)))
    return remaining.mul_(g.norm() / (remaining.norm() + _TINY))


def with_perpgrad(optimizer: AnyOptimizer) -> AnyOptimizer:
    """``optimizer``, which from now on steps along :func:`perpendicular` gradients, tensor by tensor.

    Adam's preconditioning acts afterwards, so its steps need not be perpendicular.
    """

    def project(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p in _with_gradient(optimizer):
            p.grad = perpendicular(p.detach(), p.grad)

    optimizer.register_step_pre_hook(project)
    return optimizer


def with_grokfast(optimizer: AnyOptimizer, alpha: float = 0.98, strength: float = 2.0) -> AnyOptimizer:
    """``optimizer`` with slow gradients amplified: g + strength * m, where m <- alpha m + (1 - alpha) g, first m = g.

    The EMA filter of Grokfast (Lee et al. 2024, arXiv 2405.20233), a peer.
    """
    averages: dict[Tensor, Tensor] = {}

    def filter_(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for p in _with_gradient(optimizer):
            average = averages.setdefault(p, p.grad.clone())
            average.lerp_(p.grad, 1 - alpha)
            p.grad.add_(average, alpha=strength)

    optimizer.register_step_pre_hook(filter_)
    return optimizer


def _with_gradient(optimizer: torch.optim.Optimizer) -> Iterable[Any]:
    return (p for group in optimizer.param_groups for p in group["params"] if p.grad is not None)


def alignment(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> float:
    """cos(-gradient, weights), averaged over the tensors: how far a step of descent just scales the weights up.

    A gradient of 0 counts as 0.
    """
    cosines = []
    for w, g in zip(parameters, gradients, strict=True):
        a, b = w.detach().double().flatten(), g.detach().double().flatten()
        lengths = a.norm() * b.norm()
        cosines.append(float(-(a @ b) / lengths) if lengths > 0 else 0.0)
    return sum(cosines) / len(cosines)
