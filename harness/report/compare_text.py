"""A comparison for the terminal: alarms, a table with the worst first, the counts."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from harness.judge.comparison import Comparison, Outcome
from harness.report.compare_words import (
    basis_text,
    change_text,
    counts,
    headline,
    interval_text,
    is_change,
    plain,
    where_text,
    worst_first,
    zone_text,
)

STYLES = {"slower": "red", "worse": "red", "faster": "green", "better": "green", "same": "", "inconclusive": "yellow",
          "incomparable": "dim"}
_MOST_ROWS = 60


def render(outcome: Outcome, *, most_rows: int = _MOST_ROWS) -> RenderableType:
    """The comparison as a rich renderable.

    Its rows are what changed and what gates but could not be told; others, and those beyond ``most_rows``, are counted.
    """
    parts: list[RenderableType] = [Text(f"{plain(outcome.base)} → {plain(outcome.head)}", style="bold")]
    parts += [Text(f"alarm: {plain(alarm, 600)}", style="bold red") for alarm in outcome.alarms]
    parts += [Text(plain(note, 600)) for note in outcome.notes]
    rows = [item for item in worst_first(outcome.comparisons)
            if is_change(item) or (item.gates and item.verdict == "inconclusive")]
    if rows:
        parts += ["", _table(rows[:most_rows])]
    if len(rows) > most_rows:
        parts.append(Text(f"{len(rows) - most_rows} more rows: see --format markdown or json", style="dim"))
    parts += ["", Text(counts(outcome.comparisons))]
    parts.append(Text(headline(outcome), style="green" if outcome.exit_code == 0 else "bold red"))
    return Group(*parts)


def _table(rows: list[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("verdict", "where", "arm", "metric", "change", "interval", "n", "zone", "why"):
        table.add_column(column, overflow="fold", no_wrap=column in ("verdict", "change", "interval", "zone"))
    for item in rows:
        word = Text(item.verdict + ("" if item.gates or item.verdict == "incomparable" else " (not gating)"),
                    style=STYLES[item.verdict] if item.reason != "head_status" else "red")
        why = f"{item.reason}: {item.detail}" if item.detail else item.reason
        cells = (where_text(item), plain(item.arm), plain(item.metric), change_text(item), interval_text(item),
                 basis_text(item), zone_text(item), plain(why, 300))
        table.add_row(word, *(Text(cell) for cell in cells))
    return table
