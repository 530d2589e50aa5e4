"""``litmus merge``: runs made on several machines in one report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.output import console, print_json
from harness.declare.catalog import find_root
from harness.errors import LitmusError

if TYPE_CHECKING:
    from harness.judge.side_by_side import SideBySide
    from harness.records.store import Run


def merge(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Runs, or folders with runs in them.")],
    out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("report-merged"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON and write no page.")] = False,
) -> None:
    """Join runs of several machines into one report, the machines side by side.

    Every verdict stays that of its own machine. Runs of other profiles, cards, code or data are refused.

    \b
    Examples:
      litmus merge results/amd-epyc-2c-24g-1a2b3c results/xeon-64c-512g-4d5e6f
      litmus merge a/results b/results --out out/both
    """
    from harness.judge.side_by_side import side_by_side

    runs = [run for folder in folders for run in _runs_in(folder)]
    table = side_by_side(list({run.folder.resolve(): run for run in runs}.values()))
    if as_json:
        print_json({"machines": table.machines, "notes": table.notes, "claims": [
            {"suite": row.suite, "claim": row.claim, "same": row.agrees,
             "verdicts": dict(zip(table.machines, row.words, strict=True))} for row in table.rows]})
        return
    from harness.report.site import build

    index = build(find_root(), table.runs, out, table)
    _say(table)
    print(f"report: {index.with_name('machines.html')}")


def _say(table: SideBySide) -> None:
    count, shared = len(table.machines), len(table.shared)
    out = console()
    out.print(f"{count} machine{'s' if count != 1 else ''}, {len(table.rows)} claims, {shared} on more than one: "
              f"{shared - len(table.differing)} with the same verdict, {len(table.differing)} not")
    for note in table.notes:
        out.print(f"differs: {note}", soft_wrap=True)
    for row in table.differing:
        said = ", ".join(f"{word} on {machine}" for machine, word in zip(table.machines, row.words, strict=True))
        out.print(f"  {row.suite} {row.claim}: {said}", soft_wrap=True)


def _runs_in(folder: Path) -> list[Run]:
    """The run in ``folder``, or all runs up to two levels below it, as below ``results/``."""
    from harness.records.store import RUN_FILE, Run

    found = [path.parent for pattern in (RUN_FILE, f"*/{RUN_FILE}", f"*/*/{RUN_FILE}") for path in folder.glob(pattern)]
    if not found:
        raise LitmusError("there is no run here", where=folder, expected="a run's folder, or one with runs in it",
                          next_step="see the stored runs below results/")
    return [Run(path) for path in sorted(found)]
