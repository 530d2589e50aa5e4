"""Softmax in Triton: the equations and constants of ``numba_kernels``, and the partial sums of ``softmax.cu``.

``HALF`` says that the elements are 16 bits wide: they are raised to float32 when loaded, and 2^f is the hardware's
(ex2.approx, about 2 units in the last place of float32) instead of the polynomial. A partial sum is three numbers:
sum * 2^exponent, or sum * e^maximum where the exponent is -inf; a sum relative to a maximum of +inf is +inf or NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TWO_PASS, ONLINE, MAXIMUM = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)

INFINITY = tl.constexpr(float("inf"))
LOG2E, LOG2E_LOW = tl.constexpr(float.fromhex("0x1.715476p+0")), tl.constexpr(float.fromhex("0x1.4ae0cp-26"))
MINUS_LN2_HIGH = tl.constexpr(float.fromhex("-0x1.62E43p-1"))
MINUS_LN2_LOW = tl.constexpr(float.fromhex("0x1.05C61p-29"))
C1, C2 = tl.constexpr(float.fromhex("0x1.FFFFF6p-1")), tl.constexpr(float.fromhex("0x1.FFFDC6p-2"))
C3, C4 = tl.constexpr(float.fromhex("0x1.555A80p-3")), tl.constexpr(float.fromhex("0x1.573A1Ap-5"))
C5 = tl.constexpr(float.fromhex("0x1.0F9F9Cp-7"))
LN2_DOUBLE = tl.constexpr(float.fromhex("0x1.62e42fefa39efp-1"))
LOG2E_DOUBLE = tl.constexpr(float.fromhex("0x1.71547652b82fep+0"))
TO_INTEGER = tl.constexpr(float.fromhex("0x1.8p23"))  # adding and subtracting it rounds to an integer
EXPONENT_MAGIC = tl.constexpr(float.fromhex("0x1.8000FEp23"))  # leaves a biased exponent in the low mantissa bits
LOWEST, LOWEST_EXPONENT = tl.constexpr(-131072.0), tl.constexpr(-189097.0)
LARGEST, LARGEST_EXPONENT = tl.constexpr(130000.0), tl.constexpr(188000.0)
MOST_NEGATIVE = tl.constexpr(float.fromhex("-0x1.fffffep127"))
SMALLEST = tl.constexpr(2.0**-126)


@triton.jit
def _at_least(x, floor):
    """max(x, floor) that keeps NaN."""
    return tl.maximum(x, floor, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _reduce(x, HALF: tl.constexpr):
    """(n, t): an integer held as float, and what is left of x, natural or (HALF) binary."""
    n = tl.fma(x, LOG2E, TO_INTEGER) - TO_INTEGER
    if HALF:
        return n, tl.fma(x, LOG2E_LOW, tl.fma(x, LOG2E, -n))
    else:  # noqa: RET505  Triton compiles only one of the branches
        return n, tl.fma(n, MINUS_LN2_LOW, tl.fma(n, MINUS_LN2_HIGH, x))


@triton.jit
def _slope(t):
    """(e^t - 1) / t."""
    s = tl.fma(t, C5, C4)
    s = tl.fma(s, t, C3)
    s = tl.fma(s, t, C2)
    return tl.fma(s, t, C1)


@triton.jit
def _split(x, HALF: tl.constexpr):
    """(p, n) with e^x = p * 2^n."""
    n, t = _reduce(x, HALF)
    return tl.exp2(t) if HALF else tl.fma(_slope(t), t, 1.0), n


@triton.jit
def _weight(n):
    """2^n for an integer n <= 1, 0 from -127 downwards. A NaN is in p as well, so it need not survive here."""
    biased = tl.maximum(n, -127.0) + EXPONENT_MAGIC
    return (biased.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exp(x, HALF: tl.constexpr):
    """e^x for x <= 0, 0 where it would be denormal; NaN stays NaN."""
    p, n = _split(_at_least(x, -88.0), HALF)
    return p * _weight(n)


@triton.jit
def _is_nan(x):
    return x != x  # noqa: PLR0124


@triton.jit
def _flushed(y):
    return tl.where(tl.abs(y) < SMALLEST, 0.0, y)


@triton.jit
def _add(total, rest, term):
    """total + rest + term with the error of the addition kept in ``rest`` (Knuth's two-sum)."""
    after = total + term
    part = after - total
    return after, rest + ((total - (after - part)) + (term - part))


@triton.jit
def _load4(x, at, end, LANES: tl.constexpr):
    """Four neighbouring groups of ``LANES`` elements as float32; -inf past ``end``."""
    i = at + tl.arange(0, LANES)
    x_0 = tl.load(x + i, mask=i < end, other=-INFINITY).to(tl.float32)
    x_1 = tl.load(x + i + LANES, mask=i + LANES < end, other=-INFINITY).to(tl.float32)
    x_2 = tl.load(x + i + 2 * LANES, mask=i + 2 * LANES < end, other=-INFINITY).to(tl.float32)
    x_3 = tl.load(x + i + 3 * LANES, mask=i + 3 * LANES < end, other=-INFINITY).to(tl.float32)
    return x_0, x_1, x_2, x_3


@triton.jit
def _extended_sum(x, begin, steps, end, LANES: tl.constexpr, HALF: tl.constexpr):
    """(m, e) with m * 2^e the sum of e^x: e' = max(e, n), m' = m * 2^(e - e') + sum(p * 2^(n - e')) in each lane."""
    total = tl.zeros([LANES], tl.float32)
    rest = tl.zeros([LANES], tl.float32)
    e = tl.full([LANES], LOWEST_EXPONENT, tl.float32)
    for step in range(steps):
        x_0, x_1, x_2, x_3 = _load4(x, begin + step * 4 * LANES, end, LANES)
        p_0, n_0 = _split(_at_least(x_0, LOWEST), HALF)
        p_1, n_1 = _split(_at_least(x_1, LOWEST), HALF)
        p_2, n_2 = _split(_at_least(x_2, LOWEST), HALF)
        p_3, n_3 = _split(_at_least(x_3, LOWEST), HALF)
        raised = tl.maximum(tl.maximum(tl.maximum(n_0, n_1), tl.maximum(n_2, n_3)), e)
        term = tl.fma(p_0, _weight(n_0 - raised), p_1 * _weight(n_1 - raised))
        term += tl.fma(p_2, _weight(n_2 - raised), p_3 * _weight(n_3 - raised))
        factor = _weight(e - raised)
        total, rest = _add(total * factor, rest * factor, term)
        e = raised
    largest = tl.max(e, axis=0)
    return tl.sum((total.to(tl.float64) + rest) * _weight(e - largest), axis=0), largest


@triton.jit
def _online_sum(x, begin, steps, end, LANES: tl.constexpr, HALF: tl.constexpr):
    """(s, m) with s * e^m the sum of e^x: m' = max(m, x), s' = s * e^(m - m') + sum(e^(x - m')) in each lane."""
    total = tl.zeros([LANES], tl.float32)
    rest = tl.zeros([LANES], tl.float32)
    m = tl.full([LANES], MOST_NEGATIVE, tl.float32)
    for step in range(steps):
        x_0, x_1, x_2, x_3 = _load4(x, begin + step * 4 * LANES, end, LANES)
        raised = tl.maximum(tl.maximum(tl.maximum(x_0, x_1), tl.maximum(x_2, x_3)), m)
        term = _exp(x_0 - raised, HALF) + _exp(x_1 - raised, HALF)
        term += _exp(x_2 - raised, HALF) + _exp(x_3 - raised, HALF)
        factor = _exp(m - raised, HALF)
        total, rest = _add(total * factor, rest * factor, term)
        m = raised
    largest = tl.max(m, axis=0)
    return tl.sum((total.to(tl.float64) + rest) * _exp(m - largest, HALF), axis=0), largest


@triton.jit
def _maximum(x, begin, steps, end, LANES: tl.constexpr):
    m = tl.full([LANES], MOST_NEGATIVE, tl.float32)
    for step in range(steps):
        x_0, x_1, x_2, x_3 = _load4(x, begin + step * 4 * LANES, end, LANES)
        m = tl.maximum(tl.maximum(tl.maximum(x_0, x_1), tl.maximum(x_2, x_3)), m)
    return tl.max(m, axis=0)


@triton.jit
def _with_infinity(total, maximum, x, begin, steps, end, LANES: tl.constexpr):
    """A sum relative to +inf says whether there was NaN."""
    if maximum == INFINITY:
        nan = tl.zeros([LANES], tl.int32)
        for step in range(4 * steps):
            i = begin + step * LANES + tl.arange(0, LANES)
            values = tl.load(x + i, mask=i < end, other=0.0).to(tl.float32)
            nan = nan | _is_nan(values).to(tl.int32)
        total = tl.where(tl.max(nan, axis=0) > 0, float("nan"), INFINITY).to(tl.float64)
    return total


@triton.jit
def _partial(x, begin, steps, end, ALGORITHM: tl.constexpr, LANES: tl.constexpr, HALF: tl.constexpr):
    """(sum, exponent, maximum): the paper's pass 1, where its range suffices, or the online one."""
    total, exponent, maximum = tl.to_tensor(0.0).to(tl.float64), tl.to_tensor(-INFINITY), tl.to_tensor(0.0)
    shifted = tl.to_tensor(1) == 1
    if ALGORITHM == TWO_PASS:
        total, exponent = _extended_sum(x, begin, steps, end, LANES, HALF)
        shifted = tl.abs(exponent) >= LARGEST_EXPONENT
    if ALGORITHM == MAXIMUM:
        maximum = _maximum(x, begin, steps, end, LANES)
    elif shifted:
        total, maximum = _online_sum(x, begin, steps, end, LANES, HALF)
        total = _with_infinity(total, maximum, x, begin, steps, end, LANES)
        exponent = tl.full([], -INFINITY, tl.float32)
    return total, exponent, maximum


@triton.jit
def _merged(sums, exponents, maxima, first, chunks, COMMON: tl.constexpr, CHUNKS: tl.constexpr):
    """The partial sum of a row from those of its chunks; COMMON: they are all relative to the row's maximum."""
    c = tl.arange(0, CHUNKS)
    exponent = tl.load(exponents + first + c, mask=c < chunks, other=-INFINITY)
    maximum = tl.load(maxima + first + c, mask=c < chunks, other=MOST_NEGATIVE)
    total = tl.load(sums + first + c, mask=c < chunks, other=0.0)
    shifted = exponent == -INFINITY
    if COMMON:
        maximum = tl.where(c < chunks, tl.max(maximum, axis=0), maximum)
    scale = tl.where(shifted, maximum.to(tl.float64) * LOG2E_DOUBLE, exponent.to(tl.float64))
    top = tl.max(scale, axis=0)
    difference = tl.where(scale == top, 0.0, tl.maximum(scale - top, -127.0))
    n = tl.fma(difference.to(tl.float32), 1.0, TO_INTEGER) - TO_INTEGER
    t = ((difference - n) * LN2_DOUBLE).to(tl.float32)
    merged = tl.sum(total * (tl.fma(_slope(t), t, 1.0) * _weight(n)), axis=0)
    largest = tl.max(tl.where(shifted, maximum, MOST_NEGATIVE), axis=0)
    # The row is shifted where its largest chunk is.
    is_shifted = largest.to(tl.float64) * LOG2E_DOUBLE == top
    return merged, tl.where(is_shifted, -INFINITY, tl.max(exponent, axis=0)), tl.where(is_shifted, largest, 0.0)


@triton.jit
def _logarithm(total, exponent):
    """ln(sum) in float64, relative to the maximum where there is one."""
    return tl.log(total) + tl.where(exponent == -INFINITY, 0.0, exponent.to(tl.float64) * LN2_DOUBLE)


@triton.jit
def _finish(
    x, out, begin, steps, end, total, exponent, maximum,
    MODE: tl.constexpr, LANES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Softmax e^(x - shift) * (r + r_low) * 2^-k, or log-softmax x - shift - high - low; backwards, for L2's sake."""
    shifted = exponent == -INFINITY
    shift, k = tl.where(shifted, maximum, 0.0), tl.where(shifted, 0.0, exponent)
    whole = 1.0 / total if MODE == SOFTMAX else _logarithm(total, exponent)
    whole = tl.where(maximum == INFINITY, float("nan"), whole)
    high = whole.to(tl.float32)
    low = (whole - high).to(tl.float32)
    for step in range(4 * steps):
        i = begin + (4 * steps - 1 - step) * LANES + tl.arange(0, LANES)
        values = tl.load(x + i, mask=i < end, other=0.0, eviction_policy="evict_first").to(tl.float32)
        if MODE == SOFTMAX:
            n, t = _reduce(_at_least(values - shift, LOWEST), HALF)
            # With p = 1 + t * slope, p * r is built with one rounding that counts instead of three.
            scaled = tl.exp2(t) * high if HALF else high + tl.fma(_slope(t), high * t, low)
            y = _flushed(scaled * _weight(n - k))
        else:
            y = ((values - shift) - high) - low
        tl.store(out + i, y.to(out.dtype.element_ty), mask=i < end, cache_modifier=".cs")


@triton.jit
def rows_kernel(
    x, out, rows, n, MODE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, HALF: tl.constexpr
):  # fmt: skip
    """``ROWS`` rows of n <= BLOCK elements in registers: one read, whatever the algorithm."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    # Offsets from the first row fit into 32 bits: half the registers.
    row, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    place = row[:, None] * n + column[None, :]
    inside = (row < rows - first)[:, None] & (column < n)[None, :]
    x += first * n
    values = tl.load(x + place, mask=inside, other=-INFINITY).to(tl.float32)
    maximum = tl.max(values, axis=1)
    # Beyond the range of the split, relative to the maximum; -inf - -inf and inf - inf rightly make the row NaN.
    shift = tl.where(tl.abs(maximum) < LARGEST, 0.0, maximum)
    exponent, left = _reduce(maximum - shift, False)
    p, n_x = _split(_at_least(values - shift[:, None], LOWEST), HALF)
    terms = p * _weight(n_x - exponent[:, None])
    total = tl.sum(terms, axis=1)
    if MODE == SOFTMAX:
        y = _flushed(terms * tl.div_rn(1.0, total)[:, None])
        tl.store(out + first * n + place, y.to(out.dtype.element_ty), mask=inside)
    else:
        logarithm = (tl.log(total.to(tl.float64)) - left).to(tl.float32)  # relative to the maximum
        if MODE == LOG_SOFTMAX:
            y = (values - maximum[:, None]) - logarithm[:, None]
            tl.store(out + first * n + place, y.to(out.dtype.element_ty), mask=inside)
        else:
            nan = tl.max((_is_nan(values) & inside).to(tl.int32), axis=1) > 0
            infinite = tl.abs(maximum) == INFINITY
            found = tl.where(nan, float("nan"), tl.where(infinite, maximum, maximum + logarithm))
            tl.store(out + first + row, found.to(out.dtype.element_ty), mask=row < rows - first)


@triton.jit
def rows_twice_kernel(
    x, out, n, steps,
    ALGORITHM: tl.constexpr, MODE: tl.constexpr, LANES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """One long row a program, read twice, the second time mostly from L2."""
    row = tl.program_id(0).to(tl.int64)
    total, exponent, maximum = _partial(x + row * n, 0, steps, n, ALGORITHM, LANES, HALF)
    if MODE == LOG_SUM_EXP:
        found = _logarithm(total, exponent) + maximum
        tl.store(out + row, found.to(tl.float32).to(out.dtype.element_ty))
    else:
        _finish(x + row * n, out + row * n, 0, steps, n, total, exponent, maximum, MODE, LANES, HALF)


@triton.jit
def partials_kernel(
    x, sums, exponents, maxima, n, chunks, steps,
    ALGORITHM: tl.constexpr, LANES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Pass 1: program b sums chunk b % chunks (``steps`` times 4 * LANES elements) of row b // chunks."""
    block = tl.program_id(0)
    row = (block // chunks).to(tl.int64)
    begin = (block % chunks) * steps * 4 * LANES
    total, exponent, maximum = _partial(x + row * n, begin, steps, n, ALGORITHM, LANES, HALF)
    tl.store(sums + block, total)
    tl.store(exponents + block, exponent)
    tl.store(maxima + block, maximum)


@triton.jit
def terms_kernel(
    x, out, sums, exponents, maxima, n, chunks, steps,
    STORE: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """Pass 2 of three: the sums of e^(x - maximum), which are kept in ``out`` where STORE says so."""
    block = tl.program_id(0)
    row = (block // chunks).to(tl.int64)
    begin = (block % chunks) * steps * 4 * LANES
    c = tl.arange(0, CHUNKS)
    first = (block // chunks) * chunks
    maximum = tl.max(tl.load(maxima + first + c, mask=c < chunks, other=MOST_NEGATIVE), axis=0)
    total = tl.zeros([LANES], tl.float32)
    rest = tl.zeros([LANES], tl.float32)
    for step in range(4 * steps):
        i = begin + step * LANES + tl.arange(0, LANES)
        values = tl.load(x + row * n + i, mask=i < n, other=-INFINITY).to(tl.float32)
        term = _exp(values - maximum, HALF)
        total, rest = _add(total, rest, tl.where(i < n, term, 0.0))
        if STORE:
            tl.store(out + row * n + i, term.to(out.dtype.element_ty), mask=i < n)
    found = tl.sum(total.to(tl.float64) + rest, axis=0)
    if not STORE:
        found = _with_infinity(found, maximum, x + row * n, begin, steps, n, LANES)
    tl.store(sums + block, found)


@triton.jit
def finish_kernel(
    x, out, sums, exponents, maxima, n, chunks, steps,
    MODE: tl.constexpr, COMMON: tl.constexpr, CHUNKS: tl.constexpr, LANES: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    """The last pass but for reload; the last chunk first, since L2 holds what was read last."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (block // chunks).to(tl.int64)
    begin = (block % chunks) * steps * 4 * LANES
    total, exponent, maximum = _merged(sums, exponents, maxima, (block // chunks) * chunks, chunks, COMMON, CHUNKS)
    end = tl.minimum(n, begin + steps * 4 * LANES)
    _finish(x + row * n, out + row * n, begin, steps, end, total, exponent, maximum, MODE, LANES, HALF)


@triton.jit
def scale_kernel(out, sums, n, chunks, steps, CHUNKS: tl.constexpr, LANES: tl.constexpr):
    """Pass 3 of three, reload: out /= sum in place."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    row = (block // chunks).to(tl.int64)
    begin = (block % chunks) * steps * 4 * LANES
    c = tl.arange(0, CHUNKS)
    total = tl.sum(tl.load(sums + (block // chunks) * chunks + c, mask=c < chunks, other=0.0), axis=0)
    r = (1.0 / total).to(tl.float32)
    for step in range(4 * steps):
        i = begin + (4 * steps - 1 - step) * LANES + tl.arange(0, LANES)
        term = tl.load(out + row * n + i, mask=i < n, other=0.0, eviction_policy="evict_first").to(tl.float32)
        tl.store(out + row * n + i, _flushed(term * r).to(out.dtype.element_ty), mask=i < n, cache_modifier=".cs")


@triton.jit
def log_sum_exp_kernel(out, sums, exponents, maxima, chunks, COMMON: tl.constexpr, CHUNKS: tl.constexpr):
    """ln(sum) of each row from the partial sums of its chunks."""
    row = tl.program_id(0)
    total, exponent, maximum = _merged(sums, exponents, maxima, row * chunks, chunks, COMMON, CHUNKS)
    found = _logarithm(total, exponent) + maximum
    tl.store(out + row, found.to(tl.float32).to(out.dtype.element_ty))
