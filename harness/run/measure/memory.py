"""Peak memory of a stretch of code in this process, from the kernel's high-water mark; and what a call gave back."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def reset_peak() -> int:
    """Set the high-water mark to what is resident now, and return that.

    What was freed is given back to the system first: a heap that kept it would hide that it is needed again.
    """
    _trim_heap()
    with contextlib.suppress(OSError):  # not permitted: the mark stays, and a peak is then an upper bound
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS:")


def peak_bytes() -> int:
    """The largest resident set since :func:`reset_peak`."""
    return _status_bytes("VmHWM:")


def _trim_heap() -> None:
    with contextlib.suppress(OSError, AttributeError):  # not glibc's heap
        ctypes.CDLL(None).malloc_trim(0)


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def fresh_bytes(returned: Any, known: Iterable[Any]) -> int:
    """Bytes of the arrays in ``returned`` (one, or a tuple) that are no part of an array in ``known``."""
    spans = [_span(item) for item in known if _is_array(item)]
    found: dict[int, int] = {}
    for item in returned if isinstance(returned, tuple | list) else (returned,):
        if _is_array(item):
            begin, size = _span(item)
            if not any(low <= begin < low + width for low, width in spans):
                found[begin] = max(size, found.get(begin, 0))
    return sum(found.values())


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and (hasattr(value, "ctypes") or hasattr(value, "untyped_storage"))


def _span(array: Any) -> tuple[int, int]:
    """Where the memory behind a numpy array or a torch tensor begins, and its bytes."""
    if hasattr(array, "untyped_storage"):
        storage = array.untyped_storage()
        return int(storage.data_ptr()), int(storage.nbytes())
    while getattr(array.base, "nbytes", 0) >= array.nbytes > 0 and hasattr(array.base, "ctypes"):
        array = array.base
    return int(array.ctypes.data), int(array.nbytes)
