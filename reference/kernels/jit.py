"""Numba kernels that start quickly: a compiled kernel is loaded from the disk without the compiler.

``numba.njit(cache=True)`` reads machine code from the disk, but first makes the compiler ready, which imports SciPy's
linear algebra and registers a thousand implementations: 0.3 s in every new process. Running machine code needs none of
it, so :func:`kernel` loads first and leaves the compiler for when something must be compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys

Function = TypeVar("Function", bound=Callable[..., Any])


class _CodeCache(FunctionCache):
    """Numba's disk cache, loading with the run-time system alone, and void when one of ``sources`` changes."""

    def __init__(self, function: Callable[..., Any], sources: Sequence[Path]):
        super().__init__(function)
        if sources:
            stamps = [(status.st_mtime, status.st_size) for status in map(Path.stat, sources)]
            self._cache_file._source_stamp = (self._cache_file._source_stamp, *stamps)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # Loaded code calls into the run-time system (allocation, exceptions), which refresh() would have set up.
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


def kernel(sources: Sequence[Path] = (), **options: Any) -> Callable[[Function], Function]:
    """As ``numba.njit(cache=True, **options)``; only the start is faster, the cached files are the same.

    The cache is keyed by the file that holds the function and by ``sources``: name the files of the functions that it
    inlines, or they may change unnoticed.
    """

    def decorate(function: Function) -> Function:
        dispatcher = numba.njit(cache=True, **options)(function)
        # The attribute is Numba's own, and private: without it the ordinary cache does the same, slowly.
        if isinstance(getattr(dispatcher, "_cache", None), FunctionCache):
            dispatcher._cache = _CodeCache(function, sources)
        return dispatcher

    return decorate
