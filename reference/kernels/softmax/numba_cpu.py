"""The Numba backend on CPUs: which kernel runs on which thread; the kernels are in ``numba_kernels``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
from numba import config, get_num_threads, set_num_threads

from reference.kernels.softmax import numba_kernels as kernels

GRAIN = 2**15  # elements below which a second thread costs more than it brings
ALGORITHMS = {
    "two_pass": kernels.TWO_PASS,
    "three_pass_recompute": kernels.THREE_PASS_RECOMPUTE,
    "three_pass_reload": kernels.THREE_PASS_RELOAD,
    "online": kernels.ONLINE,
}
PASSES = {
    "accumulate": kernels.ACCUMULATE,
    "store": kernels.STORE,
    "max": kernels.FIND_MAX,
    "sum_exp": kernels.SUM_EXP,
    "store_shifted": kernels.STORE_SHIFTED,
    "sum_store_exp": kernels.SUM_STORE_EXP,
    "scale": kernels.SCALE,
    "online_sum": kernels.ONLINE_SUM,
    "stream_read": kernels.STREAM_READ,
    "stream_copy": kernels.STREAM_COPY,
    "stream_scale": kernels.STREAM_SCALE,
}


Kernel = Callable[[np.ndarray, np.ndarray], None]


def softmax(x: np.ndarray, out: np.ndarray, algorithm: str, threads: int | None) -> None:
    """Write the softmax over the last axis of ``x`` (rows, n) into ``out``; both float32 and C-contiguous."""
    x, out = (a if isinstance(a, np.ndarray) else a.numpy() for a in (x, out))
    with _pool_of(thread_count(threads)):
        bind(algorithm, x.shape[0], x.shape[1], thread_count(threads))(x, out)


def bind(algorithm: str, rows: int, n: int, threads: int) -> Kernel:
    """The kernel ``f(x, out)`` for this shape, without a wrapper around it; Numba's pool must hold ``threads``.

    Many rows are shared among the threads whole; a single long row in chunks, merged by the extended-exponent rule.
    A kernel that works in chunks keeps their partial results, so it must not run twice at once.
    """
    code = ALGORITHMS[algorithm]
    workers = chunks_of(rows * n, threads)
    if workers == 1:
        return partial(kernels.softmax_rows, code)
    if rows >= workers:
        return partial(_shared_rows, code, workers)
    return partial(_chunked_rows, code, *partials(chunks_of(n, threads)))


def _shared_rows(code: int, workers: int, x: np.ndarray, out: np.ndarray) -> None:
    kernels.parallel_rows(code, x, out, workers)


def _chunked_rows(code: int, sums: np.ndarray, exponents: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    for row in range(x.shape[0]):
        kernels.softmax_row(code, x[row], out[row], sums, exponents)


def run_pass(
    name: str, x: np.ndarray, y: np.ndarray, partial_sums: np.ndarray, partial_exponents: np.ndarray, *,
    shift: float = 0.0, r: float = 1.0, r_low: float = 0.0, k: float = 0.0, total: float = 1.0,
) -> None:
    """One pass of ``PASSES`` over the vector ``x`` or into ``y``, a thread for each of the :func:`partials`.

    ``shift`` is the maximum, (r, r_low, k) what :func:`normaliser` gives, ``total`` the sum that ``scale`` divides by;
    ``stream_copy`` and ``stream_scale`` multiply by ``r``. Reading passes leave their results in the partials.
    """
    f32 = np.float32
    kernels.run_pass(
        PASSES[name], x, y, f32(shift), f32(r), f32(r_low), f32(k), float(total), partial_sums, partial_exponents
    )


def partials(chunks: int) -> tuple[np.ndarray, np.ndarray]:
    """Room for the results of ``chunks`` chunks: float64 sums, float32 exponents or maxima."""
    return np.zeros(chunks, np.float64), np.zeros(chunks, np.float32)


def merge(partial_sums: np.ndarray, partial_exponents: np.ndarray) -> tuple[float, float]:
    """(m, e) with m * 2^e the sum of all m_i * 2^e_i, in the order given."""
    m, e = float(partial_sums[0]), np.float32(partial_exponents[0])
    for m_i, e_i in zip(partial_sums[1:], partial_exponents[1:], strict=True):
        m, e = kernels.merge(m, e, float(m_i), np.float32(e_i))
    return m, float(e)


def normaliser(m: float, e: float = 0.0) -> tuple[float, float, float]:
    """(r, r_low, k) with 1 / (m * 2^e) = (r + r_low) * 2^-k."""
    r, r_low, k = kernels.normaliser(float(m), np.float32(e))
    return float(r), float(r_low), float(k)


def log_sum(m: float, e: float) -> float:
    """ln(m * 2^e)."""
    return math.log(m) + e * math.log(2.0)


def thread_count(threads: int | None) -> int:
    """``threads``, or as many as Numba may use in this thread of the program."""
    return get_num_threads() if threads is None else threads


def chunks_of(elements: int, threads: int) -> int:
    """How many threads ``elements`` are worth: each gets at least ``GRAIN``."""
    return max(1, min(threads, elements // GRAIN))


@contextmanager
def _pool_of(threads: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        set_num_threads(before)
