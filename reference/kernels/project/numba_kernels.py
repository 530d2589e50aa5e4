"""The loops around the matrix products, compiled by Numba for the CPU.

Each kernel works on ``part`` of ``parts`` of its rows or elements, so that one body serves one thread and many; the
parallel forms are at the end. Everything is in this one file because Numba's disk cache is keyed by the file of the
outermost function.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, float32, int32, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from reference.kernels.jit import kernel

# No reassociation: only a product and a sum may become one FMA.
_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}
_part = kernel(**_OPTIONS)
_inline = kernel(inline="always", **_OPTIONS)
_parallel = kernel(parallel=True, **_OPTIONS)

F32, I32, U32, U64 = np.float32, np.int32, np.uint32, np.uint64
COLUMNS = 1024  # float64 accumulators that stay in the first-level cache
PIECE = 64
LANES = 16

GAUSSIAN, RADEMACHER, SPARSE = range(3)
L1, L2 = range(2)

# Philox4x32-10 (Salmon et al. 2011, table 2): multipliers and Weyl increments of the key.
M0, M1 = U64(0xD2511F53), U64(0xCD9E8D57)
W0, W1 = U32(0x9E3779B9), U32(0xBB67AE85)
LOW = U64(0xFFFFFFFF)

# Single-precision minimax polynomials of the Cephes library: log on [sqrt(1/2), sqrt(2)], sine and cosine to pi/4.
LOG = tuple(F32(c) for c in (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
                             -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1))
LN2_HIGH, LN2_LOW = F32(0.693359375), F32(-2.12194440e-4)
SINE = tuple(F32(c) for c in (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1))
COSINE = tuple(F32(c) for c in (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
QUARTER_TURN = F32(math.pi / 2 / 2**22)
ONE_24TH = F32(2.0**-24)


@intrinsic
def _bits(_context, _value):
    return int32(float32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def _float(_context, _value):
    return float32(int32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.FloatType())


@intrinsic
def _reserve(_context):
    """``4 * LANES`` floats in the caller's frame; nothing is left to free."""

    def generate(context, builder, _, __):
        pointer = cgutils.alloca_once(builder, context.get_data_type(types.float32), size=4 * LANES)
        pointer.align = 64
        return pointer

    return types.CPointer(types.float32)(), generate


# --- Adam's moments and the weight


@_part
def adam_part(part, parts, R, M, V, N, b1, c1, b2, c2, eps):
    """M <- b1 M + c1 R, V <- b2 V + c2 R^2, N <- M / (sqrt(V) + eps); all flat and apart from each other."""
    for i in range(R.size * part // parts, R.size * (part + 1) // parts):
        g = R[i]
        m = b1 * M[i] + c1 * g
        v = b2 * V[i] + c2 * (g * g)
        M[i] = m
        V[i] = v
        N[i] = m / (math.sqrt(v) + eps)


@_part
def adam_in_place_part(part, parts, R, M, V, b1, c1, b2, c2, eps):
    """As :func:`adam_part` with N in R's memory; LLVM would not vectorise that form for arrays that overlap."""
    for i in range(R.size * part // parts, R.size * (part + 1) // parts):
        g = R[i]
        m = b1 * M[i] + c1 * g
        v = b2 * V[i] + c2 * (g * g)
        M[i] = m
        V[i] = v
        R[i] = m / (math.sqrt(v) + eps)


@_part
def subtract_part(part, parts, W, B, keep, step):
    """W <- keep W - step B, flat."""
    for i in range(W.size * part // parts, W.size * (part + 1) // parts):
        W[i] = keep * W[i] - step * B[i]


@_part
def polynomial_part(part, parts, A, S, a, b, c):
    """S <- a I + b A + c S for square matrices."""
    n = A.shape[0]
    for i in range(n * part // parts, n * (part + 1) // parts):
        x, y = A[i], S[i]
        for j in range(n):
            y[j] = b * x[j] + c * y[j]
        y[i] += a


# --- norms and selection


@_part
def column_sums_part(part, parts, S, power, sums):
    """sums[part] <- column sums of |S| or S^2 over the part's rows, in float64."""
    rows, n = S.shape
    low, high = rows * part // parts, rows * (part + 1) // parts
    for start in range(0, n, COLUMNS):
        stop = min(n, start + COLUMNS)
        total = sums[part, start:stop]
        total[:] = 0.0
        for i in range(low, high):
            row = S[i, start:stop]
            if power == L1:
                for j in range(total.size):
                    total[j] += np.float64(abs(row[j]))
            else:
                for j in range(total.size):
                    x = np.float64(row[j])
                    total[j] += x * x


@_part
def row_sums_part(part, parts, S, power, sums):
    """sums[0, i] <- the sum of |S[i]| or S[i]^2 in float64 for the part's rows."""
    rows, n = S.shape
    for i in range(rows * part // parts, rows * (part + 1) // parts):
        row = S[i]
        lanes = np.zeros(LANES, np.float64)
        whole = n // LANES * LANES
        for start in range(0, whole, LANES):
            piece = row[start : start + LANES]
            if power == L1:
                for j in range(LANES):
                    lanes[j] += np.float64(abs(piece[j]))
            else:
                for j in range(LANES):
                    x = np.float64(piece[j])
                    lanes[j] += x * x
        total = 0.0
        for j in range(LANES):
            total += lanes[j]
        for j in range(whole, n):
            x = np.float64(row[j])
            total += abs(x) if power == L1 else x * x
        sums[0, i] = total


@_part
def finish_norms(parts, sums, power, out):
    """out <- the norms from the parts' sums, added in order."""
    for j in range(out.size):
        total = 0.0
        for part in range(parts):
            total += sums[part, j]
        out[j] = F32(total if power == L1 else math.sqrt(total))


@_part
def gather_part(part, parts, S, columns, out):
    """out <- S[:, columns]."""
    rows, rank = out.shape
    for i in range(rows * part // parts, rows * (part + 1) // parts):
        row, kept = S[i], out[i]
        for j in range(rank):
            kept[j] = row[columns[j]]


# --- the DCT by FFT


@_part
def makhoul_part(part, parts, A, out):
    """Each row's even entries, then its odd ones backwards (Makhoul 1980)."""
    rows, n = A.shape
    half = n // 2
    whole = half // PIECE * PIECE
    for i in range(rows * part // parts, rows * (part + 1) // parts):
        row, to = A[i], out[i]
        for start in range(0, whole, PIECE):
            pairs = row[2 * start : 2 * (start + PIECE)]
            even, odd = to[start : start + PIECE], to[n - start - PIECE : n - start]
            for j in range(PIECE):
                even[j] = pairs[2 * j]
            for j in range(PIECE):
                odd[j] = pairs[2 * (PIECE - 1 - j) + 1]
        for j in range(whole, half):
            to[j] = row[2 * j]
            to[n - 1 - j] = row[2 * j + 1]
        if n % 2:
            to[half] = row[n - 1]


@_part
def spectrum_sums_part(part, parts, F, low, high, power, sums):
    """Column sums of |S| or S^2 for S = the DCT-II whose reordered rows have the spectrum F, without storing S.

    F is (rows, 2 bins), real and imaginary parts in turn. S[k] = low[0,k] Re F_k + low[1,k] Im F_k, and S[n-k] is the
    same with ``high``, whose entries are 0 where k has no mirror. sums[part] holds the bins, then their mirrors.
    """
    rows, bins = F.shape[0], low.shape[1]
    for start in range(0, bins, COLUMNS):
        stop = min(bins, start + COLUMNS)
        one, two = sums[part, start:stop], sums[part, bins + start : bins + stop]
        lc, ls, hc, hs = low[0, start:stop], low[1, start:stop], high[0, start:stop], high[1, start:stop]
        one[:] = 0.0
        two[:] = 0.0
        for i in range(rows * part // parts, rows * (part + 1) // parts):
            f = F[i, 2 * start : 2 * stop]
            if power == L1:
                for k in range(one.size):
                    re, im = f[2 * k], f[2 * k + 1]
                    one[k] += np.float64(abs(lc[k] * re + ls[k] * im))
                    two[k] += np.float64(abs(hc[k] * re + hs[k] * im))
            else:
                for k in range(one.size):
                    re, im = f[2 * k], f[2 * k + 1]
                    x, y = np.float64(lc[k] * re + ls[k] * im), np.float64(hc[k] * re + hs[k] * im)
                    one[k] += x * x
                    two[k] += y * y


@_part
def spectrum_gather_part(part, parts, F, bins, cosine, sine, out):
    """out[:, j] <- cosine[j] Re F[:, bins[j]] + sine[j] Im F[:, bins[j]]: single columns of the DCT."""
    rows, rank = out.shape
    for i in range(rows * part // parts, rows * (part + 1) // parts):
        f, kept = F[i], out[i]
        for j in range(rank):
            kept[j] = cosine[j] * f[2 * bins[j]] + sine[j] * f[2 * bins[j] + 1]


# --- random matrices


@_inline
def _words(row, quad, step, k0, k1):
    """Four uint32 of Philox4x32-10 at counter (row, quad, step, 0)."""
    c0, c1, c2, c3 = U64(row), U64(quad), U64(step), U64(0)
    for _ in range(10):
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = (p1 >> U64(32)) ^ c1 ^ U64(k0), p1 & LOW, (p0 >> U64(32)) ^ c3 ^ U64(k1), p0 & LOW
        k0 = U32(k0 + W0)
        k1 = U32(k1 + W1)
    return U32(c0), U32(c1), U32(c2), U32(c3)


@_inline
def _log(x):
    """ln x for a positive normal x, within 1.5 units in the last place."""
    bits = _bits(x)
    # m in [sqrt(1/2), sqrt(2)): 0x3504F3 is the mantissa of sqrt(2)
    e = ((bits - I32(0x3F3504F3)) >> I32(23))
    m = _float(bits - (e << I32(23))) - F32(1.0)
    y = LOG[0]
    y = y * m + LOG[1]
    y = y * m + LOG[2]
    y = y * m + LOG[3]
    y = y * m + LOG[4]
    y = y * m + LOG[5]
    y = y * m + LOG[6]
    y = y * m + LOG[7]
    y = y * m + LOG[8]
    z = m * m
    y = y * m * z + F32(e) * LN2_LOW - F32(0.5) * z
    return (m + y) + F32(e) * LN2_HIGH


@_inline
def _normals(x, y):
    """Two standard normals of two words by Box and Muller, from the upper 24 bits of each."""
    radius = math.sqrt(F32(-2.0) * _log(F32(I32(x >> U32(8)) + I32(1)) * ONE_24TH))
    angle = I32(y >> U32(8))
    quarter = (angle + I32(2**21)) >> I32(22)
    a = F32(angle - (quarter << I32(22))) * QUARTER_TURN
    z = a * a
    s = ((SINE[0] * z + SINE[1]) * z + SINE[2]) * z * a + a
    c = ((COSINE[0] * z + COSINE[1]) * z + COSINE[2]) * z * z - F32(0.5) * z + F32(1.0)
    odd = (quarter & I32(1)) != I32(0)
    cosine, sine = (s if odd else c), (c if odd else s)
    flip_cosine = ((quarter + I32(1)) & I32(2)) << I32(30)
    flip_sine = (quarter & I32(2)) << I32(30)
    return radius * _float(_bits(cosine) ^ flip_cosine), radius * _float(_bits(sine) ^ flip_sine)


@_inline
def _sign(word, scale):
    return _float(_bits(scale) | (I32(word) & I32(-(2**31))))


@_inline
def _third(word, scale):
    """+scale and -scale with probability 1/6 each, else 0."""
    return scale if word < U32(715827883) else (-scale if word >= U32(3579139413) else F32(0.0))


@_part
def random_part(part, parts, out, row, column, step, k0, k1, kind, scale):
    """out[i, j] <- scale times entry (row + i, column + j) of the random matrix; ``column`` is a multiple of 4."""
    rows, n = out.shape
    lanes = carray(_reserve(), (4, LANES))
    for first in range(rows * part // parts // LANES * LANES, rows * (part + 1) // parts, LANES):
        low, high = max(first, rows * part // parts), min(first + LANES, rows * (part + 1) // parts)
        for quad in range((n + 3) // 4):
            place = column // 4 + quad
            if kind == GAUSSIAN:
                for lane in range(LANES):
                    x0, x1, x2, x3 = _words(row + first + lane, place, step, k0, k1)
                    n0, n1 = _normals(x0, x1)
                    n2, n3 = _normals(x2, x3)
                    lanes[0, lane] = scale * n0
                    lanes[1, lane] = scale * n1
                    lanes[2, lane] = scale * n2
                    lanes[3, lane] = scale * n3
            elif kind == RADEMACHER:
                for lane in range(LANES):
                    x0, x1, x2, x3 = _words(row + first + lane, place, step, k0, k1)
                    lanes[0, lane] = _sign(x0, scale)
                    lanes[1, lane] = _sign(x1, scale)
                    lanes[2, lane] = _sign(x2, scale)
                    lanes[3, lane] = _sign(x3, scale)
            else:
                for lane in range(LANES):
                    x0, x1, x2, x3 = _words(row + first + lane, place, step, k0, k1)
                    lanes[0, lane] = _third(x0, scale)
                    lanes[1, lane] = _third(x1, scale)
                    lanes[2, lane] = _third(x2, scale)
                    lanes[3, lane] = _third(x3, scale)
            for i in range(low, high):
                for j in range(min(4, n - 4 * quad)):
                    out[i, 4 * quad + j] = lanes[j, i - first]


# --- the same on several threads


@_parallel
def adam_parallel(parts, R, M, V, N, b1, c1, b2, c2, eps):
    """:func:`adam_part` on every part."""
    for part in prange(parts):
        adam_part(part, parts, R, M, V, N, b1, c1, b2, c2, eps)


@_parallel
def adam_in_place_parallel(parts, R, M, V, b1, c1, b2, c2, eps):
    """:func:`adam_in_place_part` on every part."""
    for part in prange(parts):
        adam_in_place_part(part, parts, R, M, V, b1, c1, b2, c2, eps)


@_parallel
def subtract_parallel(parts, W, B, keep, step):
    """:func:`subtract_part` on every part."""
    for part in prange(parts):
        subtract_part(part, parts, W, B, keep, step)


@_parallel
def polynomial_parallel(parts, A, S, a, b, c):
    """:func:`polynomial_part` on every part."""
    for part in prange(parts):
        polynomial_part(part, parts, A, S, a, b, c)


@_parallel
def column_sums_parallel(parts, S, power, sums):
    """:func:`column_sums_part` on every part."""
    for part in prange(parts):
        column_sums_part(part, parts, S, power, sums)


@_parallel
def row_sums_parallel(parts, S, power, sums):
    """:func:`row_sums_part` on every part."""
    for part in prange(parts):
        row_sums_part(part, parts, S, power, sums)


@_parallel
def gather_parallel(parts, S, columns, out):
    """:func:`gather_part` on every part."""
    for part in prange(parts):
        gather_part(part, parts, S, columns, out)


@_parallel
def makhoul_parallel(parts, A, out):
    """:func:`makhoul_part` on every part."""
    for part in prange(parts):
        makhoul_part(part, parts, A, out)


@_parallel
def spectrum_sums_parallel(parts, F, low, high, power, sums):
    """:func:`spectrum_sums_part` on every part."""
    for part in prange(parts):
        spectrum_sums_part(part, parts, F, low, high, power, sums)


@_parallel
def spectrum_gather_parallel(parts, F, bins, cosine, sine, out):
    """:func:`spectrum_gather_part` on every part."""
    for part in prange(parts):
        spectrum_gather_part(part, parts, F, bins, cosine, sine, out)


@_parallel
def random_parallel(parts, out, row, column, step, k0, k1, kind, scale):
    """:func:`random_part` on every part."""
    for part in prange(parts):
        random_part(part, parts, out, row, column, step, k0, k1, kind, scale)
