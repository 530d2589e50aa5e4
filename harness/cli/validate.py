"""``litmus validate``: the contract tests for an author."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from harness.cli.output import console
from harness.cli.progress import progress_for
from harness.declare.catalog import Catalog, find_root
from harness.errors import USAGE, WRONG_OR_CRASHED, LitmusError

_PASSED, _SLOW, _FAILED = Text("passed", style="green"), Text("slow  ", style="yellow"), Text("failed", style="red")


def validate(
    suite: Annotated[list[str] | None, typer.Argument(help="Suites or patterns; all by default.")] = None,
    any_pace: Annotated[bool, typer.Option(
        "--any-pace", help="A smoke run over its budget is a warning only: for busy machines.")] = False,
) -> None:
    """Test suites as their author should: card, functions, oracle, smoke run, determinism, every claim computable.

    Ends with 0 when all checks pass, 2 when a card or suite cannot be read, 4 when a check fails.

    \b
    Examples:
      litmus validate two_pass_softmax
      litmus validate 'quantization/*'
      litmus validate --any-pace
    """
    from harness.run.validate import PACE
    from harness.run.validate import validate as validate_suite

    root = find_root()
    out = console()
    failed, unreadable = 0, 0
    for entry, _ in Catalog(root).select(suite or []):
        out.print(entry.name, style="bold")
        try:
            with progress_for(quiet=True) as progress:
                checks = validate_suite(root, entry.name, progress)
        except LitmusError as refusal:
            unreadable += 1
            _print_check(out, _FAILED, "card or suite", str(refusal))
            continue
        for check in checks:
            word = _PASSED if check.ok else _SLOW if any_pace and check.name == PACE else _FAILED
            failed += word is _FAILED
            _print_check(out, word, check.name, check.detail)
    if unreadable or failed:
        out.print(f"\n{failed} checks failed, {unreadable} suites could not be read", style="red")
        raise typer.Exit(USAGE if unreadable else WRONG_OR_CRASHED)
    out.print("\nall checks passed", style="green")


def _print_check(out: Console, word: Text, name: str, detail: str) -> None:
    out.print(Text("  ") + word + Text(f"  {name:<22}  ") + Text(detail.replace("\n", "\n" + " " * 12)), soft_wrap=True)
