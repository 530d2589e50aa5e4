"""Peak memory of a stretch of code, from the kernel's high-water mark."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of resident memory that ``work()`` needed at its peak beyond what was resident before; 0 if unknown."""
    before = reset_peak()
    work()
    return max(0, peak_bytes() - before) if before else 0


def reset_peak() -> int:
    """Set the high-water mark back to what is resident now and return it; 0 where the system cannot."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return 0
    return _kib("VmRSS")


def peak_bytes() -> int:
    """The high-water mark since :func:`reset_peak`."""
    return _kib("VmHWM")


def _kib(name: str) -> int:
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match.group(1)) * 1024 if match else 0
