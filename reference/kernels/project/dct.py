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

from reference.kernels.project import blas, dispatch
from reference.kernels.project.columns import gather_columns, select_top, top
from reference.kernels.project.eager import Norm, Side
from reference.kernels.project.workspace import Workspace

By = Literal["matmul", "fft"]


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
        return blas.matmul(A, dct_basis(A.shape[-1], "matmul", A.dtype, A.device) if basis is None else basis)
    return _makhoul(A)


def dct_select(
    A: torch.Tensor,
    rank: int,
    side: Side,
    norm: Norm = "l1",
    by: By = "matmul",
    basis: torch.Tensor | None = None,
    *,
    workspace: Workspace | None = None,
    backend: str = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, columns): the projection of A on the ``rank`` best aligned columns of the basis, and their int32 indices.

    Right: S = A B, a = S[:, columns] (m x r). Left: S = B^T A, a = S[columns, :] (r x n). The projection is read off
    S, so there is no second GEMM; by FFT in float32 on a CPU, S itself is never formed: norms and kept columns come
    from the spectrum. P is ``dct_basis(n, by)[:, columns]`` with n the projected side.
    """
    rows = A if side == "right" else A.mT
    if by == "fft" and A.numel() and dispatch.name(backend, A) == "numba":
        a, columns = _select_from_spectrum(rows, rank, norm, workspace or Workspace())
        return (a if side == "right" else a.mT), columns
    if by == "fft" or side == "right":
        S = dct_project(rows, by, basis)
        columns = select_top(S, rank, norm, backend=backend)
        a = gather_columns(S, columns, backend=backend)
        return (a if side == "right" else a.mT), columns
    B = dct_basis(A.shape[0], by, A.dtype, A.device) if basis is None else basis
    S = blas.matmul(B.mT, A)
    columns = select_top(S.mT, rank, norm, backend=backend)
    return S.index_select(0, columns), columns


def _select_from_spectrum(
    A: torch.Tensor, rank: int, norm: Norm, workspace: Workspace
) -> tuple[torch.Tensor, torch.Tensor]:
    """(A Q^T[:, columns], columns) for float32 rows on a CPU."""
    from reference.kernels.project import numba_cpu

    m, n = A.shape
    ordered = workspace.take("ordered", (m, n), A.dtype, A.device)
    numba_cpu.makhoul_order(A.contiguous(), ordered)
    F = torch.fft.rfft(ordered)
    bins = F.shape[1]
    cosine, sine = _twiddles(n, A.dtype, A.device)
    low, high = _both_halves(n, A.dtype, A.device)
    norms = torch.empty(2 * bins, dtype=A.dtype)
    numba_cpu.spectrum_norms(F, low, high, norm, norms)
    # column k of the upper half is the mirror of bin n - k
    columns = top(torch.cat((norms[:bins], norms[bins + 1 : bins + 1 + n - bins].flip(0))), rank)
    mirrored = columns >= bins
    out = torch.empty(m, rank, dtype=A.dtype)
    numba_cpu.spectrum_gather(
        F, torch.where(mirrored, n - columns, columns).to(torch.int32), cosine[columns.long()],
        torch.where(mirrored, -1.0, 1.0) * sine[columns.long()], out,
    )
    return out, columns


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


@lru_cache(maxsize=32)
def _both_halves(n: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of (Re F_k, Im F_k) for S[k] and for S[n - k], each 2 x bins; zero where k has no mirror."""
    cosine, sine = _twiddles(n, dtype, device)
    bins = n // 2 + 1
    high = torch.zeros(2, bins, dtype=dtype, device=device)
    mirrors = torch.arange(1, n - bins + 1, device=device)
    high[:, mirrors] = torch.stack((cosine[n - mirrors], -sine[n - mirrors]))
    return torch.stack((cosine[:bins], sine[:bins])).contiguous(), high
