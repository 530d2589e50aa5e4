"""Peak memory of a stretch of code in this process, from the kernel's high-water mark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of resident memory that ``work()`` needed at its peak beyond what was resident before."""
    before = reset_peak()
    work()
    return max(0, peak_bytes() - before)


def reset_peak() -> int:
    """Set the high-water mark to what is resident now, and return that."""
    with contextlib.suppress(OSError):  # not permitted: the mark stays, and a peak is then an upper bound
        Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS:")


def peak_bytes() -> int:
    """The largest resident set since :func:`reset_peak`."""
    return _status_bytes("VmHWM:")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0
