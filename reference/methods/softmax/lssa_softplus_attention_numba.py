"""Both stages of softplus attention, compiled: 64 rows of weights at a time, never all of them.

Stage 2 needs the sums of stage 1, so a tile of scores [visible keys, 64 rows] is gone over twice: softplus and its sums
and maxima, then the power and its sums. The two products are BLAS calls; keys beyond the diagonal are left out.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reference.kernels.jit import kernel
from reference.kernels.softmax import numba_vectors
from reference.kernels.softmax.numba_vectors import (
    LANES,
    at_least,
    elements,
    every,
    fma,
    larger,
    load,
    put,
    rint,
    shift_to_exponent,
)
from reference.methods.softmax.lssa_softplus_attention import EPS, POWER, UNSHARPENED_ROWS

Array = NDArray[np.float32]

ROWS = 4 * LANES
F32 = np.float32
_ZERO, _ONE, _TWO, _TINY = F32(0.0), F32(1.0), F32(2.0), F32(EPS)
_LOG2E, _MINUS_LN2_HIGH, _MINUS_LN2_LOW = F32(1.44269504), F32(-0.693359375), F32(2.12194440e-4)
_EXPONENT_MAGIC = F32(float.fromhex("0x1.8000FEp23"))  # leaves an integer's biased exponent in the low mantissa bits
_LOWEST = F32(-86.0)  # e^-86 is the last that is not subnormal
_E2, _E3, _E4, _E5, _E6 = (F32(1 / n) for n in (2, 6, 24, 120, 720))
_A3, _A5, _A7, _A9, _A11, _A13 = (F32(1 / n) for n in (3, 5, 7, 9, 11, 13))
_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}
_inline = njit(forceinline=True, **_OPTIONS)


def lssar_attention(q: Array, k: Array, v: Array, out: Array, power: int = POWER) -> None:
    """Causal LSSAR output of all heads, float32 and contiguous [heads, time, width] each.

    ``q`` and ``k`` come after the rotation. Only ``out`` is written.
    """
    _heads(q, k, v, out, power)


@_inline
def _softplus(x):
    """max(x, 0) + log(1 + e^-|x|), the logarithm as 2 artanh(u / (2 + u)) with u = e^-|x| in (0, 1]."""
    low = at_least(_ZERO - larger(x, _ZERO - x), _LOWEST)
    n = rint(low * _LOG2E)
    t = fma(n, _MINUS_LN2_LOW, fma(n, _MINUS_LN2_HIGH, low))
    p = fma(fma(fma(fma(fma(fma(t, _E6, _E5), t, _E4), t, _E3), t, _E2), t, _ONE), t, _ONE)
    u = p * shift_to_exponent(n + _EXPONENT_MAGIC)
    s = u / (u + _TWO)
    z = s * s
    series = fma(fma(fma(fma(fma(fma(z, _A13, _A11), z, _A9), z, _A7), z, _A5), z, _A3), z, _ONE)
    return fma(_TWO * s, series, larger(x, every(_ZERO)))


@_inline
def _raised(x, power):
    """x^power by squaring."""
    result, square = every(_ONE), x
    while power > 0:
        if power & 1:
            result = result * square
        square = square * square
        power >>= 1
    return result


@_inline
def _unit_rows(x, y):
    """Rows of ``x`` over their norms."""
    for i in range(x.shape[0]):
        total = _ZERO
        for c in range(x.shape[1]):
            total += x[i, c] * x[i, c]
        scale = _ONE / max(np.sqrt(total), F32(1e-12))
        for c in range(x.shape[1]):
            y[i, c] = x[i, c] * scale


@_inline
def _weights(tile, first, keys, width, power, sums, peaks, totals, numbers):
    """Turn scores tile[key, row] into unnormalised weights of stage 2, and leave their sums in ``totals``.

    Rows are those from ``first`` on; ``numbers`` is room for one number each. Keys that a row does not see become 0.
    """
    for r in range(ROWS):
        numbers[r] = F32(first + r + 1)
    flat, total, peak = elements(tile), elements(sums), elements(peaks)
    for g in range(0, ROWS, LANES):
        for r in range(g, g + LANES):
            totals[r] = F32(np.log(width) * np.log(numbers[r]))
        scale, S, M = load(elements(totals), g), every(_ZERO), every(_ZERO)
        for j in range(keys):
            a = _softplus(load(flat, j * ROWS + g) * scale)
            put(flat, j * ROWS + g, a)
            if j > first + g:  # rows of this group that are before the key do not see it
                for r in range(g, min(g + LANES, j - first)):
                    tile[j, r] = _ZERO
                a = load(flat, j * ROWS + g)
            S, M = S + a, larger(a, M)
        put(total, g, S)
        put(peak, g, M)
    for r in range(ROWS):
        offset = _ONE if first + r >= UNSHARPENED_ROWS else _ZERO
        sums[r] = numbers[r] / sums[r]  # A N_i of the normalised row is this times the weight
        peaks[r] = max(peaks[r] * sums[r] - offset, _TINY)
        numbers[r] = offset
    for g in range(0, ROWS, LANES):
        scale, offset, peak_of = load(total, g), load(elements(numbers), g), load(peak, g)
        S = every(_ZERO)
        for j in range(keys):
            b = load(flat, j * ROWS + g) * scale - offset
            c = _raised(larger(b, every(_ZERO)) / peak_of, power)
            put(flat, j * ROWS + g, c)
            S = S + c
        put(elements(totals), g, S)


@_inline
def _head(q, k, v, out, power):
    time, width = q.shape
    unit_q, unit_k = np.empty((ROWS, width), F32), np.empty((time, width), F32)
    turned, tile, product = np.empty((width, ROWS), F32), np.empty((time, ROWS), F32), np.empty((ROWS, width), F32)
    sums, peaks, totals, numbers = np.empty(ROWS, F32), np.empty(ROWS, F32), np.empty(ROWS, F32), np.empty(ROWS, F32)
    _unit_rows(k, unit_k)
    for first in range(0, time, ROWS):
        count = min(ROWS, time - first)
        keys = first + count
        _unit_rows(q[first:keys], unit_q)
        turned[:] = _ZERO
        for r in range(count):
            for c in range(width):
                turned[c, r] = unit_q[r, c]
        np.dot(unit_k[:keys], turned, tile[:keys])
        _weights(tile, first, keys, width, power, sums, peaks, totals, numbers)
        np.dot(tile[:keys].T, v[:keys], product)
        for r in range(count):
            scale = _ONE / (totals[r] + _TINY)
            for c in range(width):
                out[first + r, c] = product[r, c] * scale


@kernel(sources=(Path(numba_vectors.__file__),), **_OPTIONS)
def _heads(q, k, v, out, power):
    for head in range(q.shape[0]):
        _head(q[head], k[head], v[head], out[head], power)
