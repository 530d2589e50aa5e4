"""The passes of the softmax algorithms over x[begin:end], compiled by Numba over one polynomial exp.

e^x is split as p * 2^n (Dukhan & Ablavatski 2020, section 4). Sums are kept in one vector of lanes and added up in
float64 every few thousand elements, so that the error does not grow with the length. ``x`` and ``y`` are pointers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from reference.kernels.softmax.numba_vectors import (
    LANES,
    STEP,
    any_nan,
    at_least,
    binary_exponent,
    every,
    first_lane,
    flushed_below,
    fma,
    larger,
    largest_lane,
    load,
    load_first,
    narrow,
    prefetch,
    put,
    put_first,
    rint,
    shift_to_exponent,
    sum_of_lanes,
    wide,
)

F32 = np.float32
LEAF = 8 * STEP  # elements between two additions into the float64 lanes

LOG2E = F32(float.fromhex("0x1.715476p+0"))
MINUS_LN2_HIGH = F32(float.fromhex("-0x1.62E43p-1"))
MINUS_LN2_LOW = F32(float.fromhex("0x1.05C61p-29"))
LN2 = F32(float.fromhex("0x1.62E43p-1"))
C0, C1 = F32(1.0), F32(float.fromhex("0x1.FFFFF6p-1"))
C2, C3 = F32(float.fromhex("0x1.FFFDC6p-2")), F32(float.fromhex("0x1.555A80p-3"))
C4, C5 = F32(float.fromhex("0x1.573A1Ap-5")), F32(float.fromhex("0x1.0F9F9Cp-7"))

# 1.5 * 2^23 + 127: adding it leaves an integer's biased exponent in the low mantissa bits.
EXPONENT_MAGIC = F32(float.fromhex("0x1.8000FEp23"))
WIDE_EXPONENT_MAGIC = 1.5 * 2.0**52 + 1023.0
ZERO_EXPONENT = F32(-127.0)  # 2^-127 is where the bit pattern gives exactly 0
ZERO_PATTERN = F32(EXPONENT_MAGIC + ZERO_EXPONENT)
# The split is accurate for |x| <= 2^17. Masked and more negative inputs are raised to -2^17, where they weigh nothing
# unless the whole row is there; such rows, and rows above 2^17, go through the three-pass form.
LOWEST = F32(-(2.0**17))
LOWEST_EXPONENT = F32(np.rint(LOWEST * LOG2E))
LARGEST_EXPONENT = F32(188_000.0)
FLUSHED = F32(-88.0)  # e^-88 has exponent -127 in the split, which becomes 0
MOST_NEGATIVE = F32(-np.finfo(np.float32).max)
MINUS_INF = F32(-np.inf)
ZERO = F32(0.0)

# Reassociation would undo the Cody-Waite reduction; contraction to FMA is what it needs.
OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True}
_inline = njit(forceinline=True, **OPTIONS)
_pass = njit(**OPTIONS)


@_inline
def _reduce(x):
    """(n, t) with x = n*ln2 + t, n an integer held as float and |t| <= ln2/2 (Cody & Waite, two constants)."""
    n = rint(x * LOG2E)
    return n, fma(n, MINUS_LN2_LOW, fma(n, MINUS_LN2_HIGH, x))


@_inline
def _slope(t):
    """(e^t - 1) / t by Horner's rule."""
    return fma(fma(fma(fma(t, C5, C4), t, C3), t, C2), t, C1)


@_inline
def _split(x):
    """(p, n) with e^x = p * 2^n, p in [0.70, 1.42]."""
    n, t = _reduce(x)
    return fma(_slope(t), t, C0), n


@_inline
def _power(n, e):
    """2^(n - e) for integers held as float, n - e in [-127, 127]; 2^-127 becomes 0. One addition where e is fixed."""
    return shift_to_exponent(n + (EXPONENT_MAGIC - e))


@_inline
def _weight(n, e):
    """2^(n - e) for n <= e, 0 from -127 downwards."""
    return shift_to_exponent(at_least(n + (EXPONENT_MAGIC - e), ZERO_PATTERN))


@_inline
def _exp(x):
    """e^x for x <= 0, 0 where it would be denormal; NaN stays NaN."""
    p, n = _split(at_least(x, FLUSHED))
    return p * shift_to_exponent(n + EXPONENT_MAGIC)


# --- the first passes: x[begin:end] becomes a sum or a maximum


@_inline
def _accumulate_step(x, at, M, E):
    """e' = max(e, n), m' = m * 2^(e - e') + sum(p * 2^(n - e')) for the next four elements of each lane."""
    prefetch(x, at)
    p_0, n_0 = _split(at_least(load(x, at), LOWEST))
    p_1, n_1 = _split(at_least(load(x, at + LANES), LOWEST))
    p_2, n_2 = _split(at_least(load(x, at + 2 * LANES), LOWEST))
    p_3, n_3 = _split(at_least(load(x, at + 3 * LANES), LOWEST))
    e = larger(larger(larger(n_0, n_1), larger(n_2, n_3)), E)
    left = fma(p_0, _weight(n_0, e), p_1 * _weight(n_1, e))
    right = fma(p_2, _weight(n_2, e), p_3 * _weight(n_3, e))
    return fma(M, _weight(E, e), left + right), e


@_inline
def _accumulate_one(x, M, E):
    """The same for a single element of each lane."""
    p, n = _split(at_least(x, LOWEST))
    e = larger(n, E)
    return fma(p, _weight(n, e), M * _weight(E, e)), e


@_inline
def _accumulate_leaf(x, at, end, E):
    """(m, e) by lane of x[at:end], e not below ``E``."""
    M = every(ZERO)
    while at + STEP <= end:
        M, E = _accumulate_step(x, at, M, E)
        at += STEP
    while at + LANES <= end:
        M, E = _accumulate_one(load(x, at), M, E)
        at += LANES
    if at < end:
        M, E = _accumulate_one(load_first(x, at, end - at, LOWEST), M, E)
    return M, E


@_pass
def accumulate(x, begin, end):
    """Pass 1 of two: (m, e) with m * 2^e = sum(e^x), the extended exponents never collapsed."""
    X = every(LOWEST_EXPONENT)
    if end - begin <= LEAF:
        M, E = _accumulate_leaf(x, begin, end, X)
        e = largest_lane(E)
        return sum_of_lanes(wide(M * _weight(E, e))), e
    T = every(0.0)
    for at in range(begin, end, LEAF):
        M, E = _accumulate_leaf(x, at, min(at + LEAF, end), X)
        # The float32 sums M * 2^E go into the float64 totals T * 2^X; E only grows, so it becomes their exponent.
        T, X = fma(T, wide(_weight(X, E)), wide(M)), E
    e = largest_lane(X)
    return sum_of_lanes(T * wide(_weight(X, e))), e


@_pass
def find_max(x, begin, end):
    """The largest element, -inf when there is none; never NaN, but some other element where there is NaN.

    NaN is for the sum to find: whatever is subtracted from it, it stays.
    """
    M, at = every(MINUS_INF), begin
    while at + STEP <= end:
        prefetch(x, at)
        left, right = larger(load(x, at), load(x, at + LANES)), larger(load(x, at + 2 * LANES), load(x, at + 3 * LANES))
        M = larger(larger(left, right), M)
        at += STEP
    while at + LANES <= end:
        M = larger(load(x, at), M)
        at += LANES
    if at < end:
        M = larger(load_first(x, at, end - at, MINUS_INF), M)
    return largest_lane(M)


@_inline
def _sum_exp(x, y, begin, end, maximum, store):
    """sum(e^(x - maximum)), storing the terms in ``y`` on the way where ``store`` says so."""
    T, at = every(0.0), begin
    while at < end:
        leaf, S = min(at + LEAF, end), every(ZERO)
        while at + STEP <= leaf:
            prefetch(x, at)
            t_0, t_1 = _exp(load(x, at) - maximum), _exp(load(x, at + LANES) - maximum)
            t_2, t_3 = _exp(load(x, at + 2 * LANES) - maximum), _exp(load(x, at + 3 * LANES) - maximum)
            S = S + ((t_0 + t_1) + (t_2 + t_3))
            if store:
                put(y, at, t_0)
                put(y, at + LANES, t_1)
                put(y, at + 2 * LANES, t_2)
                put(y, at + 3 * LANES, t_3)
            at += STEP
        while at + LANES <= leaf:
            t = _exp(load(x, at) - maximum)
            S = S + t
            if store:
                put(y, at, t)
            at += LANES
        if at < leaf:
            t = _exp(load_first(x, at, leaf - at, MINUS_INF) - maximum)
            S = S + t
            if store:
                put_first(y, at, leaf - at, t)
        T, at = T + wide(S), leaf
    return sum_of_lanes(T)


@_pass
def sum_exp(x, begin, end, maximum):
    """Pass 2 of three, recompute: sum(e^(x - maximum)), nothing stored."""
    return _sum_exp(x, x, begin, end, maximum, False)


@_pass
def sum_store_exp(x, y, begin, end, maximum):
    """Pass 2 of three, reload: y = e^(x - maximum), and its sum."""
    return _sum_exp(x, y, begin, end, maximum, True)


@_inline
def _online_step(x, at, S, M):
    """m' = max(m, x), s' = s * e^(m - m') + sum(e^(x - m')) for the next four elements of each lane."""
    prefetch(x, at)
    x_0, x_1 = load(x, at), load(x, at + LANES)
    x_2, x_3 = load(x, at + 2 * LANES), load(x, at + 3 * LANES)
    m = larger(larger(larger(x_0, x_1), larger(x_2, x_3)), M)
    terms = (_exp(x_0 - m) + _exp(x_1 - m)) + (_exp(x_2 - m) + _exp(x_3 - m))
    return fma(S, _exp(M - m), terms), m


@_inline
def _online_one(x, S, M):
    """The same for a single element of each lane."""
    m = larger(x, M)
    return fma(S, _exp(M - m), _exp(x - m)), m


@_inline
def _online_leaf(x, at, end, M):
    """(s, m) by lane of x[at:end], m not below ``M``."""
    S = every(ZERO)
    while at + STEP <= end:
        S, M = _online_step(x, at, S, M)
        at += STEP
    while at + LANES <= end:
        S, M = _online_one(load(x, at), S, M)
        at += LANES
    if at < end:
        S, M = _online_one(load_first(x, at, end - at, MINUS_INF), S, M)
    return S, M


@_pass
def online_sum(x, begin, end):
    """(s, m) with m the largest element and s = sum(e^(x - m)) in one sweep (Milakov & Gimelshein 2018).

    As in :func:`accumulate`, the running maximum is raised once for four elements of a lane, not for each.
    """
    X = every(MOST_NEGATIVE)
    if end - begin <= LEAF:
        S, M = _online_leaf(x, begin, end, X)
        m = largest_lane(M)
        return sum_of_lanes(wide(S * _exp(M - m))), m
    T = every(0.0)
    for at in range(begin, end, LEAF):
        S, M = _online_leaf(x, at, min(at + LEAF, end), X)
        T, X = fma(T, wide(_exp(X - M)), wide(S)), M
    m = largest_lane(X)
    return sum_of_lanes(T * wide(_exp(X - m))), m


# --- what joins two chunks of a row


@_pass
def merge(m_a, e_a, m_b, e_b):
    """(m, e) with m * 2^e = m_a * 2^e_a + m_b * 2^e_b; the larger exponent is kept, so nothing overflows."""
    e = e_a if e_a > e_b else e_b
    return m_a * first_lane(_weight(every(e_a), e)) + m_b * first_lane(_weight(every(e_b), e)), e


@_pass
def merge_online(s_a, m_a, s_b, m_b):
    """(s, m) of two parts whose sums are relative to their own maxima."""
    m = m_a if m_a > m_b else m_b
    return s_a * first_lane(_exp(every(m_a - m))) + s_b * first_lane(_exp(every(m_b - m))), m


# --- the last passes: y[begin:end] from x[begin:end] and what is known of the sum


@_inline
def normaliser_of_lanes(m, e):
    """(r, r_low, k) with 1 / (m * 2^e) = (r + r_low) * 2^-k and r in (1/2, 1], so that p * r is never denormal.

    r or r_low is NaN where m is 0 or NaN.
    """
    exponent = binary_exponent(m)
    inverse = 0.5 / (m * shift_to_exponent(WIDE_EXPONENT_MAGIC - exponent))
    r = narrow(inverse)
    return r, narrow(inverse - wide(r)), e + narrow(exponent) - C0


@_pass
def normaliser(m, e):
    """:func:`normaliser_of_lanes` of two numbers."""
    r, r_low, k = normaliser_of_lanes(every(m), every(e))
    return first_lane(r), first_lane(r_low), first_lane(k)


@_inline
def _normalised(x, floor, r, r_low, k):
    """e^x * (r + r_low) * 2^-k, flushed to 0 when the exponent reaches -127.

    With p = 1 + t*q, p*r is built as r + (r_low + q*(r*t)): one rounding that counts instead of three.
    """
    n, t = _reduce(at_least(x, floor))
    return (fma(_slope(t), t * r, r_low) + r) * _power(n, k)


@_inline
def _store_normalised(x, y, begin, end, shift, r, r_low, k, shifted):
    floor, at = (k + ZERO_EXPONENT) * LN2, begin
    while at + LANES <= end:
        v = load(x, at)
        put(y, at, _normalised(v - shift if shifted else v, floor, r, r_low, k))
        at += LANES
    if at < end:
        v = load_first(x, at, end - at, ZERO)
        put_first(y, at, end - at, _normalised(v - shift if shifted else v, floor, r, r_low, k))


@_pass
def store(x, y, begin, end, r, r_low, k):
    """Pass 2 of two: y = p * r * 2^(n - k) with (p, n) computed anew."""
    _store_normalised(x, y, begin, end, ZERO, r, r_low, k, False)


@_pass
def store_shifted(x, y, begin, end, maximum, r, r_low, k):
    """The storing pass of the three-pass recompute and the online form."""
    _store_normalised(x, y, begin, end, maximum, r, r_low, k, True)


@_pass
def scale(y, begin, end, total):
    """Pass 3 of three, reload: y /= total in place; what would become denormal is flushed before the product."""
    r, smallest, at = F32(1.0 / total), F32(total * 2.0**-126), begin
    while at + LANES <= end:
        put(y, at, flushed_below(load(y, at), smallest) * r)
        at += LANES
    if at < end:
        put_first(y, at, end - at, flushed_below(load_first(y, at, end - at, ZERO), smallest) * r)


@_pass
def store_log(x, y, begin, end, high, low):
    """The last pass of log-softmax: y = x - ln(sum(e^x)), the logarithm in two parts."""
    at = begin
    while at + LANES <= end:
        put(y, at, (load(x, at) - high) - low)
        at += LANES
    if at < end:
        put_first(y, at, end - at, (load_first(x, at, end - at, ZERO) - high) - low)


@_pass
def holds_nan(x, begin, end):
    """Whether x[begin:end] holds NaN."""
    found = False
    for at in range(begin, end, LANES):
        found |= any_nan(load_first(x, at, min(end - at, LANES), ZERO))
    return found


# --- memory streams, the yardsticks of the passes


@_pass
def stream_read(x, begin, end):
    """The yardstick of reading passes: sum(x) in as many lanes."""
    S, at = every(ZERO), begin
    while at + STEP <= end:
        prefetch(x, at)
        S = S + ((load(x, at) + load(x, at + LANES)) + (load(x, at + 2 * LANES) + load(x, at + 3 * LANES)))
        at += STEP
    T = wide(S)
    while at < end:
        T, at = T + wide(load_first(x, at, min(end - at, LANES), ZERO)), at + LANES
    return sum_of_lanes(T)


@_pass
def stream_copy(x, y, begin, end, factor):
    """The yardstick of passes that read one array and write another (STREAM's Scale: no memcpy can stand in)."""
    at = begin
    while at + LANES <= end:
        put(y, at, load(x, at) * factor)
        at += LANES
    if at < end:
        put_first(y, at, end - at, load_first(x, at, end - at, ZERO) * factor)
