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


def devices_of(cells: Iterable[Cell]) -> list[str]:
    """The devices that ``cells`` run on, the CPU first."""
    return sorted({cell.device for cell in cells}, key=lambda device: (device != "cpu", device))


class Yardsticks:
    """Runs them through ``engine``; records of the canary go to ``keep`` like any others."""

    def __init__(
        self, engine: Engine, root: Path, keep: Callable[[Record], None], note: Callable[[str], None]
    ) -> None:
        self.engine, self.root, self.keep, self.note = engine, root, keep, note

    def canary(self, occasion: int, devices: Sequence[str] = ("cpu",)) -> None:
        """Time the same function against itself on each of ``devices``."""
        for cell in canary_cells(occasion, devices):
            run_cell(self.engine, self.root, cell, cell.arms, self.keep, self.note)

    def ceilings(self, cells: Sequence[Cell]) -> dict[str, Any]:
        """Bandwidth and FLOP/s of what ``cells`` run on; a part is left out, with a note, where that failed.

        The CPU's are ``threads`` (by the thread counts that the cells use) and ``array_bytes``, those of CUDA devices
        are in ``devices`` by id.
        """
        threads = sorted({cell.point.get("threads", 1) for cell in cells if cell.device == "cpu"}, key=str)
        found = self._measured("the machine's", {"threads": threads}) if threads else {}
        devices = {device: self._measured(f"the {device}'s", {"device": device}) for device in devices_of(cells)
                   if device != "cpu"}
        measured = {device: ceilings for device, ceilings in devices.items() if ceilings}
        return {**found, "devices": measured} if measured else found

    def _measured(self, whose: str, argument: dict[str, Any]) -> dict[str, Any]:
        limits = Limits(arm_s=_CEILINGS_LIMIT_S, startup_s=_CEILINGS_LIMIT_S, memory_bytes=_CEILINGS_BYTES)
        job = Job(task="ceilings", root=str(self.root), limits=limits, argument=argument, fresh="device" in argument)
        results: list[dict[str, Any]] = []
        notes: list[str] = []

        def on_message(message: dict[str, Any]) -> None:
            if message["kind"] == "result":
                results.append(message["value"])
            elif message["kind"] == "note":
                notes.append(message["text"])

        ending = self.engine.execute(job, on_message)
        if ending.status == "cancelled":
            raise Cancelled
        if ending.status != "done" or not results:
            self.note(f"{whose} ceilings could not be measured: {'; '.join(notes) or ending.reason}")
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
        """The noise floor of the run; an alarm where a device finished no canary: its noise is then not known.

        A device that no cell could use at all (its canaries were skipped) has no noise either.
        """
        canaries = Yardsticks.records_in(records)
        tried = [record for record in canaries if record.status != "skipped"]
        for device in {record.device for record in tried} or {"cpu"}:
            mine = [record for record in tried or canaries if record.device == device]
            if not any(record.status == "ok" for record in mine):
                reason = next((record.reason for record in mine if record.reason), "it did not run")
                return {"alarm": True, "reason": f"no canary cell finished on {device}: {reason}"}
        return canary_summary(canaries)
