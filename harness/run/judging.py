"""Verdicts, computed in a worker since a custom estimate is suite code; the parent stays free of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.errors import LitmusError
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.records.store import RunInfo, write_records, write_run_info
from harness.run.engine.base import Engine
from harness.run.lanes import Cancelled
from harness.run.protocol import Ending, Job, Limits

_LIMIT_S = 1800.0
Verdicts = list[dict[str, Any]]


def judge_folder(engine: Engine, root: Path, folder: Path, memory_bytes: int) -> Verdicts:
    """Judge the finished run in ``folder``; verdicts.json is written there.

    Raises Cancelled when the engine is cancelled, LitmusError where the claims cannot be judged.
    """
    verdicts, ending = _judge(engine, root, folder, memory_bytes)
    if verdicts is None:
        raise LitmusError("the records are safe, but the claims could not be judged", where=folder,
                          value=ending.last_words,
                          next_step=f"mend it, then: litmus run --resume {folder}")
    return verdicts


class EarlyVerdicts:
    """Judges a suite as soon as its last cell is done, for whoever watches; the verdicts that count come at the end."""

    def __init__(self, engine: Engine, root: Path, memory_bytes: int, cells: Iterable[Cell]) -> None:
        self._engine, self._root, self._memory_bytes = engine, root, memory_bytes
        self._left: Counter[str] = Counter(cell.suite for cell in cells)
        self._timing = True

    def timing_is_over(self) -> list[str]:
        """From now on the machine need not be quiet; the suites that are complete by now."""
        self._timing = False
        return [suite for suite, left in self._left.items() if left == 0]

    def finished(self, cell: Cell) -> str | None:
        """Count a cell that ended; its suite, where that was the last one and the timing lane is over."""
        self._left[cell.suite] -= 1
        return cell.suite if self._left[cell.suite] == 0 and not self._timing else None

    def judge(
        self, suite: str, info: RunInfo, records: Iterable[Record], tell: Callable[[Mapping[str, Any]], None]
    ) -> None:
        """Tell the verdicts of one complete suite; what cannot be judged now is left to the end."""
        cards = {name: state for name, state in info.cards.items() if name == suite}
        with tempfile.TemporaryDirectory(prefix="litmus-") as name:
            folder = Path(name)
            write_run_info(folder, info.model_copy(update={"cards": cards}))
            write_records(folder, [record for record in records if record.suite == suite])
            verdicts, _ = _judge(self._engine, self._root, folder, self._memory_bytes)
        for verdict in verdicts or []:
            tell(verdict)


def _judge(engine: Engine, root: Path, folder: Path, memory_bytes: int) -> tuple[Verdicts | None, Ending]:
    limits = Limits(arm_s=_LIMIT_S, startup_s=_LIMIT_S, memory_bytes=memory_bytes)
    job = Job(task="judge", root=str(root), limits=limits, argument={"folder": str(folder)})
    results: list[Verdicts] = []
    ending = engine.execute(job, lambda message: results.append(message["value"]))
    if ending.status == "cancelled":
        raise Cancelled
    return (results[0] if ending.status == "done" else None), ending
