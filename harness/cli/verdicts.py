"""``litmus verdicts``: the claims of stored runs, judged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.text import Text

from harness.cli.options import runs_named
from harness.cli.output import console, harmless, number, print_json, tally, verdict_text
from harness.declare.catalog import Catalog, Entry, find_root

Verdict = Mapping[str, Any]


def verdicts(
    suite: Annotated[list[str] | None, typer.Argument(help="Suites or patterns; all by default.")] = None,
    run: Annotated[list[str] | None, typer.Option(help="Only this run: path, id or 'latest'.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Estimates, intervals, thresholds, cells.")] = False,
) -> None:
    """Show the verdict of each claim, from the newest stored run that has its suite, or from the run named.

    With --json each claim carries the estimate, interval, thresholds, n and cells of the part that decided it (the
    first part with the claim's verdict), and every part under "parts".

    \b
    Examples:
      litmus verdicts
      litmus verdicts softmax/* --json
      litmus verdicts galore --run latest
    """
    from harness.records.store import newest_verdicts

    root = find_root()
    entries = [entry for entry, _ in Catalog(root).select(suite or [])]
    found = newest_verdicts(root, runs_named(root, run) if run else None)
    if as_json:
        print_json([_suite_json(entry, found) for entry in entries])
    else:
        print_verdicts([found[key] for entry in entries for key in _keys(entry) if key in found],
                       unjudged=sum(key not in found for entry in entries for key in _keys(entry)))


def _keys(entry: Entry) -> list[tuple[str, str]]:
    return [(entry.name, claim) for claim in entry.card.claim_ids]


def _suite_json(entry: Entry, found: Mapping[tuple[str, str], Verdict]) -> dict[str, Any]:
    claims = [_claim_json(claim, found.get((entry.name, claim))) for claim in entry.card.claim_ids]
    return {"suite": entry.name, "family": entry.family, "title": entry.card.paper.title, "claims": claims}


def _claim_json(claim: str, verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return {"id": claim, "verdict": None, "reason": "no stored run has judged this claim", "parts": [],
                **_part_numbers(None)}
    extra = {key: value for key, value in verdict.items() if key not in ("suite", "claim", "parts")}
    parts = [{**{key: part.get(key) for key in ("id", "experiment", "point", "verdict", "reason")},
              **_part_numbers(part)} for part in verdict["parts"]]
    return {"id": claim, **extra, **_part_numbers(deciding_part(verdict)), "parts": parts}


def _part_numbers(part: Verdict | None) -> dict[str, Any]:
    estimate = (part or {}).get("estimate")
    return {
        "estimate": estimate["point"] if estimate else None,
        "interval": [estimate["low"], estimate["high"]] if estimate else None,
        "level": estimate["level"] if estimate else None,
        "n": estimate["n"] if estimate else None,
        "unit": estimate["unit"] if estimate else None,
        "thresholds": {"supported_if": part["supported_if"], "refuted_if": part["refuted_if"]} if part else None,
        "cells": list(part["cells"]) if part else [],
    }


def deciding_part(verdict: Verdict) -> Verdict | None:
    """The first part whose verdict is the claim's, else the first part; None where there is none."""
    parts: list[Verdict] = list(verdict["parts"])
    return next((part for part in parts if part["verdict"] == verdict["verdict"]), parts[0] if parts else None)


def _interval(estimate: Verdict) -> str:
    low, high = estimate["low"], estimate["high"]  # None where unbounded: JSON has no infinity
    return f"{'-inf' if low is None else number(low)} .. {'inf' if high is None else number(high)}"


def print_verdicts(found: list[Verdict], unjudged: int = 0) -> None:
    """A table of claims with estimate, interval and rule, why those not supported are not, and the counts."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("verdict", "suite", "claim", "estimate", "interval", "n", "supported if"):
        table.add_column(column, overflow="fold", no_wrap=column in ("verdict", "interval"))
    for verdict in found:
        part = deciding_part(verdict) or {}
        estimate = part.get("estimate")
        table.add_row(
            verdict_text(verdict["verdict"]), verdict["suite"], harmless(verdict["claim"]),
            number(estimate["point"]) if estimate else "-",
            _interval(estimate) if estimate else "-",
            str(estimate["n"]) if estimate else "-", harmless(part.get("supported_if") or "-"),
        )
    out = console()
    if found:
        out.print(table)
        out.print()
    for verdict in found:
        if verdict["verdict"] != "supported":
            why = Text(harmless(f" {verdict['claim']}: {verdict['reason']}"), style="default")
            out.print(verdict_text(verdict["verdict"]) + why, soft_wrap=True)
    out.print(tally(verdict["verdict"] for verdict in found))
    if unjudged:
        out.print(f"{unjudged} claims have no stored verdict; run them with: litmus run", style="dim")
