"""The kernels around the matrix products in Triton: the equations and constants of ``numba_kernels``.

float16 and bfloat16 are raised to float32 when loaded and rounded when stored; sums are kept in float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

GAUSSIAN, RADEMACHER = tl.constexpr(0), tl.constexpr(1)

LOG0, LOG1, LOG2 = tl.constexpr(7.0376836292e-2), tl.constexpr(-1.1514610310e-1), tl.constexpr(1.1676998740e-1)
LOG3, LOG4, LOG5 = tl.constexpr(-1.2420140846e-1), tl.constexpr(1.4249322787e-1), tl.constexpr(-1.6668057665e-1)
LOG6, LOG7, LOG8 = tl.constexpr(2.0000714765e-1), tl.constexpr(-2.4999993993e-1), tl.constexpr(3.3333331174e-1)
LN2_HIGH, LN2_LOW = tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
SINE0, SINE1, SINE2 = tl.constexpr(-1.9515295891e-4), tl.constexpr(8.3321608736e-3), tl.constexpr(-1.6666654611e-1)
COSINE0, COSINE1 = tl.constexpr(2.443315711809948e-5), tl.constexpr(-1.388731625493765e-3)
COSINE2 = tl.constexpr(4.166664568298827e-2)
QUARTER_TURN = tl.constexpr(1.5707963267948966 / 2**22)
ONE_24TH = tl.constexpr(2.0**-24)


@triton.jit
def adam_moments(R, M, V, N, n, b1, c1, b2, c2, eps, BLOCK: tl.constexpr):
    """M <- b1 M + c1 R, V <- b2 V + c2 R^2, N <- M / (sqrt(V) + eps) on ``n`` entries; N may be R."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    g = tl.load(R + at, inside).to(tl.float32)
    m = b1 * tl.load(M + at, inside).to(tl.float32) + c1 * g
    v = b2 * tl.load(V + at, inside, 1.0).to(tl.float32) + c2 * (g * g)
    tl.store(M + at, m.to(M.dtype.element_ty), inside)
    tl.store(V + at, v.to(V.dtype.element_ty), inside)
    direction = tl.div_rn(m, tl.sqrt_rn(v) + eps)
    tl.store(N + at, direction.to(N.dtype.element_ty), inside)


@triton.jit
def polynomial(A, S, n, a, b, c, BLOCK: tl.constexpr):
    """S <- a I + b A + c S for n x n matrices, a row a program."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, n, BLOCK):
        column = start + tl.arange(0, BLOCK)
        at, inside = row * n + column, column < n
        x = tl.load(A + at, inside).to(tl.float32)
        y = b * x + c * tl.load(S + at, inside).to(tl.float32)
        y = tl.where(column == row, y + a, y)
        tl.store(S + at, y.to(S.dtype.element_ty), inside)


@triton.jit
def column_sums(S, sums, rows, n, rows_a_part, SQUARES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """sums[part] <- column sums of |S| or S^2 over the part's rows."""
    part = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first, last = part * rows_a_part, tl.minimum((part + 1) * rows_a_part, rows)
    total = tl.zeros((ROWS, COLUMNS), tl.float64)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & (column < n)[None, :]
        x = tl.load(S + row[:, None] * n + column[None, :], inside, 0.0).to(tl.float32).to(tl.float64)
        total += x * x if SQUARES else tl.abs(x)
    tl.store(sums + part * n + column, tl.sum(total, axis=0), column < n)


@triton.jit
def finish_norms(sums, out, parts, n, SQUARES: tl.constexpr, BLOCK: tl.constexpr):
    """out <- the norms from the parts' sums, added in order."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    place = sums + column
    for _ in range(parts):
        total += tl.load(place, column < n, 0.0)
        place += n
    norm = tl.sqrt(total) if SQUARES else total
    tl.store(out + column, norm.to(tl.float32), column < n)


@triton.jit
def gather_columns(S, columns, out, n, rank, BLOCK: tl.constexpr):
    """out <- S[:, columns], a row and a block of columns a program."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    kept = tl.load(columns + at, at < rank, 0)
    tl.store(out + row * rank + at, tl.load(S + row * n + kept, at < rank), at < rank)


@triton.jit
def _log(x):
    """ln x for a positive normal x."""
    bits = x.to(tl.int32, bitcast=True)
    e = (bits - 0x3F3504F3) >> 23
    m = (bits - (e << 23)).to(tl.float32, bitcast=True) - 1.0
    y = tl.fma(m, LOG0, LOG1)
    y = tl.fma(y, m, LOG2)
    y = tl.fma(y, m, LOG3)
    y = tl.fma(y, m, LOG4)
    y = tl.fma(y, m, LOG5)
    y = tl.fma(y, m, LOG6)
    y = tl.fma(y, m, LOG7)
    y = tl.fma(y, m, LOG8)
    z = m * m
    exponent = e.to(tl.float32)
    y = y * m * z + exponent * LN2_LOW - 0.5 * z
    return (m + y) + exponent * LN2_HIGH


@triton.jit
def _normals(x, y):
    """Two standard normals of two words by Box and Muller, from the upper 24 bits of each."""
    uniform = ((x >> 8).to(tl.int32) + 1).to(tl.float32) * ONE_24TH
    radius = tl.sqrt_rn(-2.0 * _log(uniform))
    angle = (y >> 8).to(tl.int32)
    quarter = (angle + 2097152) >> 22
    a = (angle - (quarter << 22)).to(tl.float32) * QUARTER_TURN
    z = a * a
    s = tl.fma(tl.fma(z, SINE0, SINE1), z, SINE2) * z * a + a
    c = tl.fma(tl.fma(z, COSINE0, COSINE1), z, COSINE2) * z * z - 0.5 * z + 1.0
    odd = (quarter & 1) != 0
    cosine, sine = tl.where(odd, s, c), tl.where(odd, c, s)
    cosine = tl.where(((quarter + 1) & 2) != 0, -cosine, cosine)
    sine = tl.where((quarter & 2) != 0, -sine, sine)
    return radius * cosine, radius * sine


@triton.jit
def _signed(word, scale):
    return tl.where((word >> 31) != 0, -scale, scale)


@triton.jit
def _third(word, scale):
    """+scale and -scale with probability 1/6 each, else 0; the bounds are 2^32 / 6 and 5/6 of 2^32."""
    wide = word.to(tl.int64)
    return tl.where(wide < 715827883, scale, tl.where(wide >= 3579139413, -scale, 0.0))


@triton.jit(do_not_specialize=["first_row", "first_quad", "step", "seed"])
def random_block(out, n, first_row, first_quad, step, seed, scale, KIND: tl.constexpr, QUADS: tl.constexpr):
    """A row and 4 ``QUADS`` columns of the random matrix a program."""
    row = tl.program_id(0).to(tl.int64)
    quad = tl.program_id(1) * QUADS + tl.arange(0, QUADS)
    zero = quad.to(tl.uint32) * 0
    counters = (row + first_row).to(tl.uint32) + zero, (quad + first_quad).to(tl.uint32), step.to(tl.uint32) + zero
    x0, x1, x2, x3 = tl.philox(seed, counters[0], counters[1], counters[2], zero)
    if KIND == GAUSSIAN:
        y0, y1 = _normals(x0, x1)
        y2, y3 = _normals(x2, x3)
        y0, y1, y2, y3 = y0 * scale, y1 * scale, y2 * scale, y3 * scale
    elif KIND == RADEMACHER:
        y0, y1, y2, y3 = _signed(x0, scale), _signed(x1, scale), _signed(x2, scale), _signed(x3, scale)
    else:
        y0, y1, y2, y3 = _third(x0, scale), _third(x1, scale), _third(x2, scale), _third(x3, scale)
    # words in turn: (0, 2) and (1, 3) joined once and again
    block = tl.reshape(tl.join(tl.join(y0, y2), tl.join(y1, y3)), (4 * QUADS,))
    column = tl.program_id(1) * 4 * QUADS + tl.arange(0, 4 * QUADS)
    tl.store(out + row * n + column, block, column < n)
