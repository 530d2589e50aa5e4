"""The plain PyTorch backend: every device, every floating type."""

from __future__ import annotations

import math
from typing import Literal

import torch

Side = Literal["left", "right"]


def small_side(m: int, n: int) -> Side:
    """The side that GaLore's ``std`` projects: the smaller one, decided on the gradient's shape (m >= n: right)."""
    return "right" if m >= n else "left"


def project(G: torch.Tensor, P: torch.Tensor, side: Side) -> torch.Tensor:
    """R = P^T G (left, r x n) or G P (right, m x r)."""
    return P.mT @ G if side == "left" else G @ P


def back_project(N: torch.Tensor, P: torch.Tensor, side: Side) -> torch.Tensor:
    """P N (left) or N P^T (right), m x n: the transpose of :func:`project`."""
    return P @ N if side == "left" else N @ P.mT


def adam_direction(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, betas: tuple[float, float], eps: float
) -> torch.Tensor:
    """M <- b1 M + (1-b1) R, V <- b2 V + (1-b2) R*R in place; returns N = M / (sqrt(V) + eps). R is left as it is."""
    M.lerp_(R, 1.0 - betas[0])
    V.mul_(betas[1]).addcmul_(R, R, value=1.0 - betas[1])
    return M / V.sqrt().add_(eps)


def step_size(lr: float, step: int, betas: tuple[float, float]) -> float:
    """lr * sqrt(1 - b2^step) / (1 - b1^step): Adam's bias correction by the global step, which counts from 1."""
    return lr * math.sqrt(1.0 - betas[1] ** step) / (1.0 - betas[0] ** step)


def update_weight(
    W: torch.Tensor, N: torch.Tensor, P: torch.Tensor, side: Side, step: float, keep: float = 1.0
) -> None:
    """W <- keep * (W - step * back_project(N)) in place, as one GEMM that reads and writes W once."""
    first, second = (P, N) if side == "left" else (N, P.mT)
    W.addmm_(first, second, beta=keep, alpha=-step * keep)
