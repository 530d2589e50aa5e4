"""Where the jobs of both sides run: one preloaded process for both, or one for each environment."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import harness
from harness.run.engine.base import OnMessage
from harness.run.engine.local import LocalEngine
from harness.run.protocol import Ending, Job

_OURS = ("harness", "reference", "suites")
_KEPT_CODE_S = 14 * 86400.0


def new_engine(folder: Path, slots: int, preload: Iterable[str] = (), python: Path | None = None) -> LocalEngine:
    """One zygote for both sides, so that equal code finds an equal process: the same addresses, the same heap.

    It imports installed libraries and this harness alone; suites and what they import come from each job's own root.
    Machine code that Numba keeps in ``folder`` outlives the worktrees, whose names hold their commits. ``python`` is
    another environment's interpreter, whose machine code is kept apart.
    """
    place = folder / "harness-only"
    place.mkdir(parents=True, exist_ok=True)
    link, target = place / "harness", Path(harness.__file__).resolve().parent
    if link.resolve() != target:
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    code = folder.resolve() / "numba" / ("" if python is None else python.parents[1].name)
    return LocalEngine(place, slots, preload, _setting(folder.resolve(), code), python)


def _setting(folder: Path, code: Path) -> dict[str, str]:
    theirs = [place for place in os.environ.get("PYTHONPATH", "").split(os.pathsep)
              if place and not any((Path(place) / name).exists() for name in _OURS)]
    for path in (folder / "numba").rglob("*.nb?"):
        if path.stat().st_mtime < time.time() - _KEPT_CODE_S:
            path.unlink(missing_ok=True)
    return {"PYTHONPATH": os.pathsep.join([str(folder / "harness-only"), *theirs]), "NUMBA_CACHE_DIR": str(code)}


class TwoEngines:
    """A local engine for each side's environment; a job goes to the one of its project. A context manager."""

    def __init__(self, engines: Mapping[Path, LocalEngine]) -> None:
        self._engines = {str(root): engine for root, engine in engines.items()}
        self.slots = min(engine.slots for engine in engines.values())
        self._stack = ExitStack()

    def __enter__(self) -> TwoEngines:
        for engine in self._engines.values():
            self._stack.enter_context(engine)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def warm(self) -> None:
        """Start both zygotes without waiting for them."""
        for engine in self._engines.values():
            engine.warm()

    def execute(self, job: Job, on_message: OnMessage) -> Ending:
        """See :class:`harness.run.engine.base.Engine`."""
        return self._engines[job.root].execute(job, on_message)

    def ready(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        for engine in self._engines.values():
            engine.ready()

    def cancel(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        for engine in self._engines.values():
            engine.cancel()

    def close(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        for engine in self._engines.values():
            engine.close()
