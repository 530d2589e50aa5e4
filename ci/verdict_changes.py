"""Prints the claims whose verdict differs between two stored runs: ci/verdict_changes.py RUN_A RUN_B.

It compares verdict words, each judged from its own run; it makes no paired comparison of numbers between the runs.
Ends with 1 where a claim that was supported no longer is, with 2 for a run that does not exist, with 3 where the runs
have no claim in common.
"""

from __future__ import annotations

import sys

from harness.cli.app import show_refusal
from harness.declare.catalog import find_root
from harness.errors import NOTHING_COMPARABLE, USAGE, LitmusError
from harness.records.store import Run, resolve_run


def words(run: Run) -> dict[tuple[str, str], str]:
    """(suite, claim) -> verdict word."""
    return {(row["suite"], row["claim"]): row["verdict"] for row in run.verdicts()}


def changes(before: dict[tuple[str, str], str], after: dict[tuple[str, str], str]) -> list[tuple[str, str, str, str]]:
    """(suite, claim, verdict before, verdict after) of every claim that both have, where the two differ."""
    both = sorted(before.keys() & after.keys())
    return [(*key, before[key], after[key]) for key in both if before[key] != after[key]]


def main(names: list[str]) -> int:
    if len(names) != 2:
        print("usage: make compare A=RUN B=RUN   (a run: its folder, its id, or 'latest')", file=sys.stderr)
        return USAGE
    try:
        runs = [resolve_run(find_root(), name) for name in names]
        before, after = (words(run) for run in runs)
        machines = {run.info.machine.get("key") for run in runs}
    except LitmusError as refusal:
        show_refusal(refusal)
        return refusal.exit_code
    if not before.keys() & after.keys():
        print("the two runs have no claim in common", file=sys.stderr)
        return NOTHING_COMPARABLE
    if len(machines) > 1:
        print("the runs are from different machines; verdicts on speed may differ for that reason alone")
    found = changes(before, after)
    for suite, claim, was, now in found:
        print(f"{suite} {claim}: {was} -> {now}")
    print(f"{len(found)} of {len(before.keys() & after.keys())} claims changed their verdict")
    return int(any(was == "supported" for _, _, was, _ in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
