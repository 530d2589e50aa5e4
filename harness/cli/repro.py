"""``litmus repro``: one stored cell again, in the foreground."""

from __future__ import annotations

from typing import Annotated

import typer

from harness.declare.catalog import find_root


def repro(cell: Annotated[str, typer.Argument(help="A cell's id (16 hex digits) or its label.")]) -> None:
    """Run one stored cell again, attached to this terminal: its output, its traceback, a debugger all work.

    \b
    Examples:
      litmus repro 3f2a9c0d1e4b5a67
      litmus repro 'two_pass_softmax:throughput[n=4096,threads=1]'
    """
    from harness.run.repro import repro as run_again

    run_again(find_root(), cell)
