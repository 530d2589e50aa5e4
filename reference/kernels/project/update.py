"""The two ends of a low-rank step: the gradient into the subspace, the direction back into the weight."""

from __future__ import annotations

import torch

from reference.kernels.project import blas, dispatch, eager
from reference.kernels.project.eager import Side
from reference.kernels.project.workspace import Workspace


def project(
    G: torch.Tensor, P: torch.Tensor, side: Side, *, out: torch.Tensor | None = None, route: blas.Route | None = None
) -> torch.Tensor:
    """R = P^T G (left, r x n) or G P (right, m x r), by :func:`reference.kernels.project.blas.matmul`."""
    return blas.matmul(P.mT, G, out=out, route=route) if side == "left" else blas.matmul(G, P, out=out, route=route)


def back_project(N: torch.Tensor, P: torch.Tensor, side: Side, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """P N (left) or N P^T (right), m x n: the transpose of :func:`project`."""
    return blas.matmul(P, N, out=out) if side == "left" else blas.matmul(N, P.mT, out=out)


def update_weight(
    W: torch.Tensor,
    N: torch.Tensor,
    P: torch.Tensor,
    side: Side,
    step: float,
    keep: float = 1.0,
    *,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> None:
    """W <- keep * (W - step * back_project(N)) in place.

    By torch it is one GEMM that accumulates into W, whatever its strides. Where the GEMM goes to oneDNN, which cannot
    accumulate, a panel of rows is multiplied and subtracted while it is in the cache; no m x n temporary is made.
    """
    m, n = W.shape
    rank = P.shape[1]
    chosen = dispatch.name(backend, W) if W.is_contiguous() else "eager"
    if chosen != "numba" or blas.route_of(m, rank, n, W.dtype, W.device) == "torch":
        with blas.full_precision(W):
            eager.update_weight(W, N, P, side, step, keep)
        return
    from reference.kernels.project import numba_cpu

    first, second = (N, P.mT) if side == "right" else (P, _packed(N, workspace))
    rows = blas.panel_rows(m, n)
    for start in range(0, m, rows):
        part = slice(start, start + rows)
        numba_cpu.subtract(W[part], blas.matmul(first[part], second, route="onednn"), keep, keep * step)


def _packed(N: torch.Tensor, workspace: Workspace | None) -> torch.Tensor:
    """N with contiguous columns, as every panel's product wants it."""
    turned = (workspace or Workspace()).take("turned", (N.shape[1], N.shape[0]), N.dtype, N.device)
    return turned.copy_(N.mT).mT
