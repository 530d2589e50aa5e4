"""How far a run is: pure bookkeeping behind both displays."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.plan.cell import Cell
    from harness.records.record import Record

# The first of these among a cell's records is the cell's word.
_WORST_FIRST = ("crashed", "oom", "timeout", "wrong", "throttled", "skipped", "ok")


@dataclass
class Tally:
    """Counts of one run's cells. ``waiting`` maps the ids of cells that have not finished to (suite, experiment)."""

    total: int = 0
    done: int = 0
    running: dict[str, tuple[str, float]] = field(default_factory=dict)
    waiting: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[str] = field(default_factory=Counter)
    failures: list[Record] = field(default_factory=list)
    verdicts: dict[tuple[str, str], Mapping[str, Any]] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _records: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def planned(self, cells: Sequence[Cell], skipped: Sequence[Cell] = ()) -> None:
        """Count ``cells`` too (a search plans in several steps); ``skipped`` ones only leave records."""
        self._known |= {cell.id for cell in (*cells, *skipped)}
        self.waiting |= {cell.id: (cell.suite, cell.experiment) for cell in cells}
        self.total = self.done + len(self.waiting)

    def started(self, cell: Cell, now_s: float) -> None:
        """``cell`` runs since ``now_s``."""
        self.running[cell.id] = (cell.label, now_s)

    def recorded(self, record: Record) -> None:
        """One arm's record arrived; those of the run's own yardsticks are not counted."""
        if record.cell not in self._known:
            return
        self.statuses[record.status] += 1
        self._records[record.cell].append(record.status)
        if record.cell in self.waiting and record.cell not in self.running:
            del self.waiting[record.cell]
            self.total -= 1  # dropped before it started: by the budget, or because an oracle disagreed
        if record.status not in ("ok", "skipped"):
            self.failures.append(record)

    def finished(self, cell: Cell, seconds: float) -> str:
        """``cell`` ended after ``seconds``; its status word."""
        key = (cell.suite, cell.experiment)
        self.running.pop(cell.id, None)
        self.done += 1
        self.waiting.pop(cell.id, None)
        self.seconds[key].append(seconds)
        found = self._records.pop(cell.id, [])
        return next((status for status in _WORST_FIRST if status in found), "no record")

    def judged(self, verdict: Mapping[str, Any]) -> None:
        """A claim's verdict; a later one replaces an earlier one."""
        self.verdicts[verdict["suite"], verdict["claim"]] = verdict

    def left_s(self, elapsed_s: float) -> float | None:
        """Expected seconds to the end, None before the first cell finished.

        Each waiting cell is expected to take its experiment's mean (the overall mean where none finished yet), and
        cells to overlap as much as they did so far.
        """
        spent = [value for values in self.seconds.values() for value in values]
        if not spent:
            return None
        overall = sum(spent) / len(spent)
        mean = {key: sum(values) / len(values) for key, values in self.seconds.items()}
        ahead = sum(mean.get(key, overall) for key in self.waiting.values())
        overlap = min(1.0, elapsed_s / sum(spent)) if sum(spent) > 0 else 1.0
        return ahead * overlap
