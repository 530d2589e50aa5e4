"""How many threads a cell may use, set in every library that keeps its own pool."""

from __future__ import annotations

import os
import sys
from typing import Any

from threadpoolctl import threadpool_limits

_ENVIRONMENT = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def available_cores() -> int:
    """The cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_count(threads: Any) -> int:
    """``"all"`` (or None) is every available core; otherwise the number itself."""
    return available_cores() if threads in ("all", None) else int(threads)


def limit_threads(threads: Any) -> int:
    """Hold BLAS, OpenMP, torch and Numba to ``threads``; libraries imported later follow the environment.

    Call it again after further libraries were imported. Returns the number of threads.
    """
    count = thread_count(threads)
    for name in _ENVIRONMENT:
        os.environ[name] = str(count)
    # Numba first: starting its threads sets OpenMP's count for everybody.
    if "numba" in sys.modules:
        numba = sys.modules["numba"]
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))
    threadpool_limits(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    return count
