"""What a run shows while it goes on: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console, Group, RenderableType
from rich.text import Text

from harness.cli.output import console, number, seconds, tally, verdict_text
from harness.cli.tally import Tally

if TYPE_CHECKING:
    from rich.live import Live

    from harness.plan.cell import Cell
    from harness.plan.plan import Plan
    from harness.records.record import Record

_STATUS_STYLE = {"ok": "green", "skipped": "dim", "throttled": "yellow"}
_LINE_EVERY_S = 1.0
_SHOWN_RUNNING = 4
_SHOWN_VERDICTS = 12


class PlainProgress:
    """One line for each finished cell, at most about one a second while all goes well; trouble is always printed.

    ``quiet`` leaves out the lines of cells that went well.
    """

    def __init__(self, out: Console, *, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = out
        self.tally = Tally()
        self._clock = clock
        self._began_s = clock()
        self._printed_s = float("-inf")
        self._held_back = 0
        self._quiet = quiet

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def planned(self, plan: Plan) -> None:
        """The plan is made."""
        self.tally.planned(plan.cells, [skip.cell for skip in plan.skipped])
        self._began_s = self._clock()
        if not self._quiet:
            self._say(f"{len(plan.cells)} cells to run, {len(plan.skipped)} skipped")

    def started(self, cell: Cell) -> None:
        """A cell's process starts."""
        self.tally.started(cell, self._clock())

    def recorded(self, record: Record) -> None:
        """One arm's record is safe in the journal."""
        self.tally.recorded(record)

    def finished(self, cell: Cell, seconds: float) -> None:
        """A cell ended, however it ended."""
        status = self.tally.finished(cell, seconds)
        self._cell_line(cell, status, seconds)

    def judged(self, verdict: Mapping[str, Any]) -> None:
        """A claim has a verdict."""
        self.tally.judged(verdict)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._say(text)

    def done(self, result: object) -> None:
        """The run is over; the command prints the summary."""

    def _cell_line(self, cell: Cell, status: str, cell_s: float) -> None:
        now_s = self._clock()
        good = status in ("ok", "skipped")
        last = self.tally.done == self.tally.total
        if good and (self._quiet or (now_s - self._printed_s < _LINE_EVERY_S and not last)):
            self._held_back += 1
            return
        width = len(str(self.tally.total))
        more = f" (and {self._held_back} more)" if self._held_back and not self._quiet else ""
        self._say(f"[{self.tally.done:>{width}}/{self.tally.total}] {status:<9} {cell.label} seed {cell.seed}"
                  f" {seconds(cell_s)}{more}{self._eta(now_s)}")
        self._printed_s, self._held_back = now_s, 0

    def _eta(self, now_s: float) -> str:
        left_s = self.tally.left_s(now_s - self._began_s)
        return f", about {seconds(left_s)} left" if left_s else ""

    def _say(self, text: str) -> None:
        self.out.print(text, soft_wrap=True)


class LiveProgress(PlainProgress):
    """A table that is redrawn in place: done, running, left, ETA, verdicts so far; trouble scrolls by above it."""

    def __init__(self, out: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(out, clock=clock)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(console=self.out, get_renderable=self.table, refresh_per_second=4, transient=True)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _cell_line(self, cell: Cell, status: str, cell_s: float) -> None:
        if status not in ("ok", "skipped"):
            line = Text(f"{status:<9}", style=_STATUS_STYLE.get(status, "red"))
            self.out.print(line + Text(f" {cell.label} seed {cell.seed} {seconds(cell_s)}"))

    def table(self) -> RenderableType:
        """The picture now."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        now_s, state = self._clock(), self.tally
        left_s = state.left_s(now_s - self._began_s)
        head = Table.grid(padding=(0, 2))
        for name in ("done", "running", "left", "elapsed", "eta"):
            head.add_column(name)
        head.add_row("done", "running", "left", "elapsed", "eta", style="dim")
        head.add_row(
            f"{state.done}/{state.total}", str(len(state.running)),
            str(max(0, state.total - state.done - len(state.running))), seconds(now_s - self._began_s),
            "-" if left_s is None else seconds(left_s),
        )
        bar = Table.grid()  # a bar alone does not end its line
        bar.add_row(ProgressBar(total=max(1, state.total), completed=state.done, width=60))
        rows: list[RenderableType] = [bar, head]
        for label, since_s in list(state.running.values())[:_SHOWN_RUNNING]:
            rows.append(Text(f"  {label}  {seconds(now_s - since_s)}", style="dim"))
        if state.statuses:
            counts = ", ".join(f"{count} {word}" for word, count in state.statuses.most_common())
            rows.append(Text(f"records: {counts}"))
        if state.verdicts:
            rows.append(Text("verdicts so far: ") + tally(row["verdict"] for row in state.verdicts.values()))
            rows += [verdict_text(row["verdict"]) + Text(f" {row['suite']} {row['claim']}")
                     for row in list(state.verdicts.values())[-_SHOWN_VERDICTS:]]
        return Group(*rows)


def progress_for(*, quiet: bool = False) -> PlainProgress:
    """The display that fits standard output."""
    out = console()
    return LiveProgress(out) if out.is_terminal and not quiet else PlainProgress(out, quiet=quiet)


def print_failures(out: Console, failures: list[Record], most: int = 10) -> None:
    """The arms that did not end well, each with its reason and the line that runs it again."""
    for record in failures[:most]:
        error = "" if record.error is None else f" (error {number(record.error)}, tolerance {number(record.tolerance)})"
        out.print(Text(record.status, style="red") + Text(f" {record.suite}:{record.experiment} {record.arm}{error}: "
                                                          f"{record.reason or 'no reason given'}"))
        if record.repro:
            out.print(f"  {record.repro}", style="dim")
    if len(failures) > most:
        out.print(f"and {len(failures) - most} more; all are on the report's failures page", style="dim")
