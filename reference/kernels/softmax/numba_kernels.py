"""Softmax and its logarithms over rows, compiled by Numba: which pass follows which, on one thread or all.

Short rows are taken in blocks, a pass over all rows of the block before the next pass: where one number must wait for
another, at the end of a row, the processor works on the next row meanwhile.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numba import njit, prange

from reference.kernels.jit import kernel
from reference.kernels.softmax import numba_passes, numba_vectors
from reference.kernels.softmax.numba_passes import (
    LARGEST_EXPONENT,
    OPTIONS,
    ZERO,
    accumulate,
    find_max,
    holds_nan,
    merge,
    merge_online,
    normaliser,
    normaliser_of_lanes,
    online_sum,
    scale,
    store,
    store_log,
    store_shifted,
    stream_copy,
    stream_read,
    sum_exp,
    sum_store_exp,
)
from reference.kernels.softmax.numba_vectors import (
    LANES,
    STEP,
    elements,
    every,
    lanes,
    load,
    put,
    put_first,
    wide_lanes,
)

F32 = np.float32
BLOCK = 4096  # elements of short rows that go through a pass together
LN2 = math.log(2.0)

SOFTMAX, LOG_SOFTMAX, LOG_SUM_EXP = range(3)
TWO_PASS, THREE_PASS_RECOMPUTE, THREE_PASS_RELOAD, ONLINE = range(4)
(
    ACCUMULATE, FIND_MAX, SUM_EXP, SUM_STORE_EXP, ONLINE_SUM, STORE, STORE_SHIFTED, SCALE, STORE_LOG,
    STREAM_READ, STREAM_COPY, STREAM_SCALE,
) = range(12)

_INLINED = tuple(Path(module.__file__) for module in (numba_passes, numba_vectors))
_inline = njit(forceinline=True, **OPTIONS)
_part_of = njit(**OPTIONS)
_kernel = kernel(sources=_INLINED, **OPTIONS)
_parallel = kernel(sources=_INLINED, parallel=True, **OPTIONS)


@_inline
def _sums(algorithm, x, y, n, first, last, M, E, SHIFT):
    """The sums of rows first to last: M * 2^E * e^SHIFT."""
    for row in range(first, last):
        i, begin, end = row - first, row * n, (row + 1) * n
        if algorithm == TWO_PASS:
            M[i], E[i] = accumulate(x, begin, end)
            SHIFT[i] = ZERO
            # Also where E is infinite; it is never NaN.
            if not -LARGEST_EXPONENT < E[i] < LARGEST_EXPONENT:
                E[i], SHIFT[i] = ZERO, find_max(x, begin, end)
                M[i] = sum_exp(x, begin, end, SHIFT[i])
        elif algorithm == ONLINE:
            M[i], SHIFT[i] = online_sum(x, begin, end)
            E[i] = ZERO
        else:
            SHIFT[i], E[i] = find_max(x, begin, end), ZERO
    if algorithm == THREE_PASS_RECOMPUTE:
        for row in range(first, last):
            M[row - first] = sum_exp(x, row * n, (row + 1) * n, SHIFT[row - first])
    elif algorithm == THREE_PASS_RELOAD:
        for row in range(first, last):
            M[row - first] = sum_store_exp(x, y, row * n, (row + 1) * n, SHIFT[row - first])


@_inline
def _log_parts(m, e, shift):
    """(high, low) whose sum is ln(m * 2^e) + shift."""
    log = math.log(m) + e * LN2
    high = F32(log)
    return (high, F32(log - high)) if shift == ZERO else (shift, F32(log))


@_inline
def _log(x, begin, end, m, e, shift):
    """ln(m * 2^e) + shift; infinite where ``shift`` is and x[begin:end] holds no NaN."""
    if not math.isinf(shift):
        return F32(shift + (math.log(m) + e * LN2))
    return F32(np.nan) if holds_nan(x, begin, end) else shift


@_kernel
def run_rows(op, algorithm, x, y, begin, end):
    """``op`` of the rows begin to end of ``x`` (rows, n) into ``y``: (rows, n), or (rows, 1) for LOG_SUM_EXP."""
    n = x.shape[1]
    x, y = elements(x), elements(y)
    M, E, SHIFT = wide_lanes(), lanes(), lanes()
    R, R_LOW, K = lanes(), lanes(), lanes()
    for i in range(LANES):  # a block may be shorter, but all lanes are normalised
        M[i], E[i] = 1.0, ZERO
    block = max(1, min(LANES, BLOCK // n))
    for first in range(begin, end, block):
        last = min(first + block, end)
        _sums(algorithm, x, y, n, first, last, M, E, SHIFT)
        if op == LOG_SUM_EXP:
            for i in range(last - first):
                R[i] = _log(x, (first + i) * n, (first + i + 1) * n, M[i], E[i], SHIFT[i])
            put_first(y, first, last - first, load(R, 0))
        elif op == LOG_SOFTMAX:
            for i in range(last - first):
                R[i], R_LOW[i] = _log_parts(M[i], E[i], SHIFT[i])
            for i in range(last - first):
                store_log(x, y, (first + i) * n, (first + i + 1) * n, R[i], R_LOW[i])
        elif algorithm == THREE_PASS_RELOAD:
            for i in range(last - first):
                scale(y, (first + i) * n, (first + i + 1) * n, M[i])
        else:
            r, r_low, k = normaliser_of_lanes(load(M, 0), load(E, 0))
            put(R, 0, r)
            put(R_LOW, 0, r_low)
            put(K, 0, k)
            for i in range(last - first):
                a, b = (first + i) * n, (first + i + 1) * n
                if SHIFT[i] == ZERO:
                    store(x, y, a, b, R[i], R_LOW[i], K[i])
                else:
                    store_shifted(x, y, a, b, SHIFT[i], R[i], R_LOW[i], K[i])


# --- all threads: whole rows each, or a chunk each of a long row


@_parallel
def parallel_rows(op, algorithm, x, y, threads):
    """:func:`run_rows` of all rows, shared among ``threads``."""
    for c in prange(threads):
        run_rows(op, algorithm, x, y, x.shape[0] * c // threads, x.shape[0] * (c + 1) // threads)


@_part_of
def _part(which, x, y, shift, r, r_low, k, total, S, E, c):
    """Chunk ``c`` of a pass over a row; its result, if any, goes to S[c] and E[c]."""
    # Chunks begin at whole vectors, so that an aligned row has aligned chunks.
    begin, end = x.size * c // S.size // STEP * STEP, x.size * (c + 1) // S.size // STEP * STEP
    end = x.size if c == S.size - 1 else end
    x, y = elements(x), elements(y)
    if which == ACCUMULATE:
        S[c], E[c] = accumulate(x, begin, end)
    elif which == FIND_MAX:
        E[c] = find_max(x, begin, end)
    elif which == SUM_EXP:
        S[c] = sum_exp(x, begin, end, shift)
    elif which == SUM_STORE_EXP:
        S[c] = sum_store_exp(x, y, begin, end, shift)
    elif which == ONLINE_SUM:
        S[c], E[c] = online_sum(x, begin, end)
    elif which == STORE:
        store(x, y, begin, end, r, r_low, k)
    elif which == STORE_SHIFTED:
        store_shifted(x, y, begin, end, shift, r, r_low, k)
    elif which == SCALE:
        scale(y, begin, end, total)
    elif which == STORE_LOG:
        store_log(x, y, begin, end, r, r_low)
    elif which == STREAM_READ:
        S[c] = stream_read(x, begin, end)
    elif which == STREAM_COPY:
        stream_copy(x, y, begin, end, r)
    elif which == STREAM_SCALE:
        stream_copy(y, y, begin, end, r)


@_parallel
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
def run_row(op, algorithm, x, y, S, E):
    """``op`` of the vector ``x`` in ``S.size`` chunks; ``S`` and ``E`` hold the chunks' partial results.

    Each pass says what the next one is; a single call of ``run_pass`` keeps the compiler from copying it for each.
    """
    m, e, shift, r, r_low, k = 0.0, ZERO, ZERO, ZERO, ZERO, ZERO
    which = ACCUMULATE if algorithm == TWO_PASS else ONLINE_SUM if algorithm == ONLINE else FIND_MAX
    while True:
        run_pass(which, x, y, shift, r, r_low, k, m, S, E)
        if which == FIND_MAX:
            shift, e = E[0], ZERO
            for c in range(1, E.size):
                shift = max(shift, E[c])
            which = SUM_STORE_EXP if algorithm == THREE_PASS_RELOAD else SUM_EXP
            continue
        if which == ACCUMULATE:
            m, e = S[0], E[0]
            for c in range(1, S.size):
                m, e = merge(m, e, S[c], E[c])
            if not -LARGEST_EXPONENT < e < LARGEST_EXPONENT:
                which = FIND_MAX
                continue
        elif which == ONLINE_SUM:
            m, shift = S[0], E[0]
            for c in range(1, S.size):
                m, shift = merge_online(m, shift, S[c], E[c])
        elif which in (SUM_EXP, SUM_STORE_EXP):
            m = S[0]
            for c in range(1, S.size):
                m += S[c]
        else:
            return
        if op == LOG_SUM_EXP:
            put_first(elements(y), 0, 1, every(_log(elements(x), 0, x.size, m, e, shift)))
            return
        if op == LOG_SOFTMAX:
            r, r_low = _log_parts(m, e, shift)
            which = STORE_LOG
        elif which == SUM_STORE_EXP:
            which = SCALE
        else:
            which = STORE if which == ACCUMULATE else STORE_SHIFTED
            r, r_low, k = normaliser(m, e)


@_kernel
def merged(m_a, e_a, m_b, e_b):
    """:func:`numba_passes.merge`."""
    return merge(m_a, e_a, m_b, e_b)


@_kernel
def normalised(m, e):
    """:func:`numba_passes.normaliser`."""
    return normaliser(m, e)
