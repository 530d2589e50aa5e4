"""Whether two runs of the same cells, made in different places, have the same numbers to the last bit.

    ci/same_numbers.py RUN OTHER

Holds the status of every arm that both runs have against the other's, and the metrics of trials. Ends with 1 where one
differs, or where there is nothing to compare. Metrics that are times (their unit is one) need not repeat.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness.declare.catalog import Catalog, find_root
from harness.run.journal import latest, read_journal

_TIMES = ("s", "ms", "us", "ns")
Key = tuple[str, str, str]
Arm = tuple[str, str]


def numbers(folder: Path) -> dict[Arm, tuple[str, str, dict[str, object]]]:
    """(suite and experiment, status, what should repeat) of every arm of every cell."""
    times = times_of(find_root())
    found: dict[Arm, tuple[str, str, dict[str, object]]] = {}
    for record in latest(read_journal(folder / "journal.jsonl")[0]):
        repeats: dict[str, object] = {name: value for name, value in record.metrics.items() if record.kind == "trial"
                                      and (record.suite, record.experiment, name) not in times}
        found[record.cell, record.arm] = f"{record.suite}:{record.experiment}", record.status, repeats
    return found


def times_of(root: Path) -> set[Key]:
    """(suite, experiment, metric) of all metrics that are times."""
    return {(entry.name, name, metric) for entry, _ in Catalog(root).select(())
            for name, experiment in entry.card.experiments.items()
            for metric, about in experiment.metrics.items() if about.unit in _TIMES}


def main(folders: list[str]) -> int:
    here, there = (numbers(Path(folder)) for folder in folders)
    both = {key: (here[key], there[key]) for key in here if key in there and not here[key][0].startswith("litmus/")}
    different = {key: pair for key, pair in both.items() if repr(pair[0]) != repr(pair[1])}
    for (cell, arm), (mine, other) in sorted(different.items()):
        print(f"DIFFERENT {mine[0]} {cell} {arm}: {mine[1:]} and {other[1:]}")
    count = sum(len(values) for _, _, values in (pair[0] for pair in both.values()))
    suites = {name.split(":")[0] for (name, _, _), _ in both.values()}
    print(f"{len(both) - len(different)} of {len(both)} arms are the same to the last bit: "
          f"{count} numbers of {len(suites)} suites")
    return int(bool(different) or not both)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
