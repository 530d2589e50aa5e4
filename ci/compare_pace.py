"""How long `litmus compare` takes for two stored runs of 200,000 records each: ci/compare_pace.py [RECORDS].

Makes both runs through the project's own writer, 95 % trials with three metrics that all differ a little, 5 % speed
arms with their samples, and times the whole command. Prints the best of three; ends with 1 above 5 s.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from harness.records.record import Record, Samples
from harness.records.store import RunInfo, write_records, write_run_info

ALLOWED_S, REPEATS, SEEDS, ARMS = 5.0, 3, 10, 4
PROCESSES, ROUNDS, PER_ROUND = 3, 8, 2


def records(count: int, noise: np.random.Generator) -> Iterator[Record]:
    """``count`` records of one suite, cells of four arms, timed ones first; then the canary's."""
    speed = count // 20 // ARMS * ARMS
    for index in range(count):
        cell, arm = divmod(index, ARMS)
        common = {"cell": f"{cell:016x}", "suite": "projection/galore", "device": "cpu",
                  "profile": "small", "status": "ok", "card_version": 1, "code": "c", "started_at": 1.0 + cell}
        if index < speed:
            yield Record(**common, arm=("eager", "numba", "compile", "other")[arm], experiment="step_time",
                         kind="speed", point={"size": cell}, seed=0, error=1e-7, samples=samples(noise))
        else:
            common["arm"] = ("adamw", "galore", "lora", "factorised")[arm]
            place, seed = divmod(cell - speed // ARMS, SEEDS)
            metrics = {name: float(value) for name, value in zip(("val_loss", "failed", "state_bytes"),
                                                                 noise.normal(2.0, 0.05, 3), strict=True)}
            yield Record(**common, experiment="pretraining", kind="trial", point={"steps": place}, seed=seed,
                         metrics=metrics)
    for arm in "ab":
        yield Record(**{**common, "cell": "canary", "suite": "litmus/canary", "arm": arm}, experiment="aa",
                     kind="speed", point={"load": "compute"}, seed=0, error=0.0, samples=samples(noise))


def samples(noise: np.random.Generator) -> Samples:
    """What one arm's processes and rounds left."""
    process, rounds, position = np.indices((PROCESSES, ROUNDS, PER_ROUND)).reshape(3, -1).tolist()
    elapsed = (5e6 * np.exp(noise.normal(0.0, 0.02, len(process)))).astype(int).tolist()
    return Samples(process, rounds, position, [100] * len(process), elapsed)


def write_run(folder: Path, count: int, seed: int) -> None:
    """One run's folder."""
    info = RunInfo(run=folder.name, started_at=1.0 + seed, profile="small", litmus="0.1.0",
                   machine={"key": "made-up"}, canary={"floor": 0.01, "alarm": False})
    write_run_info(folder, info)
    write_records(folder, records(count, np.random.default_rng(seed)))


def main(arguments: list[str]) -> int:
    count = int(arguments[0]) if arguments else 200_000
    with tempfile.TemporaryDirectory(prefix="litmus-pace-") as name:
        runs = [Path(name) / "results" / "made-up" / word for word in ("before", "after")]
        for seed, run in enumerate(runs):
            write_run(run, count, seed)
        command = [sys.executable, "-m", "harness", "compare", *map(str, runs), "--out", f"{name}/compare.md",
                   "--format", "markdown"]
        root = Path(__file__).resolve().parents[1]
        spent = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True,
                                  text=True, check=False)
            spent.append(time.perf_counter() - began)
            if done.returncode not in (0, 1):
                print(done.stderr or done.stdout, file=sys.stderr)
                return done.returncode
    print("\n".join(done.stdout.splitlines()[-2:]))
    print(f"{min(spent):.2f} s (of {', '.join(f'{value:.2f}' for value in spent)}) for two runs of {count:,} records; "
          f"{ALLOWED_S:g} s are allowed")
    return 0 if min(spent) <= ALLOWED_S else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
