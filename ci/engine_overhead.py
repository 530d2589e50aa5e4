"""What a cell costs through dask beyond what it costs here: empty cells through both engines, in turns.

Prints medians and the median difference; exits with 1 where that is over its limit. Run it on an idle machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import TYPE_CHECKING

import empty_suite

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    from harness.plan.cell import Cell
    from harness.run.engine.base import Engine
    from harness.run.journal import Journal

LIMIT_S, PAIRS, WARM = 0.040, 150, 10


def main() -> int:
    from harness.plan.machine import this_machine
    from harness.plan.plan import Request, make_plan
    from harness.run.cluster import local_cluster
    from harness.run.engine.dask import DaskEngine
    from harness.run.engine.local import LocalEngine
    from harness.run.journal import Journal

    with tempfile.TemporaryDirectory(prefix="litmus-engines-") as name:
        root = Path(name)
        empty_suite.write(root, seeds=PAIRS + WARM)
        cells = make_plan(root, Request(devices=("cpu",)), this_machine()).cells
        assert len(cells) == PAIRS + WARM
        here: list[float] = []
        there: list[float] = []
        with local_cluster(1, 0) as address, Journal(root / "run") as journal, \
                LocalEngine(root, slots=1) as local, DaskEngine(root, address, [empty_suite.NAME], jobs=1) as dask:
            local.ready()
            dask.ready()
            for number, cell in enumerate(cells):
                sides = [(local, here), (dask, there)]
                for engine, times in sides if number % 2 else reversed(sides):
                    times.append(seconds_of(engine, root, cell, journal))
    differences = [dask_s - local_s for local_s, dask_s in zip(here[WARM:], there[WARM:], strict=True)]
    beyond_s = median(differences)
    low, _, high = quantiles(differences, n=4)
    word = "ok  " if beyond_s <= LIMIT_S else "OVER"
    print(f"local {median(here[WARM:]) * 1000:.1f} ms, dask {median(there[WARM:]) * 1000:.1f} ms a cell, "
          f"medians of {PAIRS}")
    print(f"{word}  dask beyond local {beyond_s * 1000:.1f} ms, middle half {low * 1000:.1f} to {high * 1000:.1f} ms "
          f"(limit {LIMIT_S * 1000:g} ms)")
    print(f"load average {', '.join(f'{value:.1f}' for value in os.getloadavg())} on {os.cpu_count()} cores")
    return int(beyond_s > LIMIT_S)


def seconds_of(engine: Engine, root: Path, cell: Cell, journal: Journal) -> float:
    """From the request of a cell until it is over, its record in the journal."""
    from harness.run.lanes import run_cell

    statuses: list[str] = []

    def keep(record) -> None:
        journal.append(record)
        statuses.append(record.status)

    begin = time.perf_counter()
    run_cell(engine, root, cell, cell.arms, keep, print)
    elapsed_s = time.perf_counter() - begin
    assert statuses == ["ok"], statuses
    return elapsed_s


if __name__ == "__main__":
    sys.exit(main())
