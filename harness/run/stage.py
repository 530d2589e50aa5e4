"""Where a worker is, told through a page of memory it shares with its supervisor: no system call, so it may be timed.

The supervisor's clock runs for the arm that is named here and stands still while an artefact is prepared.
Outside a worker every function here does nothing.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

PAGE_BYTES = 4096
# The name under which all arms run interleaved.
TOGETHER = "*"
_ARM, _PREPARING = 0, 1


class Page:
    """Two integers in shared memory: the arm's place in the job (None: no arm yet), and whether it prepares."""

    def __init__(self, fd: int) -> None:
        self._numbers = memoryview(mmap.mmap(fd, PAGE_BYTES)).cast("q")

    @staticmethod
    def create() -> int:
        """A new page's file descriptor, zeroed; the caller closes it."""
        fd = os.memfd_create("litmus-stage")
        os.ftruncate(fd, PAGE_BYTES)
        return fd

    def name(self, arms: Sequence[str]) -> str | None:
        """The arm of ``arms`` it is in, ``"*"`` while all run together, None before the first."""
        names, index = (*arms, TOGETHER), self.arm
        return names[index] if index is not None and index < len(names) else None

    @property
    def arm(self) -> int | None:
        """The index into the job's arms, one past the last for all together."""
        number = self._numbers[_ARM]
        return None if number <= 0 else number - 1

    @arm.setter
    def arm(self, index: int | None) -> None:
        self._numbers[_ARM] = 0 if index is None else index + 1

    @property
    def preparing(self) -> bool:
        """Whether an artefact is being prepared."""
        return bool(self._numbers[_PREPARING])

    @preparing.setter
    def preparing(self, value: bool) -> None:
        self._numbers[_PREPARING] = int(value)


class _Here:
    page: Page | None = None
    names: Sequence[str] = ()


def attach(page: Page, arms: Sequence[str]) -> None:
    """Called once by a worker, before anything else here."""
    _Here.page, _Here.names = page, (*arms, TOGETHER)


def enter(arm: str | None) -> None:
    """From now on time and faults are this arm's; ``"*"``: all arms' together; None or an unknown arm: nobody's."""
    if _Here.page is not None:
        _Here.page.arm = _Here.names.index(arm) if arm in _Here.names else None


@contextmanager
def preparing() -> Iterator[None]:
    """Inside, the arm's clock stands still and the limit for preparing holds."""
    page = _Here.page
    if page is None:
        yield
        return
    before = page.preparing
    page.preparing = True
    try:
        yield
    finally:
        page.preparing = before
