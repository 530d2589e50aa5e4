"""``litmus report``: the pages, or one Markdown text, from stored runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import runs_named
from harness.declare.catalog import find_root
from harness.errors import LitmusError


def report(
    out: Annotated[Path | None, typer.Option(help="Folder of the pages (default: report/), or the Markdown file "
                                             "(default: standard output).")] = None,
    run: Annotated[list[str] | None, typer.Option(help="Only these runs: path, id or 'latest'.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="One Markdown text instead of pages.")] = False,
    open_page: Annotated[str, typer.Option("--open", help="yes: show it in a browser; no: print its path.")] = "no",
) -> None:
    """Write the report of the stored runs: for each suite the newest run that has it. Opens from disk, offline.

    \b
    Examples:
      litmus report
      litmus report --run latest --out out/report
      litmus report --markdown > verdicts.md
      litmus report --open yes
    """
    if open_page not in ("yes", "no"):
        raise LitmusError("not an answer", where="the command line", key="--open", value=open_page,
                          expected="yes or no", next_step="try: litmus report --open yes")
    root = find_root()
    runs = runs_named(root, run or [])
    if not runs:
        raise LitmusError("there is no stored run to report", where=root / "results", expected="at least one run",
                          next_step="make one with: litmus run --profile smoke")
    if markdown:
        from harness.report.markdown import report as as_markdown

        _write(as_markdown(root, runs), out)
        return
    from harness.report.site import build

    index = build(root, runs, out or root / "report")
    print(f"report: {index}")
    if open_page == "yes":
        typer.launch(index.resolve().as_uri())


def _write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="" if text.endswith("\n") else "\n")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LitmusError("cannot write the report", where=out, value=error.strerror, key="--out",
                          expected="a file that can be written", next_step="choose another --out") from error
    print(f"report: {out}")
