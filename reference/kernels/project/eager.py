"""The plain PyTorch backend: every device, every floating type.

A backend's module offers ``adam_moments``, ``polynomial``, ``column_norms``, ``gather_columns`` and ``fill_random``, on
checked arguments. The other functions here are the op's equations in their plainest form.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from reference.kernels.project.sketch import Sketch

Side = Literal["left", "right"]
Norm = Literal["l1", "l2"]

_ROWS = 256  # of a matrix that is widened to float64 at once
_LOW = 0xFFFFFFFF
_MULTIPLIERS, _INCREMENTS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)


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


def adam_moments(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, N: torch.Tensor, betas: tuple[float, float], eps: float
) -> None:
    """:func:`adam_direction` into N, which may be R."""
    M.lerp_(R, 1.0 - betas[0])
    V.mul_(betas[1]).addcmul_(R, R, value=1.0 - betas[1])
    torch.sqrt(V, out=N)
    torch.div(M, N.add_(eps), out=N)


def polynomial(A: torch.Tensor, S: torch.Tensor, a: float, b: float, c: float) -> None:
    """S <- a I + b A + c S for square matrices, in place."""
    S.mul_(c).add_(A, alpha=b).diagonal().add_(a)


def column_norms(S: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    """out <- the l1 or l2 norms of S's columns, summed in float64."""
    total = torch.zeros(S.shape[1], dtype=torch.float64, device=S.device)
    for rows in S.split(_ROWS):
        wide = rows.double()
        total += (wide.abs() if norm == "l1" else wide.square()).sum(dim=0)
    out.copy_(total if norm == "l1" else total.sqrt())


def gather_columns(S: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> None:
    """out <- S[:, columns]."""
    torch.index_select(S, 1, columns, out=out)


def fill_random(out: torch.Tensor, row: int, column: int, sketch: Sketch, scale: float) -> None:
    """out <- the block of ``sketch.random_matrix`` that starts at (row, column)."""
    rows, n = out.shape
    quads = -(-n // 4)
    words = _philox(row, rows, column // 4, quads, sketch, out.device)
    if sketch.kind == "gaussian":
        values = [value * scale for pair in (words[:2], words[2:]) for value in _normals(*pair)]
    elif sketch.kind == "rademacher":
        values = [torch.where(word >= 2**31, -scale, scale) for word in words]
    else:
        sixth = 715827883  # 2^32 / 6
        values = [(word < sixth).float() * scale - (word >= 2**32 - sixth).float() * scale for word in words]
    out.copy_(torch.stack(values, dim=-1).reshape(rows, 4 * quads)[:, :n])


def _philox(row: int, rows: int, quad: int, quads: int, sketch: Sketch, device: torch.device) -> list[torch.Tensor]:
    """Four words (rows x quads, int64 in [0, 2^32)) of Philox4x32-10 at counters (row, quad, step, 0)."""
    shape = rows, quads
    c0 = torch.arange(row, row + rows, device=device)[:, None].expand(shape)
    c1 = torch.arange(quad, quad + quads, device=device)[None, :].expand(shape)
    c2, c3 = torch.full(shape, sketch.step, device=device), torch.zeros(shape, dtype=torch.int64, device=device)
    key = [sketch.seed & _LOW, sketch.seed >> 32]
    for _ in range(10):
        # the product modulo 2^64 in a signed integer: its halves are right once they are masked
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> 32 & _LOW) ^ c1 ^ key[0], p1 & _LOW
        c2, c3 = (p0 >> 32 & _LOW) ^ c3 ^ key[1], p0 & _LOW
        key = [(word + increment) & _LOW for word, increment in zip(key, _INCREMENTS, strict=True)]
    return [c0, c1, c2, c3]


def _normals(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Box and Muller's two standard normals, from the upper 24 bits of each word."""
    radius = (((x >> 8) + 1).float() * 2.0**-24).log().mul(-2.0).sqrt()
    angle = y >> 8
    quarter = (angle + 2**21) >> 22
    a = (angle - (quarter << 22)).float() * (math.pi / 2 / 2**22)
    s, c = a.sin(), a.cos()
    odd = (quarter & 1).bool()
    cosine = torch.where(odd, s, c) * torch.where((quarter + 1) & 2 > 0, -1.0, 1.0)
    sine = torch.where(odd, c, s) * torch.where(quarter & 2 > 0, -1.0, 1.0)
    return radius * cosine, radius * sine


def step_size(lr: float, step: int, betas: tuple[float, float]) -> float:
    """lr * sqrt(1 - b2^step) / (1 - b1^step): Adam's bias correction by the global step, which counts from 1."""
    return lr * math.sqrt(1.0 - betas[1] ** step) / (1.0 - betas[0] ** step)


def update_weight(
    W: torch.Tensor, N: torch.Tensor, P: torch.Tensor, side: Side, step: float, keep: float = 1.0
) -> None:
    """W <- keep * (W - step * back_project(N)) in place, as one GEMM that reads and writes W once."""
    first, second = (P, N) if side == "left" else (N, P.mT)
    W.addmm_(first, second, beta=keep, alpha=-step * keep)
