"""What a cell costs through another engine beyond what it costs here: empty cells through both, in turns.

    ci/engine_overhead.py [dask|docker] [IMAGE]

Prints medians and the median difference. dask ends with 1 where that is over its limit; docker has none. Also says how
long the engine takes to be ready. Run it on an idle machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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

LIMITS_S = {"dask": 0.040}
PAIRS, WARM = 150, 10


@contextmanager
def opened(name: str, root: Path, image: str) -> Iterator[Engine]:
    """The engine that is held against this machine's."""
    if name == "dask":
        from harness.run.cluster import local_cluster
        from harness.run.engine.dask import DaskEngine

        with local_cluster(1, 0) as address, DaskEngine(root, address, [empty_suite.NAME], jobs=1) as engine:
            yield engine
        return
    from harness.run.engine.docker import DockerEngine

    with DockerEngine(root, image, jobs=1) as engine:
        yield engine


def main(arguments: list[str]) -> int:
    from harness.plan.machine import this_machine
    from harness.plan.plan import Request, make_plan
    from harness.run.engine.local import LocalEngine
    from harness.run.journal import Journal

    name = arguments[0] if arguments else "dask"
    image = arguments[1] if arguments[1:] else os.environ.get("LITMUS_TEST_IMAGE", "litmus:cpu")
    with tempfile.TemporaryDirectory(prefix="litmus-engines-") as folder:
        root = Path(folder)
        root.chmod(0o755)  # containers run as nobody where this runs as root
        empty_suite.write(root, seeds=PAIRS + WARM)
        cells = make_plan(root, Request(devices=("cpu",)), this_machine()).cells
        assert len(cells) == PAIRS + WARM
        here: list[float] = []
        there: list[float] = []
        with Journal(root / "run") as journal, LocalEngine(root, slots=1) as local, opened(name, root, image) as other:
            local.ready()
            begin = time.perf_counter()
            other.ready()
            start_s = time.perf_counter() - begin
            for number, cell in enumerate(cells):
                sides = [(local, here), (other, there)]
                for engine, times in sides if number % 2 else reversed(sides):
                    times.append(seconds_of(engine, root, cell, journal))
    return report(name, here[WARM:], there[WARM:], start_s)


def report(name: str, here: list[float], there: list[float], start_s: float) -> int:
    differences = [other_s - local_s for local_s, other_s in zip(here, there, strict=True)]
    beyond_s, limit_s = median(differences), LIMITS_S.get(name)
    low, _, high = quantiles(differences, n=4)
    over = limit_s is not None and beyond_s > limit_s
    print(f"local {median(here) * 1000:.1f} ms, {name} {median(there) * 1000:.1f} ms a cell, medians of {PAIRS}")
    word = "OVER" if over else "ok  "
    print(f"{word}  {name} beyond local {beyond_s * 1000:.1f} ms, middle half {low * 1000:.1f} to "
          f"{high * 1000:.1f} ms" + (f" (limit {limit_s * 1000:g} ms)" if limit_s is not None else ""))
    print(f"ready after {start_s:.1f} s; load average {', '.join(f'{value:.1f}' for value in os.getloadavg())} "
          f"on {os.cpu_count()} cores")
    return int(over)


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
    sys.exit(main(sys.argv[1:]))
