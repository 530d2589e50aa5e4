"""``litmus repro``: one cell again, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.text import Text

from harness.cli.output import console, number
from harness.declare.catalog import find_root
from harness.errors import WRONG_OR_CRASHED


def repro(
    cell: Annotated[str, typer.Argument(help="A cell's id (16 hex digits) or its label.")],
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm; may be repeated.")] = None,
) -> None:
    """Run one cell again, attached to this terminal: its output, its traceback and a debugger all work.

    There is no limit of time or memory. Ends with 4 when an arm is not ok.

    \b
    Examples:
      litmus repro 3f2a9c0d1e4b5a67
      litmus repro 'two_pass_softmax:throughput[n=4096,threads=1]' --arm online
    """
    from harness.run.repro import repro as run_again

    records = run_again(find_root(), cell, tuple(arm or ()))
    out = console()
    for record in records:
        numbers = ", ".join(f"{name} {number(value)}" for name, value in record.metrics.items()
                            if isinstance(value, int | float))
        good = record.status in ("ok", "skipped")
        out.print(Text(f"{record.status:<9}", style="green" if good else "red")
                  + Text(f" {record.arm}  {record.reason or numbers}"), soft_wrap=True)
    if any(record.status not in ("ok", "skipped") for record in records):
        raise typer.Exit(WRONG_OR_CRASHED)
