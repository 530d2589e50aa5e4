"""A fixed orthogonal basis (the DCT) and the choice of its columns by alignment with the gradient.

Two transforms, two bases, never to be mixed: ``by="matmul"`` computes A Q (the DCT-III of A's rows, basis Q),
``by="fft"`` computes A Q^T (the DCT-II of A's rows by Makhoul's algorithm, basis Q^T). :func:`dct_basis` gives the
basis B that belongs to a path, so that always ``dct_project(A, by) == A @ dct_basis(n, by)``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import torch

from reference.kernels.project.eager import Side

By = Literal["matmul", "fft"]
Norm = Literal["l1", "l2"]


def dct_matrix(
    n: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The orthonormal DCT-II matrix, n x n: Q[i,j] = sqrt(2/n) cos(pi i (2j+1) / (2n)), row 0 times sqrt(1/2).

    Computed in float64 and rounded once. On the meta device only the shape exists.
    """
    if torch.device(device).type == "meta":
        return torch.empty(n, n, dtype=dtype, device=device)
    i = torch.arange(n, dtype=torch.float64, device=device)
    # the angle is reduced in integers: i (2j+1) is exact, its period is 4n
    turns = torch.remainder(torch.outer(i, 2 * i + 1), 4 * n)
    Q = torch.cos(turns * (math.pi / (2 * n))) * math.sqrt(2 / n)
    Q[0] *= math.sqrt(0.5)
    return Q.to(dtype)


def dct_basis(
    n: int, by: By = "matmul", dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """The matrix B with ``dct_project(A, by) == A @ B``: Q for ``matmul``, Q^T for ``fft``."""
    Q = dct_matrix(n, dtype, device)
    return Q if by == "matmul" else Q.mT


def dct_project(A: torch.Tensor, by: By = "matmul", basis: torch.Tensor | None = None) -> torch.Tensor:
    """Transform the rows of A (m x n): A Q by one GEMM, or A Q^T by FFT in O(mn log n).

    ``basis`` is the stored ``dct_basis(n, "matmul")``, which the GEMM needs; it is built when left out.
    """
    if by == "matmul":
        return A @ (dct_basis(A.shape[-1], "matmul", A.dtype, A.device) if basis is None else basis)
    return _makhoul(A)


def column_norms(S: torch.Tensor, norm: Norm = "l1") -> torch.Tensor:
    """The l1 or l2 norm of each column of S (m x n -> n). Ranking by either is scale-free; only l2 ranks by energy."""
    if norm == "l1":
        return S.abs().sum(dim=0)
    return torch.linalg.vector_norm(S, dim=0)


def select_top(S: torch.Tensor, rank: int, norm: Norm = "l1") -> torch.Tensor:
    """Indices (int32, r) of the ``rank`` columns of S with the largest norm, in no particular order.

    With ``norm="l2"`` the kept columns hold at least rank/n of |S|_F^2; l1 carries no such guarantee.
    """
    return torch.topk(column_norms(S, norm), rank, sorted=False).indices.to(torch.int32)


def dct_select(
    A: torch.Tensor,
    rank: int,
    side: Side,
    norm: Norm = "l1",
    by: By = "matmul",
    basis: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, columns): the projection of A on the ``rank`` best aligned columns of the basis, and their int32 indices.

    Right: S = A B, a = S[:, columns] (m x r). Left: S = B^T A, a = S[columns, :] (r x n). The projection is read off
    S, so there is no second GEMM. P is ``dct_basis(n, by)[:, columns]`` with n the projected side.
    """
    S = dct_project(A if side == "right" else A.mT, by, basis)
    columns = select_top(S, rank, norm)
    a = S.index_select(1, columns)
    return (a if side == "right" else a.mT), columns


def _makhoul(A: torch.Tensor) -> torch.Tensor:
    """DCT-II of the rows by one real FFT of the reordered rows (Makhoul 1980); any n, odd included."""
    n = A.shape[-1]
    half = n // 2 + 1
    reordered = torch.cat((A[..., 0::2], A[..., 1::2].flip(-1)), dim=-1)
    spectrum = torch.fft.rfft(reordered)
    cosine, sine = _twiddles(n, A.dtype, A.device)
    # Re(w_k F_k) with w_k = 2 exp(-i pi k / 2n), scaled; the upper half of F is the conjugate of the lower
    low = cosine[:half] * spectrum.real + sine[:half] * spectrum.imag
    mirror = spectrum[..., 1 : n - half + 1].flip(-1)
    high = cosine[half:] * mirror.real - sine[half:] * mirror.imag
    return torch.cat((low, high), dim=-1)


@lru_cache(maxsize=32)
def _twiddles(n: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    k = torch.arange(n, dtype=torch.float64, device=device)
    scale = torch.full_like(k, 2 / math.sqrt(2 * n))
    scale[0] = 2 / math.sqrt(4 * n)
    angle = k * (math.pi / (2 * n))
    return (scale * torch.cos(angle)).to(dtype), (scale * torch.sin(angle)).to(dtype)
