"""The nearest semi-orthogonal matrix by Newton-Schulz iteration: products only, no decomposition."""

from __future__ import annotations

import torch

from reference.kernels.project import blas, dispatch
from reference.kernels.project.columns import column_norms
from reference.kernels.project.workspace import Workspace

Coefficients = tuple[float, float, float]

# Muon (Jordan et al. 2024): the steepest odd quintic at 0 whose iterates stay near 1. Five steps carry every singular
# value of X from [0.01, 1] into [0.67, 1.14]; it does not converge.
QUINTIC: Coefficients = (3.4445, -4.7750, 2.0315)
# The classical iteration X (3 I - X^T X) / 2: converges to U V^T, quadratically once singular values are near 1, and
# while they are small by a factor 3/2 a step.
CUBIC: Coefficients = (1.5, -0.5, 0.0)


def newton_schulz(
    G: torch.Tensor,
    *,
    steps: int = 5,
    coefficients: Coefficients = QUINTIC,
    eps: float = 1e-7,
    out: torch.Tensor | None = None,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """U p(...p(S / (|G|_F + eps))...) V^T for G = U S V^T (m x n) and p(x) = a x + b x^3 + c x^5, ``steps`` times.

    Per step X <- (a I + b A + c A^2) X with A = X X^T on the smaller side (a tall G is transposed). float16 and
    bfloat16 are computed in float32 and rounded once. G = 0 gives 0, a NaN or infinity in G gives NaN everywhere. G is
    left as it is; the result is ``out`` or new, of G's shape and type. Raises ValueError for anything but a matrix.
    """
    if G.ndim != 2:
        raise ValueError(f"G must be a matrix, got shape {tuple(G.shape)}")
    if out is not None and (out.shape != G.shape or out.dtype != G.dtype or out.device != G.device):
        raise ValueError(f"out must be {tuple(G.shape)} {G.dtype} on {G.device}")
    result = torch.empty_like(G, memory_format=torch.contiguous_format) if out is None else out
    if G.numel() == 0:
        return result
    wide = G if G.dtype in (torch.float32, torch.float64) else G.float()
    X = wide if G.shape[0] <= G.shape[1] else wide.mT
    X = _iterate(X, steps, coefficients, eps, workspace or Workspace(), backend)
    return result.copy_(X if G.shape[0] <= G.shape[1] else X.mT)


def _iterate(
    G: torch.Tensor, steps: int, coefficients: Coefficients, eps: float, workspace: Workspace, backend: str
) -> torch.Tensor:
    short, long = G.shape
    X, Y = (workspace.take(name, (short, long), G.dtype, G.device) for name in ("x", "y"))
    A, S = (workspace.take(name, (short, short), G.dtype, G.device) for name in ("gram", "square"))
    # in float64 from the columns' norms: the squares of large and small gradients leave float32's range
    torch.div(G, torch.linalg.vector_norm(column_norms(G, "l2", backend=backend).double()) + eps, out=X)
    a, b, c = coefficients
    for _ in range(steps):
        blas.matmul(X, X.mT, out=A)
        if c:
            blas.matmul(A, A.mT, out=S)  # A is symmetric, and its transpose is what oneDNN takes as it is
        else:
            S.zero_()
        dispatch.module(backend, A, S).polynomial(A, S, a, b, c)
        blas.matmul(S, X, out=Y)
        X, Y = Y, X
    return X

