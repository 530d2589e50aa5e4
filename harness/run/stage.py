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

    @property
    def arm(self) -> int | None:
        number = self._numbers[_ARM]
        return None if number <= 0 else number - 1

    @arm.setter
    def arm(self, index: int | None) -> None:
        self._numbers[_ARM] = 0 if index is None else index + 1

    @property
    def preparing(self) -> bool:
        return bool(self._numbers[_PREPARING])

    @preparing.setter
    def preparing(self, value: bool) -> None:
        self._numbers[_PREPARING] = int(value)


class _Here:
    page: Page | None = None
    arms: Sequence[str] = ()


def attach(page: Page, arms: Sequence[str]) -> None:
    """Called once by a worker, before anything else here."""
    _Here.page, _Here.arms = page, tuple(arms)


def enter(arm: str | None) -> None:
    """From now on time and faults are this arm's; None: nobody's. An arm that the job does not know counts as nobody."""
    if _Here.page is not None:
        _Here.page.arm = _Here.arms.index(arm) if arm in _Here.arms else None


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
