"""What a run tells while it goes on. The CLI draws it; here is only what it must understand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from harness.plan.cell import Cell
    from harness.plan.plan import Plan
    from harness.records.record import Record


class Progress(Protocol):
    """Called by the session, from one thread at a time."""

    def planned(self, plan: Plan) -> None:
        """The plan is made; ``plan.cells`` are those still to run."""

    def started(self, cell: Cell) -> None:
        """A cell's first worker is asked for."""

    def recorded(self, record: Record) -> None:
        """One arm's record is safe in the journal."""

    def finished(self, cell: Cell, seconds: float) -> None:
        """A cell ended, however it ended, after ``seconds`` of wall time."""

    def judged(self, verdict: Mapping[str, Any]) -> None:
        """A claim has a verdict."""

    def note(self, text: str) -> None:
        """One sentence the user should see."""

    def done(self, result: Any) -> None:
        """The run is over."""


class Silent:
    """Tells nothing and keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def planned(self, plan: Plan) -> None:
        """Nothing to show."""

    def started(self, cell: Cell) -> None:
        """Nothing to show."""

    def recorded(self, record: Record) -> None:
        """Nothing to show."""

    def finished(self, cell: Cell, seconds: float) -> None:
        """Nothing to show."""

    def judged(self, verdict: Mapping[str, Any]) -> None:
        """Nothing to show."""

    def note(self, text: str) -> None:
        """Kept in ``notes``."""
        self.notes.append(text)

    def done(self, result: Any) -> None:
        """Nothing to show."""
