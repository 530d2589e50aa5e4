"""``litmus ls``: the suites and the verdicts of their claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.options import runs_named
from harness.cli.output import console, print_json, tally
from harness.declare.catalog import Catalog, Entry, find_root
from harness.errors import LitmusError, did_you_mean


def ls(
    family: Annotated[str | None, typer.Option(help="Only the suites of this family.")] = None,
    run: Annotated[list[str] | None, typer.Option(help="Take verdicts from this run: path, id or 'latest'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list for programs.")] = False,
) -> None:
    """List the suites, each with its claims' verdicts from the newest stored run that has it.

    \b
    Examples:
      litmus ls
      litmus ls --family softmax
      litmus ls --json
      litmus ls --run latest
    """
    root = find_root()
    entries = _of_family(Catalog(root), family)
    found = verdict_words(root, run or [])
    rows, broken = [], []
    for entry in entries:
        try:
            rows.append(_row(entry, found))
        except LitmusError as refusal:
            broken.append(refusal)
    if as_json:
        print_json(rows)
    else:
        _print_table(rows)
    if broken:  # the good cards are listed all the same; the first bad one is explained
        raise broken[0]


def verdict_words(root: Path, runs: list[str]) -> dict[tuple[str, str], str]:
    """(suite, claim id) -> verdict word, from the newest stored runs or from the runs named."""
    from harness.records.store import newest_verdicts

    newest = newest_verdicts(root, runs_named(root, runs) if runs else None)
    return {key: str(verdict["verdict"]) for key, verdict in newest.items()}


def _of_family(catalog: Catalog, family: str | None) -> list[Entry]:
    entries = [entry for entry in catalog if family in (None, entry.family)]
    if family is not None and not entries:
        raise LitmusError("no such family", where="the command line", key="--family", value=family,
                          expected=did_you_mean(family, {entry.family for entry in catalog}),
                          next_step="list all suites with: litmus ls")
    return entries


def _row(entry: Entry, found: dict[tuple[str, str], str]) -> dict[str, Any]:
    claims = [{"id": claim, "verdict": found.get((entry.name, claim))} for claim in entry.card.claim_ids]
    return {"suite": entry.name, "family": entry.family, "title": entry.card.paper.title, "claims": claims}


def _print_table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("suite", "paper", "claims", "verdicts"):
        table.add_column(column, overflow="fold", justify="right" if column == "claims" else "left")
    for row in rows:
        words = [claim["verdict"] for claim in row["claims"]]
        table.add_row(row["suite"], row["title"], str(len(words)), tally(words))
    out = console()
    out.print(table)
    total = sum(len(row["claims"]) for row in rows)
    out.print(f"\n{len(rows)} suites, {total} claims. One suite in full: litmus show SUITE", style="dim")
