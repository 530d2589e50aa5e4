"""Ways to choose the r orthonormal columns of P for a gradient G.

Each takes G (m x n), the rank and the side, and returns P (m x r or n x r) in G's dtype. The decompositions run in
float32 for narrower types, since SVD and eigh of bfloat16 are neither offered nor accurate. Random ones draw from
``generator``: equal states give equal bases.
"""

from __future__ import annotations

import torch

from reference.kernels.project.blas import matmul
from reference.kernels.project.eager import Side


def svd_basis(G: torch.Tensor, rank: int, side: Side) -> torch.Tensor:
    """The leading ``rank`` singular vectors of G: the subspace that captures most of |G|_F^2 (Eckart-Young)."""
    U, _, Vh = torch.linalg.svd(_wide(G), full_matrices=False)
    P = U[:, :rank] if side == "left" else Vh[:rank].mT
    return P.to(G.dtype).contiguous()


def gram_basis(G: torch.Tensor, rank: int, side: Side) -> torch.Tensor:
    """The same subspace by eigh of the Gram matrix of the projected side; squares the condition number."""
    A = _columns_side(G, side)
    _, vectors = torch.linalg.eigh(matmul(A, A.mT))
    return vectors[:, -rank:].flip(1).to(G.dtype).contiguous()


def range_finder(
    G: torch.Tensor,
    rank: int,
    side: Side,
    oversample: int = 8,
    power_iterations: int = 1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Randomized range finder (Halko, Martinsson, Tropp 2011, Algorithms 4.4 and 5.1), truncated to ``rank``.

    Y = A Omega with ``rank + oversample`` Gaussian columns, ``power_iterations`` rounds of A A^T with QR between them,
    then the leading ``rank`` left singular vectors of Q^T A, by eigh of its small Gram matrix.
    """
    A = _columns_side(G, side)
    width = min(rank + oversample, *A.shape)
    omega = torch.randn(A.shape[1], width, generator=generator, dtype=A.dtype, device=A.device)
    Q = torch.linalg.qr(matmul(A, omega)).Q
    for _ in range(power_iterations):
        Q = torch.linalg.qr(matmul(A.mT, Q)).Q
        Q = torch.linalg.qr(matmul(A, Q)).Q
    B = matmul(Q.mT, A)
    _, vectors = torch.linalg.eigh(matmul(B, B.mT))
    return matmul(Q, vectors[:, -rank:].flip(1)).to(G.dtype).contiguous()


def power_basis(
    G: torch.Tensor,
    rank: int,
    side: Side,
    start: torch.Tensor | None = None,
    iterations: int = 1,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Block power iteration: P = qr(A A^T P), from ``start`` (the previous P) or a random block."""
    A = _columns_side(G, side)
    if start is None:
        start = torch.randn(A.shape[0], rank, generator=generator, dtype=A.dtype, device=A.device)
    P = start.to(A.dtype)
    for _ in range(iterations):
        P = torch.linalg.qr(matmul(A, matmul(A.mT, P))).Q
    return P.to(G.dtype).contiguous()


def random_basis(G: torch.Tensor, rank: int, side: Side, generator: torch.Generator | None = None) -> torch.Tensor:
    """A uniformly random ``rank``-dimensional subspace; looks only at the shape of G."""
    length = G.shape[0] if side == "left" else G.shape[1]
    gaussian = torch.randn(length, rank, generator=generator, dtype=torch.float32, device=G.device)
    return torch.linalg.qr(gaussian).Q.to(G.dtype).contiguous()


def _wide(G: torch.Tensor) -> torch.Tensor:
    return G if G.dtype in (torch.float32, torch.float64) else G.float()


def _columns_side(G: torch.Tensor, side: Side) -> torch.Tensor:
    """G, or its transpose, so that the projected side is the rows."""
    return _wide(G) if side == "left" else _wide(G).mT
