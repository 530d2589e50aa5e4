"""Interleaved A/A of two_pass softmax: 20 cells time the same kernel under two names, through the harness.

Prints each cell's difference and how many lie within +-1.5 %; ends with 1 where fewer than 19 do.

    ci/aa.py [N]                 vectors of N elements (a power such as 2**20, the default)
    ci/aa.py [N] --image NAME    the same through the docker engine
    ci/aa.py [N] --scheduler ADDRESS    and through dask, such as the cluster of litmus cluster up --local 1
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from statistics import median

from harness.cli.app import show_refusal
from harness.declare.arithmetic import parse_number
from harness.errors import LitmusError
from harness.plan.cell import Cell
from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan
from harness.records.record import Record
from harness.run.engine.base import RunEngine
from harness.run.engine.choice import EngineChoice, open_engine
from harness.run.lanes import run_cell
from harness.run.measure.canary import per_round

REPEATS, NEEDED, WITHIN = 20, 19, 0.015
CARD = """
paper: {{title: A/A of the two-pass softmax, year: 2020}}
version: 1
summary: The same kernel under two names.
experiments:
  aa:
    kind: speed
    arms: [a, b]
    axes: {{n: [{n}], threads: [1], repeat: [{repeats}]}}
    measure: {{processes: 3, rounds: 16, min_sample_ms: 5}}
claims:
  - id: equal
    statement: Equal code takes equal time.
    experiment: aa
    estimate: {{equivalence: time, of: a, to: b, within: {within}, relative: true}}
"""
SUITE = """
from dataclasses import replace
from harness.declare.suite import Suite
from suites.softmax.two_pass_softmax.arms import softmax_problem

suite = Suite(__file__)

@suite.speed("aa")
def aa(point, rng, device):
    problem = softmax_problem(1, point["n"], 1)
    return replace(problem, arms=dict.fromkeys("ab", problem.arms["two_pass"]))
"""


def write_suite(root: Path, n: int) -> None:
    """A project of one suite and what that imports, copied: a container sees nothing else."""
    checkout = Path(__file__).resolve().parents[1]
    folder = root / "suites" / "ci" / "aa"
    folder.mkdir(parents=True)
    repeats = ", ".join(map(str, range(REPEATS)))
    (folder / "card.yaml").write_text(CARD.format(n=n, repeats=repeats, within=WITHIN))
    (folder / "suite.py").write_text(SUITE)
    for part in ("suites/softmax/two_pass_softmax", "reference"):
        shutil.copytree(checkout / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    root.chmod(0o755)  # containers run as nobody where this runs as root


def difference(records: list[Record]) -> float:
    """exp of the median log ratio of the rounds, minus one. Raises ValueError where an arm is not ok."""
    bad = [record for record in records if record.status != "ok"]
    if bad:
        raise ValueError(f"arm {bad[0].arm} is {bad[0].status}: {bad[0].reason}")
    a, b = (per_round(record.samples) for record in sorted(records, key=lambda record: record.arm))
    return math.expm1(median(math.log(a[unit] / b[unit]) for unit in a))


def measure(root: Path, cell: Cell, engine: RunEngine) -> float:
    """One A/A pair: fresh processes, interleaved rounds."""
    records: list[Record] = []
    run_cell(engine, root, cell, cell.arms, records.append, lambda text: None)
    return difference(records)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ci/aa.py")
    parser.add_argument("n", nargs="?", default="2**20", help="elements, such as 2**20")
    parser.add_argument("--image", help="run in containers of this image")
    parser.add_argument("--scheduler", help="run on the workers of this dask scheduler")
    return parser.parse_args(arguments)


def engine_asked(asked: argparse.Namespace) -> EngineChoice:
    """The engine that the words name; this machine without any."""
    if asked.image:
        return EngineChoice("docker", image=asked.image)
    return EngineChoice("dask", scheduler=asked.scheduler) if asked.scheduler else EngineChoice()


def main(arguments: list[str]) -> int:
    asked = parsed(arguments)
    choice = engine_asked(asked)
    try:
        n = int(parse_number(asked.n))
        with tempfile.TemporaryDirectory(prefix="litmus-aa-") as name:
            root = Path(name)
            write_suite(root, n)
            plan = make_plan(root, Request(("aa",), "small", ("cpu",)), this_machine())
            found = []
            with closing(open_engine(choice, root, ["ci/aa"], jobs=1)) as engine:
                engine.ready()
                for cell in plan.cells:
                    found.append(measure(root, cell, engine))
                    print(f"pair {len(found):2d}: {found[-1]:+.2%}", flush=True)
    except LitmusError as refusal:
        show_refusal(refusal)
        return refusal.exit_code
    within = sum(abs(value) <= WITHIN for value in found)
    print(f"{within} of {len(found)} pairs within {WITHIN:.1%} (at least {NEEDED} are needed), n = {n}")
    return 0 if within >= NEEDED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
