"""Bytes that must move and FLOPs that must be done, for rooflines. float32 unless ``itemsize`` says otherwise."""

from __future__ import annotations

import math


def lowrank_adam_bytes(m: int, n: int, rank: int, itemsize: int = 4) -> float:
    """G read, W read and written, M and V read and written: 3mn + 4nr elements with n the larger side."""
    return float(itemsize * (3 * m * n + 4 * max(m, n) * rank))


def lowrank_adam_flops(m: int, n: int, rank: int) -> float:
    """The two GEMMs, 4mnr; the elementwise pass is not counted."""
    return 4.0 * m * n * rank


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


def select_bytes(m: int, n: int, rank: int, itemsize: int = 4) -> float:
    """Column norms read the transformed matrix once, the kept columns are written once."""
    return float(itemsize * (m * n + max(m, n) * rank))


def refresh_bytes(m: int, n: int, rank: int, itemsize: int = 4) -> float:
    """What any refresh must move: the gradient in, the basis and the projected gradient out."""
    return float(itemsize * (m * n + min(m, n) * rank + max(m, n) * rank))
