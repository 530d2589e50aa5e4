"""Low-rank gradient projection: one side of a matrix is projected, Adam runs in the small space, the step comes back.

Shapes, everywhere in this package: ``G`` and ``W`` are m x n. ``P`` has orthonormal columns; ``side="left"`` means P is
m x r and R = P^T G is r x n, ``side="right"`` means P is n x r and R = G P is m x r.

``backend`` is ``auto`` or one of ``numba`` (float32, CPU), ``eager`` (plain torch, everything), ``triton`` and ``cuda``
(CUDA devices). It chooses what surrounds the matrix products; these go to the platform's BLAS, see :func:`gemm_route`,
but for a step by ``eager`` and ``compile``, which are torch from end to end.
"""

from __future__ import annotations

import torch

from reference.kernels.backend import BACKENDS, BackendMissing
from reference.kernels.project import dispatch, eager
from reference.kernels.project.bases import gram_basis, power_basis, random_basis, range_finder, svd_basis
from reference.kernels.project.blas import gemm_route, matmul
from reference.kernels.project.columns import column_norms, gather_columns, select_top, top
from reference.kernels.project.dct import dct_basis, dct_matrix, dct_project, dct_select
from reference.kernels.project.eager import Side, small_side
from reference.kernels.project.orthogonalise import CUBIC, QUINTIC, newton_schulz
from reference.kernels.project.sketch import Sketch, random_back_project, random_matrix, random_project
from reference.kernels.project.update import back_project, project, update_weight
from reference.kernels.project.workspace import Workspace


def adam_direction(
    R: torch.Tensor,
    M: torch.Tensor,
    V: torch.Tensor,
    betas: tuple[float, float],
    eps: float,
    backend: str = "auto",
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Update the moments M and V in place with R and return N = M / (sqrt(V) + eps), no bias correction.

    M <- b1 M + (1-b1) R, V <- b2 V + (1-b2) R*R, in one pass that reads R, M, V and writes M, V, N (``compile`` and
    ``eager``: what torch makes of it). N is ``out``, which may be R, or a new tensor; R is otherwise left as it is.
    NaN and infinity go as IEEE says. Raises ValueError for shapes that differ and for what the backend does not take.
    """
    if not R.shape == M.shape == V.shape or (out is not None and out.shape != R.shape):
        raise ValueError(f"R, M, V and out must agree, got {[tuple(x.shape) for x in (R, M, V)]}")
    if backend == "compile":
        from reference.kernels.project import compiled

        N = compiled.adam_direction(R, M, V, betas, eps)
        return N if out is None else out.copy_(N)
    N = torch.empty_like(M) if out is None else out
    whole = R.contiguous()
    module = dispatch.module(backend, M, V, N, whole)
    module.adam_moments(R if module is eager else whole, M, V, N, betas, eps)
    return N


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
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> None:
    """One GaLore step with a fixed P (GaLore, Algorithm 2), in place on W, M and V.

    R = project(G); M, V are Adam's moments of R; W -= lr * sqrt(1-b2^step)/(1-b1^step) * alpha * back(M/(sqrt(V)+eps));
    then W *= 1 - lr*weight_decay. ``step`` counts from 1. Two GEMMs of 2mnr FLOPs with one elementwise pass between
    them. G and P are left as they are. What it allocates is ``cost.lowrank_adam_workspace_bytes``.
    """
    rest = "eager" if backend == "compile" else backend
    R = project(G, P, side, route="torch" if rest == "eager" else None)
    N = adam_direction(R, M, V, betas, eps, backend, out=R)
    scale = eager.step_size(lr, step, betas) * alpha
    update_weight(W, N, P, side, scale, 1.0 - lr * weight_decay, workspace=workspace, backend=rest)


__all__ = [
    "BACKENDS", "CUBIC", "QUINTIC", "BackendMissing", "Side", "Sketch", "Workspace", "adam_direction", "back_project",
    "column_norms", "dct_basis", "dct_matrix", "dct_project", "dct_select", "gather_columns", "gemm_route",
    "gram_basis", "lowrank_adam_step", "matmul", "newton_schulz", "power_basis", "project", "random_back_project",
    "random_basis", "random_matrix", "random_project", "range_finder", "select_top", "small_side", "svd_basis", "top",
    "update_weight",
]
