"""The formats in float64 numpy, written independently of the backends: every code is the best of all by comparison."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

Array = np.ndarray


def nearest(x: Array, values: Array) -> Array:
    """The place in ``values`` of the nearest one to each ``x``, the first of equals."""
    return np.abs(np.asarray(x, np.float64)[:, None] - np.asarray(values, np.float64)).argmin(1)


def blocks(n: int, block: int) -> Array:
    """The block that each of ``n`` entries is in."""
    return np.arange(n) // block


def largest_magnitudes(x: Array, block: int) -> Array:
    """max |x| of each block of flat ``x``."""
    return np.array([np.abs(x[start : start + block]).max() for start in range(0, x.size, block)], np.float64)


def uniform_scales(low: float, high: float, smallest: int, largest: int, symmetric: bool) -> tuple[float, float]:
    """(s, real zero point) for entries within low..high and codes smallest..largest."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        return max(high, -low) / largest, 0.0
    scale = (high - low) / (largest - smallest)
    return scale, -low / scale if scale else 0.0


def uniform_codes(x: Array, scale: float, zero: int, smallest: int, largest: int) -> Array:
    """The nearest codes of flat ``x``: (code - zero) * scale closest to it, ties to the even multiple of s."""
    steps = np.asarray(x, np.float64) / scale
    return np.clip(np.rint(steps) + zero, smallest, largest)


def log_codes(x: Array, scale: float, q: int, r: int, levels: int) -> Array:
    """round(-log2(x/s)*r/q), half to even; at most ``levels``, which is zero's; x > s is taken as s."""
    with np.errstate(divide="ignore", invalid="ignore"):
        exponent = -np.log2(np.minimum(np.asarray(x, np.float64) / scale, 1.0)) * r / q
    return np.where(np.asarray(x) > 0, np.minimum(np.rint(exponent), levels), levels)


def log_values(scale: float, q: int, r: int, levels: int) -> Array:
    """s * 2^(-code*q/r) for each code, and 0."""
    return np.array([scale * 2.0 ** float(-Fraction(code * q, r)) for code in range(levels)] + [0.0])


def adalog_values(scale: float, q: int, r: int, bits: int) -> Array:
    """AdaLog's values from its rounded table: s * 2^(-floor(code*q/r)) * T[code], and 0."""
    grid = 2 ** (bits + 1) - 2
    table = [math.floor(2 ** (-((code * q) % r) / r) * grid + 0.5) / grid for code in range(2**bits)]
    return np.array([scale * 2.0 ** -(code * q // r) * table[code] for code in range(2**bits)] + [0.0])


def ternary(x: Array, threshold: float) -> tuple[Array, float]:
    """({-1, 0, 1} of flat ``x``, mean magnitude of what is kept)."""
    x = np.asarray(x, np.float64)
    keep = (np.abs(x) >= threshold) & (x != 0)
    return np.where(keep, np.sign(x), 0), float(np.abs(x[keep]).mean()) if keep.any() else 0.0


def unpack(packed: Array, bits: int, n: int) -> Array:
    """The first ``n`` codes of ``bits`` bits, the first in the highest bits of a byte."""
    rows = np.unpackbits(packed)[: n * bits].reshape(n, bits)
    return rows @ (1 << np.arange(bits)[::-1])
