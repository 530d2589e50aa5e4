"""What must stay small: ``litmus ls``, the overhead of a cell, loading a million records, a compiled kernel's start.

Prints each with its limit; exits with 1 where one is over it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import empty_suite

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

LS_LIMIT_S, CELL_LIMIT_S, LOAD_LIMIT_S, KERNEL_LIMIT_S = 0.5, 0.060, 3.0, 0.3
LS_REPEATS, KERNEL_REPEATS, CELLS, RECORDS = 5, 3, 50, 1_000_000

# The first call of each op in a new process, Numba's own import included, once torch is there.
KERNELS = {
    "softmax": "from reference.kernels.softmax import softmax; softmax(torch.ones(4, 1000))",
    "quantize": """
from reference.kernels.quantize import dynamic_map, quantize_blockwise
quantize_blockwise(torch.ones(4096), code=dynamic_map(True))
""",
    "project": """
from reference.kernels.project import adam_direction
adam_direction(*(torch.ones(64, 8) for _ in range(3)), (0.9, 0.999), 1e-8, "numba")
""",
}


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="litmus-overhead-") as folder:
        results = [
            ("litmus ls", ls_s(), LS_LIMIT_S),
            (f"overhead per cell, median of {CELLS}", cell_s(Path(folder)), CELL_LIMIT_S),
            (f"loading {RECORDS:,} records", load_s(Path(folder)), LOAD_LIMIT_S),
            *((f"first call of {op}, compiled before", kernel_s(code), KERNEL_LIMIT_S) for op, code in KERNELS.items()),
        ]
    for name, seconds, limit_s in results:
        word = "ok  " if seconds <= limit_s else "OVER"
        print(f"{word}  {name:<38} {seconds * 1000:8.1f} ms  (limit {limit_s * 1000:g} ms)")
    print(f"load average {', '.join(f'{value:.1f}' for value in os.getloadavg())} on {os.cpu_count()} cores")
    return int(any(seconds > limit_s for _, seconds, limit_s in results))


def ls_s() -> float:
    """Median wall seconds of the command, after a first call that fills the disk cache. Refuses a torch import."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sys; from harness.cli.app import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "ls"], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    times = []
    for _ in range(LS_REPEATS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "harness", "ls"], cwd=ROOT, env=environment, check=True,
                       stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - begin)
    return median(times)


def kernel_s(code: str) -> float:
    """Median seconds from ``import torch`` to the end of an op's first call, once another process compiled it."""
    timed = f"import time, torch\nbegin = time.perf_counter()\n{code}\nprint(time.perf_counter() - begin)"
    command = [sys.executable, "-c", timed]
    times = [
        float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
        for _ in range(1 + KERNEL_REPEATS)
    ]
    return median(times[1:])


def cell_s(folder: Path) -> float:
    """Median seconds from the request of an empty trial cell to its record in the journal."""
    from harness.plan.machine import this_machine
    from harness.plan.plan import Request, make_plan
    from harness.run.engine.local import LocalEngine
    from harness.run.journal import Journal
    from harness.run.lanes import run_cell

    empty_suite.write(folder, seeds=CELLS)
    cells = make_plan(folder, Request(devices=("cpu",)), this_machine()).cells
    assert len(cells) == CELLS
    times: list[float] = []
    with Journal(folder / "run") as journal, LocalEngine(folder, slots=1) as engine:
        engine.ready()
        for cell in cells:
            begin = time.perf_counter()
            records = []

            def keep(record, begin=begin, records=records) -> None:
                journal.append(record)
                times.append(time.perf_counter() - begin)
                records.append(record)

            run_cell(engine, folder, cell, cell.arms, keep, print)
            assert [record.status for record in records] == ["ok"], records
    return median(times)


def load_s(folder: Path) -> float:
    """Seconds to load a generated file of a million trial records into pandas, the default columns."""
    from harness.records.store import load_records, write_records

    path = folder / "million"
    path.mkdir()
    write_records(path, million())
    begin = time.perf_counter()
    table = load_records(path)
    seconds = time.perf_counter() - begin
    assert len(table) == RECORDS
    return seconds


def million() -> Iterator:
    from harness.records.record import Record

    base = Record(cell="", suite="family/slug", experiment="training", kind="trial", arm="", point={}, seed=0,
                  device="cpu", profile="small", status="ok", card_version=1, code="0123456789abcdef")
    for index in range(RECORDS):
        yield replace(
            base, cell=f"{index // 4:016x}", arm=f"arm_{index % 4}", point={"rank": 2 ** (index % 8), "steps": 200},
            seed=index % 1000, metrics={"loss": 1.0 + index * 1e-6, "seconds": index * 1e-3},
            started_at=1.7e9 + index, elapsed_ns=10**9 + index, peak_bytes=10**6 + index,
        )


if __name__ == "__main__":
    sys.exit(main())
