"""How much of a gradient a subspace captures, for the ways of choosing it without a decomposition and with one."""

from __future__ import annotations

from typing import Literal

import torch

from reference.kernels import project as kernels

Family = Literal["svd", "dct", "random_orthogonal", "identity", "random_columns"]


def captured(
    G: torch.Tensor, family: Family, rank: int, norm: Literal["l1", "l2"], generator: torch.Generator
) -> float:
    """|project(G)|_F^2 / |G|_F^2 on the smaller side of G.

    ``svd`` is the optimum. ``dct``, ``random_orthogonal`` and ``identity`` select ``rank`` columns of that fixed
    orthogonal basis by ``norm``; ``random_columns`` takes a random subspace without looking at G.
    """
    side = kernels.small_side(*G.shape)
    A = G if side == "right" else G.mT
    if family == "svd":
        R = kernels.project(A, kernels.svd_basis(A, rank, "right"), "right")
    elif family == "random_columns":
        R = kernels.project(A, kernels.random_basis(A, rank, "right", generator), "right")
    else:
        S = A @ fixed_basis(family, A.shape[1], generator)
        R = S.index_select(1, kernels.select_top(S, rank, norm))
    return float((R.square().sum() / G.square().sum()).item())


def fixed_basis(family: Family, n: int, generator: torch.Generator) -> torch.Tensor:
    """The n x n orthogonal matrix whose columns are selected."""
    if family == "dct":
        return kernels.dct_matrix(n)
    if family == "identity":
        return torch.eye(n)
    if family == "random_orthogonal":
        return torch.linalg.qr(torch.randn(n, n, generator=generator)).Q
    raise ValueError(f"{family!r} is not a fixed basis")


def smooth_low_rank(m: int, n: int, rank: int, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Low rank plus noise, with right factors that vary smoothly along the columns: random walks less their mean.

    The mean would survive a shuffle of the columns, and the DCT's constant column would find it there.
    """
    left = torch.randn(m, rank, generator=generator)
    right = torch.randn(n, rank, generator=generator).cumsum(dim=0)
    right = right - right.mean(dim=0)
    right = right / right.norm(dim=0)
    return left @ right.mT + noise * torch.randn(m, n, generator=generator) / n**0.5
