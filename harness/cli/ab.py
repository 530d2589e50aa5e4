"""``litmus ab``: two revisions measured against each other on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.comparison import finish, known_format
from harness.cli.options import parse_budget, parse_profile
from harness.cli.output import error_console
from harness.declare.catalog import find_root
from harness.declare.gate import load_gate

INTERRUPTED = 130
_LINE_EVERY_S = 1.0


def ab(
    base: Annotated[str, typer.Argument(help="The revision to compare with: branch, tag or commit.")],
    head: Annotated[str, typer.Argument(help="The revision in question; '.' is the working tree with its changes.")],
    selectors: Annotated[list[str] | None, typer.Argument(
        help="SUITE[:EXPERIMENT[AXIS=VALUE,...]], patterns allowed; everything by default.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also cells whose code did not change.")] = False,
    profile: Annotated[str, typer.Option(help="smoke, small or full.")] = "smoke",
    budget: Annotated[str, typer.Option(help="Bound of the timing, such as 3m; trials come on top.")] = "3m",
    output: Annotated[str, typer.Option("--format", help="table, markdown, json or junit.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write it to this file, too.")] = None,
    install: Annotated[bool, typer.Option("--install", help="Give each side the libraries that it asks for.")] = False,
) -> None:
    """Compare two revisions: times measured in turns on this machine, accuracy paired by seed, oracles first.

    Both revisions are measured by this harness. What did not change is left out. Thresholds: ci/gate.yaml.
    Ends with 0 when nothing got worse, 1 for a regression, 3 when nothing was comparable, 4 when the head crashes or is
    wrong where the base is right, 5 when equal code did not take equal time.

    \b
    Examples:
      litmus ab main HEAD
      litmus ab HEAD . two_pass_softmax
      litmus ab v1.0 main 'softmax/*' --profile small --budget 20m
      litmus ab main HEAD --format markdown --out comparison.md
      litmus ab v1.0 main --install
    """
    from harness.run.ab.session import AbOptions, compare_revisions
    from harness.run.lanes import Cancelled

    root = find_root()
    options = AbOptions(tuple(selectors or ()), everything, parse_profile(profile), parse_budget(budget) or 0.0,
                        load_gate(root), install=install)
    known_format(output)
    try:
        outcome = compare_revisions(root, base, head, options, PlainSteps())
    except (Cancelled, KeyboardInterrupt):
        error_console().print("interrupted: nothing was kept")
        raise typer.Exit(INTERRUPTED) from None
    finish(outcome, output, out)


class PlainSteps:
    """A line for a step on standard error, about one a second at most; on a terminal each replaces the last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.out = error_console()
        self._clock = clock
        self._printed_s = float("-inf")

    def note(self, text: str) -> None:
        """A line of its own."""
        self._clear()
        self.out.print(text, soft_wrap=True)

    def step(self, done: int, total: int, text: str) -> None:
        """``[3/12] what happened``."""
        now_s = self._clock()
        last = done == total
        if now_s - self._printed_s < _LINE_EVERY_S and not last:
            return
        self._printed_s = now_s
        line = f"[{done}/{total}] {text}"
        if self.out.is_terminal:
            self._clear()
            self.out.print(line[: self.out.width - 1], end="\n" if last else "\r", no_wrap=True)
        else:
            self.out.print(line, soft_wrap=True)

    def _clear(self) -> None:
        if self.out.is_terminal:
            self.out.print(" " * (self.out.width - 1), end="\r")
