"""``litmus compare``: two stored runs."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.comparison import finish, known_format
from harness.declare.catalog import Catalog, find_root
from harness.judge.comparison import Outcome


def compare(
    base: Annotated[str, typer.Argument(metavar="A", help="Run of before: path, id, 'latest' or 'baseline'.")],
    head: Annotated[str, typer.Argument(metavar="B", help="Run of after: path, id, 'latest' or 'baseline'.")],
    gate_stored: Annotated[bool, typer.Option(
        "--gate-stored", help="Let times gate, too, though they were taken at different moments.")] = False,
    gate: Annotated[Path | None, typer.Option(help="Thresholds (default: ci/gate.yaml).")] = None,
    output: Annotated[str, typer.Option("--format", help="table, markdown, json or junit.")] = "table",
    out: Annotated[Path | None, typer.Option(help="Write to this file, and a table to standard output.")] = None,
) -> None:
    """Compare two stored runs: accuracy paired by seed, speed as far as two moments of one machine allow.

    Ends with 0 when nothing that gates got worse, 1 for a regression, 3 when nothing could be compared, 4 when B did
    not finish what A did, 5 when a run's A/A canary alarmed.

    \b
    Examples:
      litmus compare baseline latest
      litmus compare 20260131-090500-small latest --format markdown --out out/compare.md
    """
    known_format(output)
    collecting = gc.isenabled()
    gc.disable()  # hundreds of thousands of plain objects without cycles: collecting would take a fifth of the time
    try:
        outcome = _outcome(find_root(), (base, head), gate, gate_stored)
    finally:
        if collecting:
            gc.enable()
    finish(outcome, output, out)


def _outcome(root: Path, names: tuple[str, str], gate: Path | None, gate_stored: bool) -> Outcome:
    from harness.declare.gate import load_gate
    from harness.judge.stored import Side, compare_stored
    from harness.records.store import resolve_pair

    rules = load_gate(root, gate)
    base, head = (Side.load(run) for run in resolve_pair(root, *names))
    cards = {entry.name: entry.card for entry in Catalog(root).entries}
    return compare_stored(base, head, cards, rules, gate_stored)
