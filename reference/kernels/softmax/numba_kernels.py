"""Softmax on CPUs, compiled by Numba: two-pass, both three-pass forms and online softmax over one polynomial exp.

e^x is split as p * 2^n (Dukhan & Ablavatski 2020, section 4). All kernels keep ``LANES`` independent accumulators in
small stack arrays, so that LLVM vectorises the loop over the lanes; the lanes are added up in float64 every few
thousand elements, so that the sum's error does not grow with the length. Everything is in this one file because
Numba's disk cache is keyed by the file of the outermost function: a helper elsewhere could change unnoticed.

Without FMA hardware ``llvm.fma`` becomes a library call: slow, and still right.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, float32, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

F32 = np.float32
LANES = 64
VECTOR = 16
AHEAD = 4096  # elements between what is read and what is asked for; past the end it does no harm
GROUP = 4 * LANES  # the extended-exponent accumulators are rescaled once for four elements
LEAF = 8 * GROUP  # elements between two additions into the float64 lanes

LOG2E = F32(float.fromhex("0x1.715476p+0"))
MINUS_LN2_HIGH = F32(float.fromhex("-0x1.62E43p-1"))
MINUS_LN2_LOW = F32(float.fromhex("0x1.05C61p-29"))
LN2 = F32(float.fromhex("0x1.62E43p-1"))
C0, C1 = F32(1.0), F32(float.fromhex("0x1.FFFFF6p-1"))
C2, C3 = F32(float.fromhex("0x1.FFFDC6p-2")), F32(float.fromhex("0x1.555A80p-3"))
C4, C5 = F32(float.fromhex("0x1.573A1Ap-5")), F32(float.fromhex("0x1.0F9F9Cp-7"))

# 1.5 * 2^23 + 127: adding it leaves an integer's biased exponent in the low mantissa bits.
EXPONENT_MAGIC = F32(float.fromhex("0x1.8000FEp23"))
ZERO_EXPONENT = F32(-127.0)  # 2^-127 is where the bit pattern gives exactly 0
# The split is accurate for |x| <= 2^17. Masked and more negative inputs are raised to -2^17, where they weigh nothing
# unless the whole row is there; such rows, and rows above 2^17, go through the three-pass form.
LOWEST = F32(-(2.0**17))
LARGEST_EXPONENT = F32(188_000.0)
FLUSHED = F32(-88.0)  # e^-88 has exponent -127 in the split, which becomes 0
MOST_NEGATIVE = F32(-np.finfo(np.float32).max)

TWO_PASS, THREE_PASS_RECOMPUTE, THREE_PASS_RELOAD, ONLINE = range(4)
(
    ACCUMULATE, FIND_MAX, SUM_EXP, SUM_STORE_EXP, ONLINE_SUM, STORE, STORE_SHIFTED, SCALE,
    STREAM_READ, STREAM_COPY, STREAM_SCALE,
) = range(11)

# Reassociation would undo the Cody-Waite reduction; contraction to FMA is what it needs.
_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True, "cache": True}
_inline = njit(inline="always", **_OPTIONS)
_kernel = njit(**_OPTIONS)


@intrinsic
def _fma(_context, _a, _b, _c):
    return float32(float32, float32, float32), lambda _, builder, __, arguments: builder.fma(*arguments)


@intrinsic
def _rint(_context, _a):
    def generate(_, builder, __, arguments):
        return builder.call(builder.module.declare_intrinsic("llvm.rint", [ir.FloatType()]), arguments)

    return float32(float32), generate


@intrinsic
def _shift_to_exponent(_context, _a):
    def generate(_, builder, __, arguments):
        word = ir.IntType(32)
        bits = builder.shl(builder.bitcast(arguments[0], word), ir.Constant(word, 23))
        return builder.bitcast(bits, ir.FloatType())

    return float32(float32), generate


def _stack_lanes(element):
    """An intrinsic that reserves ``LANES`` elements in the caller's frame; nothing is left to free."""

    @intrinsic
    def reserve(_context):
        def generate(context, builder, _, __):
            pointer = cgutils.alloca_once(builder, context.get_data_type(element), size=LANES)
            pointer.align = 64
            return pointer

        return types.CPointer(element)(), generate

    return reserve


_reserve_f32, _reserve_f64 = _stack_lanes(types.float32), _stack_lanes(types.float64)


@intrinsic
def _prefetch_line(_context, array, _index):
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        prefetch_type = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, prefetch_type, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(prefetch, [place, *(ir.Constant(word, value) for value in (0, 3, 1))])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@_inline
def _lanes_f32():
    return carray(_reserve_f32(), (LANES,))


@_inline
def _lanes_f64():
    return carray(_reserve_f64(), (LANES,))


@_inline
def _prefetch(x, at):
    """Ask for ``LANES`` elements well ahead: a computing pass leaves the core too few loads in flight by itself."""
    for line in range(LANES // VECTOR):
        _prefetch_line(x, at + AHEAD + line * VECTOR)


@_inline
def _reduce(x):
    """(n, t) with x = n*ln2 + t, n an integer held as float and |t| <= ln2/2 (Cody & Waite, two constants)."""
    n = _rint(x * LOG2E)
    return n, _fma(n, MINUS_LN2_LOW, _fma(n, MINUS_LN2_HIGH, x))


@_inline
def _slope(t):
    """(e^t - 1) / t by Horner's rule."""
    return _fma(_fma(_fma(_fma(t, C5, C4), t, C3), t, C2), t, C1)


@_inline
def _split(x):
    """(p, n) with e^x = p * 2^n, p in [0.70, 1.42]."""
    n, t = _reduce(x)
    return _fma(_slope(t), t, C0), n


@_inline
def _at_least(x, floor):
    """max(x, floor) that keeps NaN."""
    return floor if x < floor else x


@_inline
def _larger(a, b):
    return a if a > b else b


@_inline
def _power(n):
    """2^n for an integer n in [-127, 127] held as float; 2^-127 becomes 0."""
    return _shift_to_exponent(n + EXPONENT_MAGIC)


@_inline
def _weight(n):
    """2^n for n <= 0, 0 from -127 downwards."""
    return _power(_at_least(n, ZERO_EXPONENT))


@_inline
def _exp(x):
    """e^x for x <= 0, 0 where it would be denormal; NaN stays NaN."""
    p, n = _split(_at_least(x, FLUSHED))
    return p * _power(n)


@_inline
def _load(x, start, padding, block):
    """Copy up to ``LANES`` elements from ``start`` into ``block``, padded."""
    for j in range(LANES):
        block[j] = x[start + j] if start + j < x.size else padding
    return block


@_inline
def merge(m_a, e_a, m_b, e_b):
    """(m, e) with m * 2^e = m_a * 2^e_a + m_b * 2^e_b; the larger exponent is kept, so nothing overflows."""
    e = e_a if e_a > e_b else e_b
    return m_a * _weight(e_a - e) + m_b * _weight(e_b - e), e


@_inline
def _merge_lanes(M, E):
    for half in (32, 16, 8, 4, 2, 1):
        for j in range(half):
            M[j], E[j] = merge(M[j], E[j], M[j + half], E[j + half])
    return M[0], E[0]


@_inline
def _sum_lanes(T):
    for half in (32, 16, 8, 4, 2, 1):
        for j in range(half):
            T[j] += T[j + half]
    return T[0]


@_inline
def _fold_extended(M, E, T, X):
    """Move the float32 sums M * 2^E into the float64 totals T * 2^X; E only grows, so it becomes the exponent."""
    for j in range(LANES):
        T[j] = T[j] * _weight(X[j] - E[j]) + M[j]
        X[j] = E[j]
        M[j] = F32(0.0)


@_inline
def _accumulate_leaf(x, M, E, block):
    """One step per lane and group: e' = max(e, n), m' = m * 2^(e - e') + sum(p * 2^(n - e'))."""
    for g in range(x.size // GROUP):
        for v in range(LANES // VECTOR):
            # Four neighbouring vectors go to one vector of lanes, so that memory is read strictly forwards.
            at, lane = g * GROUP + v * 4 * VECTOR, v * VECTOR
            _prefetch(x, at)
            for j in range(VECTOR):
                p_0, n_0 = _split(_at_least(x[at + j], LOWEST))
                p_1, n_1 = _split(_at_least(x[at + VECTOR + j], LOWEST))
                p_2, n_2 = _split(_at_least(x[at + 2 * VECTOR + j], LOWEST))
                p_3, n_3 = _split(_at_least(x[at + 3 * VECTOR + j], LOWEST))
                before = E[lane + j]
                e = _larger(_larger(_larger(n_0, n_1), _larger(n_2, n_3)), before)
                m = _fma(p_0, _weight(n_0 - e), M[lane + j] * _weight(before - e))
                m = _fma(p_1, _weight(n_1 - e), m)
                M[lane + j] = m + _fma(p_2, _weight(n_2 - e), p_3 * _weight(n_3 - e))
                E[lane + j] = e
    whole = x.size // GROUP * GROUP
    for b in range((x.size - whole + LANES - 1) // LANES):
        _load(x, whole + b * LANES, LOWEST, block)
        for j in range(LANES):
            p, n = _split(_at_least(block[j], LOWEST))
            e = _larger(n, E[j])
            M[j] = _fma(p, _weight(n - e), M[j] * _weight(E[j] - e))
            E[j] = e


@_kernel
def accumulate(x):
    """Pass 1 of two: (m, e) with m * 2^e = sum(e^x), the extended exponents never collapsed."""
    M, E, X = _lanes_f32(), _lanes_f32(), _lanes_f32()
    T, block = _lanes_f64(), _lanes_f32()
    lowest = _rint(LOWEST * LOG2E)
    for j in range(LANES):
        M[j], E[j], X[j], T[j] = F32(0.0), lowest, lowest, 0.0
    for leaf in range((x.size + LEAF - 1) // LEAF):
        _accumulate_leaf(x[leaf * LEAF : (leaf + 1) * LEAF], M, E, block)
        _fold_extended(M, E, T, X)
    return _merge_lanes(T, X)


@_kernel
def find_max(x):
    """The largest element; NaN is passed over (the sum will find it), -inf when there is nothing else."""
    M, block = _lanes_f32(), _lanes_f32()
    for j in range(LANES):
        M[j] = -F32(np.inf)
    whole = x.size // LANES
    for b in range(whole):
        at = b * LANES
        _prefetch(x, at)
        for j in range(LANES):
            M[j] = _larger(x[at + j], M[j])
    _load(x, whole * LANES, -F32(np.inf), block)
    for j in range(LANES):
        M[j] = _larger(block[j], M[j])
    for half in (32, 16, 8, 4, 2, 1):
        for j in range(half):
            M[j] = _larger(M[j + half], M[j])
    return M[0]


@_inline
def _sum_exp_leaf(x, y, maximum, store, S, block):
    whole = x.size // LANES
    for b in range(whole):
        at = b * LANES
        _prefetch(x, at)
        for j in range(LANES):
            term = _exp(x[at + j] - maximum)
            S[j] += term
            if store:
                y[at + j] = term
    if whole * LANES < x.size:
        _load(x, whole * LANES, MOST_NEGATIVE, block)
        for j in range(LANES):
            block[j] = _exp(block[j] - maximum)
        for j in range(x.size - whole * LANES):
            S[j] += block[j]
            if store:
                y[whole * LANES + j] = block[j]


@_inline
def _sum_exp(x, y, maximum, store):
    """sum(e^(x - maximum)), storing the terms in ``y`` on the way where ``store`` says so."""
    S, block, T = _lanes_f32(), _lanes_f32(), _lanes_f64()
    for j in range(LANES):
        T[j] = 0.0
    for leaf in range((x.size + LEAF - 1) // LEAF):
        for j in range(LANES):
            S[j] = F32(0.0)
        cut = slice(leaf * LEAF, (leaf + 1) * LEAF)
        _sum_exp_leaf(x[cut], y[cut], maximum, store, S, block)
        for j in range(LANES):
            T[j] += S[j]
    return _sum_lanes(T)


@_kernel
def sum_exp(x, maximum):
    """Pass 2 of three, recompute: sum(e^(x - maximum)), nothing stored."""
    return _sum_exp(x, x, maximum, False)


@_kernel
def sum_store_exp(x, y, maximum):
    """Pass 2 of three, reload: y = e^(x - maximum), and its sum."""
    return _sum_exp(x, y, maximum, True)


@_inline
def _online_leaf(x, S, M, block):
    """One step per lane and group: m' = max(m, x), s' = s * e^(m - m') + sum(e^(x - m'))."""
    for g in range(x.size // GROUP):
        for v in range(LANES // VECTOR):
            at, lane = g * GROUP + v * 4 * VECTOR, v * VECTOR
            _prefetch(x, at)
            for j in range(VECTOR):
                x_0, x_1 = x[at + j], x[at + VECTOR + j]
                x_2, x_3 = x[at + 2 * VECTOR + j], x[at + 3 * VECTOR + j]
                before = M[lane + j]
                m = _larger(_larger(_larger(x_0, x_1), _larger(x_2, x_3)), before)
                s = S[lane + j] * _exp(before - m) + (_exp(x_0 - m) + _exp(x_1 - m))
                S[lane + j] = s + (_exp(x_2 - m) + _exp(x_3 - m))
                M[lane + j] = m
    whole = x.size // GROUP * GROUP
    for b in range((x.size - whole + LANES - 1) // LANES):
        _load(x, whole + b * LANES, -F32(np.inf), block)
        for j in range(LANES):
            m = _larger(block[j], M[j])
            S[j] = S[j] * _exp(M[j] - m) + _exp(block[j] - m)
            M[j] = m


@_kernel
def online_sum(x):
    """(s, m) with m the largest element and s = sum(e^(x - m)) in one sweep (Milakov & Gimelshein 2018).

    As in :func:`accumulate`, the running maximum is raised once for four elements of a lane, not for each.
    """
    S, M, X, block, T = _lanes_f32(), _lanes_f32(), _lanes_f32(), _lanes_f32(), _lanes_f64()
    for j in range(LANES):
        S[j], M[j], X[j], T[j] = F32(0.0), MOST_NEGATIVE, MOST_NEGATIVE, 0.0
    for leaf in range((x.size + LEAF - 1) // LEAF):
        _online_leaf(x[leaf * LEAF : (leaf + 1) * LEAF], S, M, block)
        for j in range(LANES):
            T[j] = T[j] * _exp(X[j] - M[j]) + S[j]
            X[j] = M[j]
            S[j] = F32(0.0)
    for half in (32, 16, 8, 4, 2, 1):
        for j in range(half):
            T[j], M[j] = merge_online(T[j], M[j], T[j + half], M[j + half])
    return T[0], M[0]


@_inline
def merge_online(s_a, m_a, s_b, m_b):
    """(s, m) of two parts whose sums are relative to their own maxima."""
    m = _larger(m_a, m_b)
    return s_a * _exp(m_a - m) + s_b * _exp(m_b - m), m


@_kernel
def normaliser(m, e):
    """(r, r_low, k) with 1 / (m * 2^e) = (r + r_low) * 2^-k and r in (1/2, 1], so that p * r is never denormal."""
    mantissa, exponent = math.frexp(m)
    inverse = 0.5 / mantissa
    r = F32(inverse)
    return r, F32(inverse - r), F32(e + exponent - 1)


@_inline
def _store(x, y, shift, r, r_low, k):
    """y = e^(x - shift) * (r + r_low) * 2^-k, flushed to 0 when the exponent reaches -127.

    With p = 1 + t*q, p*r is built as r + (r_low + q*(r*t)): one rounding that counts instead of three.
    """
    floor = (k + ZERO_EXPONENT) * LN2
    for i in range(x.size):
        n, t = _reduce(_at_least(x[i] - shift, floor))
        y[i] = (r + _fma(_slope(t), r * t, r_low)) * _power(n - k)


@_kernel
def store(x, y, r, r_low, k):
    """Pass 2 of two: y = p * r * 2^(n - k) with (p, n) computed anew."""
    _store(x, y, F32(0.0), r, r_low, k)


@_kernel
def store_shifted(x, y, maximum, r, r_low, k):
    """The storing pass of the three-pass recompute and the online form."""
    _store(x, y, maximum, r, r_low, k)


@_kernel
def scale(y, total):
    """Pass 3 of three, reload: y /= total in place; what would become denormal is flushed before the product."""
    r, smallest = F32(1.0 / total), F32(total * 2.0**-126)
    for i in range(y.size):
        y[i] = (F32(0.0) if y[i] < smallest else y[i]) * r


@_kernel
def stream_read(x):
    """The yardstick of reading passes: sum(x) in as many lanes."""
    S, T = _lanes_f32(), 0.0
    for j in range(LANES):
        S[j] = F32(0.0)
    for b in range(x.size // LANES):
        at = b * LANES
        _prefetch(x, at)
        for j in range(LANES):
            S[j] += x[at + j]
    for i in range(x.size // LANES * LANES, x.size):
        T += x[i]
    for j in range(LANES):
        T += S[j]
    return T


@_kernel
def stream_copy(x, y, factor):
    """The yardstick of passes that read one array and write another (STREAM's Scale: no memcpy can stand in)."""
    for i in range(x.size):
        y[i] = x[i] * factor


@_kernel
def stream_scale(y, factor):
    """The yardstick of the in-place pass."""
    for i in range(y.size):
        y[i] *= factor


@_inline
def _part(which, x, y, shift, r, r_low, k, total, S, E, c):
    """Chunk ``c`` of a pass; its result, if any, goes to S[c] and E[c]."""
    begin, end = x.size * c // S.size, x.size * (c + 1) // S.size
    x_c, y_c = x[begin:end], y[begin:end]
    if which == ACCUMULATE:
        S[c], E[c] = accumulate(x_c)
    elif which == FIND_MAX:
        E[c] = find_max(x_c)
    elif which == SUM_EXP:
        S[c] = sum_exp(x_c, shift)
    elif which == SUM_STORE_EXP:
        S[c] = sum_store_exp(x_c, y_c, shift)
    elif which == ONLINE_SUM:
        S[c], E[c] = online_sum(x_c)
    elif which == STORE:
        store(x_c, y_c, r, r_low, k)
    elif which == STORE_SHIFTED:
        store_shifted(x_c, y_c, shift, r, r_low, k)
    elif which == SCALE:
        scale(y_c, total)
    elif which == STREAM_READ:
        S[c] = stream_read(x_c)
    elif which == STREAM_COPY:
        stream_copy(x_c, y_c, r)
    elif which == STREAM_SCALE:
        stream_scale(y_c, r)


@njit(parallel=True, **_OPTIONS)
def _parallel_pass(which, x, y, shift, r, r_low, k, total, S, E):
    for c in prange(S.size):
        _part(which, x, y, shift, r, r_low, k, total, S, E, c)


@_kernel
def run_pass(which, x, y, shift, r, r_low, k, total, S, E):
    """One pass over a row in ``S.size`` chunks, one per thread; what a pass does not need is not looked at."""
    if S.size == 1:
        _part(which, x, y, shift, r, r_low, k, total, S, E, 0)
    else:
        _parallel_pass(which, x, y, shift, r, r_low, k, total, S, E)


@_kernel
def softmax_row(algorithm, x, y, S, E):
    """softmax of one row in ``S.size`` chunks; ``S`` and ``E`` hold the chunks' partial results.

    Each pass says what the next one is; a single call of ``run_pass`` keeps the compiler from copying it for each.
    """
    shift, r, r_low, k, total = F32(0.0), F32(0.0), F32(0.0), F32(0.0), 0.0
    which = ACCUMULATE if algorithm == TWO_PASS else ONLINE_SUM if algorithm == ONLINE else FIND_MAX
    while True:
        run_pass(which, x, y, shift, r, r_low, k, total, S, E)
        if which == ACCUMULATE:
            m, e = S[0], E[0]
            for c in range(1, S.size):
                m, e = merge(m, e, S[c], E[c])
            r, r_low, k = normaliser(m, e)
            which = STORE if -LARGEST_EXPONENT < e < LARGEST_EXPONENT else FIND_MAX
        elif which == ONLINE_SUM:
            total, shift = S[0], E[0]
            for c in range(1, S.size):
                total, shift = merge_online(total, shift, S[c], E[c])
            r, r_low, k = normaliser(total, F32(0.0))
            which = STORE_SHIFTED
        elif which == FIND_MAX:
            shift = E.max()
            which = SUM_STORE_EXP if algorithm == THREE_PASS_RELOAD else SUM_EXP
        elif which == SUM_EXP:
            r, r_low, k = normaliser(S.sum(), F32(0.0))
            which = STORE_SHIFTED
        elif which == SUM_STORE_EXP:
            total = S.sum()
            which = SCALE
        else:
            return


@_kernel
def softmax_rows(algorithm, x, y):
    """Row by row, one thread."""
    S, E = np.empty(1), np.empty(1, np.float32)
    for row in range(x.shape[0]):
        softmax_row(algorithm, x[row], y[row], S, E)


@njit(parallel=True, **_OPTIONS)
def parallel_rows(algorithm, x, y, threads):
    """Row by row, the rows shared among ``threads``."""
    for c in prange(threads):
        begin, end = x.shape[0] * c // threads, x.shape[0] * (c + 1) // threads
        softmax_rows(algorithm, x[begin:end], y[begin:end])
