"""The plan as ``litmus run --dry-run`` prints it."""

from __future__ import annotations

from collections import Counter, defaultdict

from rich.console import Console

from harness.plan.cell import Cell
from harness.plan.plan import Plan

_LISTED_CELLS = 60


def print_plan(out: Console, plan: Plan) -> None:
    """One row per experiment, the single cells where they are few, and the skipped ones by reason."""
    from rich.table import Table

    groups: dict[tuple[str, str, str], list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        groups[cell.suite, cell.experiment, cell.device].append(cell)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "kind", "device", "points", "seeds", "arms", "cells", "limit a cell"):
        table.add_column(column, overflow="fold")
    for (suite, experiment, device), cells in groups.items():
        points, seeds = {cell.label for cell in cells}, {cell.seed for cell in cells}
        table.add_row(f"{suite}:{experiment}", cells[0].kind, device, str(len(points)), str(len(seeds)),
                      str(len(cells[0].arms)), str(len(cells)),
                      f"{cells[0].timeout_s:g} s, {cells[0].memory_gib:g} GiB")
    if groups:
        out.print(table)
    if 0 < len(plan.cells) <= _LISTED_CELLS:
        out.print("\ncells:", style="bold")
        for cell in plan.cells:
            out.print(f"  {cell.id}  {cell.label} seed {cell.seed} on {cell.device}", soft_wrap=True)
    reasons = Counter((f"{skip.cell.suite}:{skip.cell.experiment}", skip.reason) for skip in plan.skipped)
    if reasons:
        out.print("\nskipped:", style="bold")
    for (name, reason), count in reasons.items():
        out.print(f"  {count:>5} cells of {name}: {reason}", soft_wrap=True)
    out.print(f"\n{len(plan.cells)} cells to run, {len(plan.skipped)} skipped")
