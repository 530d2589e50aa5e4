"""How ``litmus ab`` and ``litmus compare`` give what they found: four formats, one exit code."""

from __future__ import annotations

from pathlib import Path

import typer

from harness.cli.output import console
from harness.errors import LitmusError, did_you_mean
from harness.judge.comparison import Outcome

FORMATS = ("table", "markdown", "json", "junit")


def known_format(name: str) -> str:
    """``name`` where it is one of :data:`FORMATS`. Raises LitmusError with the nearest."""
    if name not in FORMATS:
        raise LitmusError("no such format", where="the command line", key="--format", value=name,
                          expected=f"{', '.join(FORMATS)}; {did_you_mean(name, FORMATS)}",
                          next_step="leave --format out for a table")
    return name


def finish(outcome: Outcome, output: str, out: Path | None) -> None:
    """Write the outcome to ``out`` (else standard output) and leave with its exit code.

    With a file, the table is printed all the same, so that a log of CI shows what was found. Raises LitmusError where
    the file cannot be written.
    """
    from harness.report.compare_text import render

    if out is not None:
        _write(out, text_of(outcome, output))
    if out is not None or output == "table":
        console().print(render(outcome))
    else:
        print(text_of(outcome, output), end="")
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def text_of(outcome: Outcome, output: str) -> str:
    """The outcome in one of :data:`FORMATS` as text; a table is as wide as a file needs it."""
    import json

    from harness.records.store import finite
    from harness.report import compare_junit, compare_markdown, compare_text

    if output == "markdown":
        return compare_markdown.render(outcome)
    if output == "junit":
        return compare_junit.render(outcome)
    if output == "json":
        return json.dumps(finite(outcome.to_dict()), indent=1, allow_nan=False) + "\n"
    from io import StringIO

    from rich.console import Console

    page = StringIO()
    Console(file=page, width=200, markup=False, highlight=False, emoji=False).print(compare_text.render(outcome))
    return page.getvalue()


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LitmusError("cannot write the file", where=out, value=error.strerror, key="--out",
                          expected="a place that can be written", next_step="choose another --out") from error
