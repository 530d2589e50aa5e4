"""Low-rank gradient projection: one side of a matrix is projected, Adam runs in the small space, the step comes back.

Shapes, everywhere in this package: ``G`` and ``W`` are m x n. ``P`` has orthonormal columns; ``side="left"`` means P is
m x r and R = P^T G is r x n, ``side="right"`` means P is n x r and R = G P is m x r.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch

from reference.kernels.project import compiled, eager, numba_cpu
from reference.kernels.project.bases import gram_basis, power_basis, random_basis, range_finder, svd_basis
from reference.kernels.project.dct import column_norms, dct_basis, dct_matrix, dct_project, dct_select, select_top
from reference.kernels.project.eager import Side, back_project, project, small_side, update_weight

# f(R, M, V, betas, eps) -> N, see reference.kernels.project.eager.adam_direction
AdamDirection = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, tuple[float, float], float], torch.Tensor]

BACKENDS: Mapping[str, AdamDirection] = MappingProxyType(
    {
        "eager": eager.adam_direction,
        "numba": numba_cpu.adam_direction,
        "compile": compiled.adam_direction,
    }
)


def adam_direction(
    R: torch.Tensor,
    M: torch.Tensor,
    V: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
    backend: str = "eager",
) -> torch.Tensor:
    """Update the moments M and V in place with R and return N = M / (sqrt(V) + eps), no bias correction."""
    return BACKENDS[backend](R, M, V, betas, eps)


def lowrank_adam_step(
    W: torch.Tensor,
    G: torch.Tensor,
    P: torch.Tensor,
    M: torch.Tensor,
    V: torch.Tensor,
    *,
    side: Side,
    step: int,
    lr: float,
    alpha: float = 0.25,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.0,
    backend: str = "eager",
) -> None:
    """One GaLore step with a fixed P (GaLore, Algorithm 2), in place on W, M and V.

    R = project(G); M, V are Adam's moments of R; W -= lr * sqrt(1-b2^step)/(1-b1^step) * alpha * back(M/(sqrt(V)+eps));
    then W *= 1 - lr*weight_decay. ``step`` counts from 1. Two GEMMs of 2mnr FLOPs with one elementwise pass between
    them, which is what ``backend`` chooses. G and P are left as they are.
    """
    N = BACKENDS[backend](project(G, P, side), M, V, betas, eps)
    update_weight(W, N, P, side, eager.step_size(lr, step, betas) * alpha, 1.0 - lr * weight_decay)


__all__ = [
    "BACKENDS",
    "AdamDirection",
    "Side",
    "adam_direction",
    "back_project",
    "column_norms",
    "dct_basis",
    "dct_matrix",
    "dct_project",
    "dct_select",
    "gram_basis",
    "lowrank_adam_step",
    "power_basis",
    "project",
    "random_basis",
    "range_finder",
    "select_top",
    "small_side",
    "svd_basis",
    "update_weight",
]
