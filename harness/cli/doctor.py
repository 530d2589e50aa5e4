"""``litmus doctor``: what on this machine would spoil a measurement, and what to do about it."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Annotated

import typer

from harness.cli.output import console, print_json
from harness.declare.catalog import find_root
from harness.plan.machine import this_machine

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "unknown": "dim"}
_ORDER = ("warning", "note", "unknown", "ok")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False) -> None:
    """Look for what would spoil a measurement here: clocks, load, neighbours, memory, missing libraries.

    Only looks, changes nothing, and always ends with 0: a finding is advice, not a failure.

    \b
    Examples:
      litmus doctor
      litmus doctor --json
    """
    from harness.run.doctor import examine

    machine = this_machine()
    findings = examine(machine, find_root(), time.sleep)
    if as_json:
        print_json({"machine": machine.to_dict(), "findings": [asdict(finding) for finding in findings]})
        return
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(machine.key, style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "check", "seen", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in sorted(findings, key=lambda item: _ORDER.index(item.severity)):
        severity = Text(finding.severity, style=_STYLES[finding.severity])
        table.add_row(severity, finding.check, finding.seen, finding.advice)
    out.print(table)
    warnings = sum(finding.severity == "warning" for finding in findings)
    out.print(f"\n{warnings} warnings" if warnings else "\nnothing here would spoil a measurement",
              style="yellow" if warnings else "green")
