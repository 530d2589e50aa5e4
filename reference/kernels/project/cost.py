"""Bytes that must move, FLOPs that must be done, bytes that are allocated; float32 unless ``itemsize`` says otherwise.

``*_workspace_bytes`` is what a call may allocate beyond its arguments and results: on the CPU by the ``numba`` backend,
with torch's present number of threads. Where a Workspace is handed in, its share is allocated by the first call only.
"""

from __future__ import annotations

import math

import torch

from reference.kernels.project import blas, sketch
from reference.kernels.project.eager import Side


def lowrank_adam_bytes(m: int, n: int, rank: int, itemsize: int = 4) -> float:
    """G read, W read and written, M and V read and written: 3mn + 4nr elements with n the larger side."""
    return float(itemsize * (3 * m * n + 4 * max(m, n) * rank))


def lowrank_adam_flops(m: int, n: int, rank: int) -> float:
    """The two GEMMs, 4mnr; the elementwise pass is not counted."""
    return 4.0 * m * n * rank


def lowrank_adam_workspace_bytes(m: int, n: int, rank: int, side: Side) -> int:
    """R, which becomes N; then for the product back a panel of rows, and on the left side N with its axes exchanged."""
    low_rank = 4 * rank * (n if side == "left" else m)
    if side == "left":
        down = blas.workspace_bytes(rank, m, n, into=False, contiguous=False)
    else:
        down = blas.workspace_bytes(m, n, rank, into=False)
    back = blas.workspace_bytes(m, rank, n, into=True)
    turned = low_rank if side == "left" and back else 0
    return low_rank + max(down, turned + back)


def adam_bytes(elements: int, itemsize: int = 4) -> float:
    """R, M and V read, M, V and N written."""
    return float(6 * itemsize * elements)


def svd_flops(m: int, n: int) -> float:
    """Thin SVD with both factors by R-SVD: about 6mn^2 + 20n^3, n the smaller side (Golub and Van Loan)."""
    small, large = min(m, n), max(m, n)
    return 6.0 * large * small**2 + 20.0 * small**3


def gram_flops(m: int, n: int, rank: int) -> float:
    """Gram matrix, tridiagonal eigh with vectors (about 9 s^3) and the projection."""
    small = min(m, n)
    return 2.0 * m * n * small + 9.0 * small**3 + 2.0 * m * n * rank


def range_finder_flops(m: int, n: int, rank: int, oversample: int = 8, power_iterations: int = 1) -> float:
    """GEMMs with a block of ``rank + oversample`` columns, their QRs, and the projection."""
    width = min(rank + oversample, m, n)
    gemms = 2.0 * m * n * width * (2 + 2 * power_iterations)
    qrs = 4.0 * width**2 * (m + (m + n) * power_iterations)
    return gemms + qrs + 9.0 * width**3 + 2.0 * min(m, n) * width * rank + 2.0 * m * n * rank


def power_flops(m: int, n: int, rank: int, iterations: int = 1) -> float:
    """Block power iteration with QR, and the projection."""
    return iterations * (4.0 * m * n * rank + 4.0 * min(m, n) * rank**2) + 2.0 * m * n * rank


def dct_matmul_flops(m: int, n: int) -> float:
    """One GEMM with the stored basis of the smaller side."""
    return 2.0 * m * n * min(m, n)


def dct_fft_flops(m: int, n: int) -> float:
    """A real FFT along the smaller side: about 2.5 mn log2 of it."""
    return 2.5 * m * n * math.log2(min(m, n))


def dct_select_workspace_bytes(m: int, n: int) -> int:
    """By FFT with n the transformed side: the reordered rows, their spectrum, sums and norms of the columns.

    The FFT itself may take as much again as the reordered rows; a left projection copies A's transpose.
    """
    bins = n // 2 + 1
    return 4 * m * n + 8 * m * bins + (8 * torch.get_num_threads() + 4) * 2 * bins


def select_bytes(m: int, n: int, rank: int, itemsize: int = 4) -> float:
    """Column norms read the transformed matrix once, the kept columns are written once."""
    return float(itemsize * (m * n + max(m, n) * rank))


def refresh_bytes(m: int, n: int, rank: int, itemsize: int = 4) -> float:
    """What any refresh must move: the gradient in, the basis and the projected gradient out."""
    return float(itemsize * (m * n + min(m, n) * rank + max(m, n) * rank))


def random_project_bytes(m: int, n: int, rank: int, side: Side, itemsize: int = 4) -> float:
    """G in, R out; the random matrix moves nothing."""
    return float(itemsize * (m * n + rank * (n if side == "left" else m)))


def random_project_flops(m: int, n: int, rank: int) -> float:
    """The product; making an entry, about 40 integer and float operations, is not counted."""
    return 2.0 * m * n * rank


def random_project_workspace_bytes(m: int, n: int, rank: int, side: Side) -> int:
    """A panel of Omega and BLAS's share."""
    return sketch.workspace_bytes(m, n, rank, side)


def newton_schulz_flops(m: int, n: int, steps: int = 5, quintic: bool = True) -> float:
    """Per step X X^T and the product with X, 2 s^2 l each, and for a quintic the square, 2 s^3."""
    short, long = min(m, n), max(m, n)
    return steps * (4.0 * short**2 * long + (2.0 * short**3 if quintic else 0.0))


def newton_schulz_bytes(m: int, n: int, itemsize: int = 4) -> float:
    """G in, the result out."""
    return float(2 * itemsize * m * n)


def newton_schulz_workspace_bytes(m: int, n: int) -> int:
    """Two iterates, their Gram matrix and its square; and BLAS's share."""
    short, long = min(m, n), max(m, n)
    products = ((short, long, short), (short, short, short), (short, short, long))
    return 4 * (2 * short * long + 2 * short**2) + max(blas.workspace_bytes(*shape, into=True) for shape in products)
