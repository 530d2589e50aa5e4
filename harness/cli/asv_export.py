"""``litmus asv-export``: stored runs as asv's history."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.options import runs_named
from harness.declare.catalog import find_root
from harness.errors import LitmusError


def asv_export(
    runs: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help="Path, id or 'latest'. Default: all.",
                                                     show_default=False)] = None,
    out: Annotated[Path | None, typer.Option(help="asv's results_dir (default: results/asv).")] = None,
) -> None:
    """Write stored runs in asv's format: times with their intervals, errors, bytes, and metrics that are better lower.

    'asv publish' then draws their history, commit by commit. Runs of changed files or of commits that this repository
    has not are left out, and named. Results that asv measured itself stay.

    \b
    Examples:
      litmus asv-export
      litmus asv-export latest --out results/asv
      litmus asv-export && asv publish && asv preview
    """
    from harness.adapters.asv_files import export

    root = find_root()
    chosen = runs_named(root, runs or [])
    folder = out or root / "results" / "asv"
    done = export(root, chosen, folder)
    for run, reason in done.left_out:
        print(f"left out: {run}: {reason}")
    if runs and not done.runs:
        raise LitmusError("none of these runs can be shown by asv", where="the command line", key="RUN",
                          value=", ".join(runs), expected="a run of a commit of this repository, without other changes",
                          next_step="commit, then: litmus run")
    print(f"asv: {len(done.runs)} runs in {len(done.files)} files below {folder}")
