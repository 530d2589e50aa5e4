"""What a timing lane is held against: the A/A canary around it, and what the machine can do at most."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run.engine.base import Engine
from harness.run.lanes import Cancelled, run_cell
from harness.run.measure.canary import NAME, canary_cells, canary_summary
from harness.run.protocol import Job, Limits

_CEILINGS_LIMIT_S = 300.0
_CEILINGS_BYTES = 8 * 2**30


class Yardsticks:
    """Runs them through ``engine``; records of the canary go to ``keep`` like any others."""

    def __init__(
        self, engine: Engine, root: Path, keep: Callable[[Record], None], note: Callable[[str], None]
    ) -> None:
        self.engine, self.root, self.keep, self.note = engine, root, keep, note

    def canary(self, occasion: int) -> None:
        """Time the same function against itself."""
        for cell in canary_cells(occasion):
            run_cell(self.engine, self.root, cell, cell.arms, self.keep, self.note)

    def ceilings(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Bandwidth and FLOP/s for the thread counts that ``cells`` use; {} with a note where that failed."""
        threads = sorted({cell.point.get("threads", 1) for cell in cells}, key=str)
        limits = Limits(arm_s=_CEILINGS_LIMIT_S, startup_s=_CEILINGS_LIMIT_S, memory_bytes=_CEILINGS_BYTES)
        job = Job(task="ceilings", root=str(self.root), limits=limits, argument={"threads": threads})
        results: list[dict[str, Any]] = []
        ending = self.engine.execute(job, lambda message: results.append(message["value"]))
        if ending.status == "cancelled":
            raise Cancelled
        if ending.status != "done":
            self.note(f"the machine's ceilings could not be measured: {ending.reason}")
            return {}
        return results[0]

    @staticmethod
    def records_in(records: Iterable[Record]) -> list[Record]:
        """The canary's records."""
        return [record for record in records if record.suite == NAME]

    @staticmethod
    def cells_in(records: Iterable[Record]) -> set[str]:
        """The canary's cells."""
        return {record.cell for record in Yardsticks.records_in(records)}

    @staticmethod
    def next_occasion(records: Iterable[Record]) -> int:
        """0 in a new run; in a resumed one, the first number no canary has used."""
        return max((record.seed for record in Yardsticks.records_in(records)), default=-1) + 1

    @staticmethod
    def summary(records: Iterable[Record]) -> dict[str, Any]:
        """The noise floor of the run; an alarm where no canary finished, for then nothing is known about the noise."""
        canaries = Yardsticks.records_in(records)
        if not any(record.status == "ok" for record in canaries):
            reason = next((record.reason for record in canaries if record.reason), "it did not run")
            return {"alarm": True, "reason": f"no canary cell finished: {reason}"}
        return canary_summary(canaries)
