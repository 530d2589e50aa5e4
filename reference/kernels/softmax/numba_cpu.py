"""The Numba backend on CPUs: which kernel runs on which thread; the kernels are in ``numba_kernels``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import config, get_num_threads, set_num_threads

from reference.kernels.softmax import numba_kernels as kernels
from reference.kernels.softmax.cost import chunks_of, shared

if TYPE_CHECKING:
    import torch

    Array = np.ndarray | torch.Tensor

OPS = {"softmax": kernels.SOFTMAX, "log_softmax": kernels.LOG_SOFTMAX, "log_sum_exp": kernels.LOG_SUM_EXP}
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
    "store_log": kernels.STORE_LOG,
    "stream_read": kernels.STREAM_READ,
    "stream_copy": kernels.STREAM_COPY,
    "stream_scale": kernels.STREAM_SCALE,
}

Kernel = Callable[[np.ndarray, np.ndarray], None]

__all__ = ["ALGORITHMS", "PASSES", "bind", "chunks_of", "log_softmax", "log_sum_exp", "softmax"]


def softmax(x: Array, out: Array, algorithm: str, threads: int | None) -> None:
    """Write the softmax over the last axis of ``x`` (rows, n) into ``out``, which may be ``x``."""
    _run("softmax", x, out, algorithm, threads)


def log_softmax(x: Array, out: Array, algorithm: str, threads: int | None) -> None:
    """Write x - ln(sum(e^x)) over the last axis of ``x`` (rows, n) into ``out``, which may be ``x``."""
    _run("log_softmax", x, out, algorithm, threads)


def log_sum_exp(x: Array, out: Array, algorithm: str, threads: int | None) -> None:
    """Write ln(sum(e^x)) over the last axis of ``x`` (rows, n) into ``out`` (rows,)."""
    _run("log_sum_exp", x, out.reshape(-1, 1), algorithm, threads)


def _run(op: str, x: Array, out: Array, algorithm: str, threads: int | None) -> None:
    rows, n = x.shape
    x, out = plain(x), plain(out)
    if threads == 1 or chunks_of(rows * n, 2) == 1:  # without starting, asking or changing the pool
        _one_thread(OPS[op], ALGORITHMS[algorithm], x, out)
        return
    count = thread_count(threads)
    with _pool_of(count):
        bind(algorithm, rows, n, count, op)(x, out)


def plain(x: Any) -> np.ndarray:
    """``x`` as the kernels take it: float32, float16 as uint16, bfloat16 as int16, the same memory."""
    if not isinstance(x, np.ndarray):
        import torch

        if x.dtype == torch.bfloat16:
            return x.view(torch.int16).numpy()
        x = x.numpy()
    return x.view(np.uint16) if x.dtype == np.float16 else x


def bind(algorithm: str, rows: int, n: int, threads: int, op: str = "softmax") -> Kernel:
    """The kernel ``f(x, out)`` for this shape, without a wrapper around it; Numba's pool must hold ``threads``.

    ``x`` and ``out`` are (rows, n) as :func:`plain` gives them; ``out`` is (rows, 1) for log_sum_exp. Many rows are
    shared among the threads whole; a single long row in chunks, merged by the extended-exponent rule. A kernel that
    works in chunks keeps their partial results, so it must not run twice at once.
    """
    codes = OPS[op], ALGORITHMS[algorithm]
    how, parts = shared(rows, n, threads)
    if how == "chunks":
        return partial(_chunked_rows, *codes, *partials(parts))
    return partial(_one_thread, *codes) if parts == 1 else partial(_shared_rows, *codes, parts)


def _one_thread(op: int, algorithm: int, x: np.ndarray, out: np.ndarray) -> None:
    kernels.run_rows(op, algorithm, x, out, 0, x.shape[0])


def _shared_rows(op: int, algorithm: int, workers: int, x: np.ndarray, out: np.ndarray) -> None:
    kernels.parallel_rows(op, algorithm, x, out, workers)


def _chunked_rows(
    op: int, algorithm: int, sums: np.ndarray, exponents: np.ndarray, x: np.ndarray, out: np.ndarray
) -> None:
    for row in range(x.shape[0]):
        kernels.run_row(op, algorithm, x[row], out[row], sums, exponents)


def run_pass(
    name: str, x: np.ndarray, y: np.ndarray, partial_sums: np.ndarray, partial_exponents: np.ndarray, *,
    shift: float = 0.0, r: float = 1.0, r_low: float = 0.0, k: float = 0.0, total: float = 1.0,
) -> None:
    """One pass of ``PASSES`` over the vector ``x`` or into ``y``, a thread for each of the :func:`partials`.

    ``shift`` is the maximum, (r, r_low, k) what :func:`normaliser` gives, ``total`` the sum that ``scale`` divides by;
    ``stream_copy`` and ``stream_scale`` multiply by ``r``, ``store_log`` subtracts r and r_low. Reading passes leave
    their results in the partials.
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
        m, e = kernels.merged(m, e, float(m_i), np.float32(e_i))
        e = np.float32(e)
    return m, float(e)


def normaliser(m: float, e: float = 0.0) -> tuple[float, float, float]:
    """(r, r_low, k) with 1 / (m * 2^e) = (r + r_low) * 2^-k."""
    r, r_low, k = kernels.normalised(float(m), np.float32(e))
    return float(r), float(r_low), float(k)


def log_sum(m: float, e: float) -> float:
    """ln(m * 2^e)."""
    return math.log(m) + e * math.log(2.0)


def thread_count(threads: int | None) -> int:
    """``threads``, or as many as Numba may use in this thread of the program."""
    return get_num_threads() if threads is None else threads


@contextmanager
def _pool_of(threads: int) -> Iterator[None]:
    before = get_num_threads()
    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        set_num_threads(before)
