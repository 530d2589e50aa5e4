"""A temporary project: cards, a run with made-up records, verdicts. Nothing here is a result of anything."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from harness.declare.catalog import Catalog
from harness.declare.seeds import seed_for
from harness.plan.code import code_hash
from harness.records.record import Record, Samples
from harness.records.store import Run, RunInfo, find_runs, write_records, write_run_info, write_verdicts
from harness.report import site

SPEED_CARD = """
paper: {title: A faster sum, arxiv: "2001.00001", year: 2020, code: some/where}
version: 1
summary: Adds numbers in two passes instead of three, so that memory is read less often.
experiments:
  throughput:
    kind: speed
    arms: [two_pass, three_pass, online, copy]
    axes: {n: [2**12, 2**14, 2**16, 2**18, 2**20, 2**22, 2**24], threads: [1, all]}
    fast_path: {op: sum, peers: [three_pass, online]}
    help: The whole sum of one vector.
claims:
  - id: out_of_cache_speedup
    statement: Once the vector no longer fits in cache, two passes beat three.
    paper: {figure: "1.28x (AVX512)"}
    experiment: throughput
    where: {input_bytes: "> llc"}
    estimate: {ratio: time, of: "best(three_pass, online)", to: two_pass}
    supported_if: "> 1.05"
    refuted_if: "< 1.00"
    scale: {toy: one vector up to 64 MiB, paper: one vector up to 1 GiB}
    note: The second core shares the memory controller, so the gain is smaller with all threads.
  - id: bandwidth_bound
    statement: Every pass runs at the memory's speed.
    paper: {figure: "not stated"}
    experiment: throughput
    parts:
      - {id: low, where: {n: 2**24}, estimate: {mean: bandwidth, of: two_pass}, supported_if: "> 15e9",
         refuted_if: "< 9e9"}
      - {id: high, where: {n: 2**24}, estimate: {ratio: time, of: copy, to: two_pass},
         supported_if: "inside [0.8, 1.2]", refuted_if: "outside [0.5, 1.5]"}
  - id: same_in_cache
    statement: In cache there is nothing to gain.
    experiment: throughput
    where: {n: 2**12}
    estimate: {equivalence: time, of: two_pass, to: three_pass, within: 0.05, relative: true}
"""

TRIAL_CARD = """
paper: {title: "Low-rank <training>", arxiv: "2403.00002", year: 2024, venue: ICML}
version: 2
summary: Trains with less memory by projecting gradients.
experiments:
  pretrain:
    kind: trial
    arms: [projected, adam]
    axes: {size: [small]}
    seeds: 5
    metrics:
      val_loss: {unit: nats, better: lower}
      state_bytes: {unit: B, better: lower}
      curve: {unit: nats, series: true}
    tune: {metric: val_loss, grid: {projected: {lr: [0.001, 0.01]}, adam: {lr: [0.001, 0.01]}}}
  ranks:
    kind: trial
    arms: [projected]
    axes: {rank: [4, 8, 16, 32]}
    seeds: 5
    metrics: {val_loss: {unit: nats, better: lower}}
claims:
  - id: parity
    statement: Projection loses nothing.
    paper: {figure: "15.64 against 15.56 perplexity"}
    experiment: pretrain
    estimate: {equivalence: val_loss, of: projected, to: adam, within: 0.05}
  - id: memory
    statement: Optimizer states shrink by more than half.
    experiment: pretrain
    estimate: {ratio: state_bytes, of: projected, to: adam}
    supported_if: "< 0.5"
    refuted_if: "> 0.6"
"""

HOSTILE_CARD = """
paper: {title: "<script>alert(1)</script>", year: 2021}
version: 1
summary: "<img src=x onerror=alert(2)>"
experiments:
  one:
    kind: trial
    arms: [a]
    metrics: {"m": {}}
claims:
  - id: nothing
    statement: "</script><script>alert(3)</script>"
    paper: {figure: "<b>bold</b>"}
    experiment: one
    estimate: {mean: m, of: a}
    supported_if: "> 1"
    refuted_if: "< 0"
"""

NEVER_CARD = HOSTILE_CARD.replace("<script>alert(1)</script>", "A paper nobody ran").replace(
    "<img src=x onerror=alert(2)>", "Quiet"
)

TUNED = """
experiments:
  pretrain:
    command: litmus tune galore:pretrain
    commit: 0123456789abcdef
    code: aaaa
    metric: val_loss
    seeds: [1000000, 1000001]
    point: {}
    arms:
      projected:
        values: {lr: 0.01}
        trials: [{values: {lr: 0.001}, score: 2.5}, {values: {lr: 0.01}, score: 2.25}]
      adam:
        values: {lr: 0.001}
        trials: [{values: {lr: 0.001}, score: 2.3125}, {values: {lr: 0.01}, score: null}]
"""

MACHINE = {
    "key": "test-2c-8g-abcdef",
    "cpu": "Test CPU 3000",
    "cores": 2,
    "memory_bytes": 8 * 2**30,
    "caches": {"l1": 2**15, "l2": 2**19, "llc": 2**25},
    "simd": ["avx2", "fma"],
    "system": "Linux-x86_64",
    "devices": [{"id": "cpu", "name": "Test CPU 3000", "memory_bytes": 8 * 2**30}],
}
CEILINGS = {
    "array_bytes": 2**29,
    "threads": {
        name: {
            "read_bytes_per_s": 18e9 * k,
            "copy_bytes_per_s": 19e9 * k,
            "triad_bytes_per_s": 21e9 * k,
            "flops_per_s": 5e10 * k,
        }
        for name, k in (("1", 1.0), ("all", 1.7))
    },
}


def make_root(root: Path) -> Path:
    """A project with four suites in two families, of which one was never run, and one run of the other three."""
    cards = {
        "sums/two_pass": SPEED_CARD,
        "training/lowrank": TRIAL_CARD,
        "training/hostile": HOSTILE_CARD,
        "training/never": NEVER_CARD,
    }
    for name, card in cards.items():
        folder = root / "suites" / name
        folder.mkdir(parents=True)
        (folder / "card.yaml").write_text(card)
        (folder / "suite.py").write_text("X = 1\n")
    (root / "suites/training/lowrank/tuned.yaml").write_text(TUNED)
    add_run(root, "20260102-030405-small", 1767323045.0)
    return root


@pytest.fixture()
def root(tmp_path: Path) -> Path:
    """A project of its own for a test that changes it."""
    return make_root(tmp_path)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of an unchanged project, for tests that only read them."""
    root = make_root(tmp_path_factory.mktemp("project"))
    site.build(root, find_runs(root), root / "report")
    return root / "report"


@pytest.fixture()
def runs(root: Path) -> list[Run]:
    return find_runs(root)


@pytest.fixture()
def another_run():
    """Adds one more run to a project."""
    return add_run


def add_run(root: Path, run: str, started_at: float, **changes: object) -> Path:
    folder = root / "results" / MACHINE["key"] / run
    folder.mkdir(parents=True)
    cards = {
        entry.name: {"version": entry.card.version, "code": code_hash(root, entry.folder)}
        for entry in Catalog(root).entries
        if entry.slug != "never"
    }
    info = {
        "run": run,
        "started_at": started_at,
        "finished_at": started_at + 90,
        "profile": "small",
        "litmus": "0.1.0",
        "command": "litmus run --profile small",
        "commit": "0123456789abcdef0123",
        "dirty": True,
        "machine": MACHINE,
        "software": {"python": "3.11.2", "torch": "2.13.0"},
        "ceilings": CEILINGS,
        "cards": cards,
        "canary": {"median_log_ratio": 0.001, "low": -0.004, "high": 0.005, "floor": 0.0093, "alarm": False, "n": 24},
    }
    records = [*speed_records(), *trial_records(), *hostile_records()]
    counts: dict[str, int] = {}
    for record in records:
        counts[record.status] = counts.get(record.status, 0) + 1
    write_run_info(folder, RunInfo(**{**info, "counts": counts, **changes}))
    write_records(folder, records)
    write_verdicts(folder, verdicts())
    return folder


FAST_CARD = """
paper: {title: Sums on every backend, year: 2022}
version: 1
summary: One op, several backends.
experiments:
  sums:
    kind: speed
    arms: [ours, gpu, stream, slow_peer, fast_peer, "<img src=x onerror=alert(7)>"]
    axes: {n: [2**10, 2**20, 2**24], threads: [1, all]}
    devices: [cpu, cuda]
    fast_path: {op: sum, peers: [slow_peer, fast_peer]}
claims:
  - id: nothing
    statement: Nothing is claimed.
    experiment: sums
    estimate: {ratio: time, of: ours, to: fast_peer}
    supported_if: "> 1.1"
    refuted_if: "< 1.0"
"""


class FastProject:
    """A project with one suite, sums/fast, and runs of records made from times per call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "suites/sums/fast"
        self.folder.mkdir(parents=True)
        (self.folder / "card.yaml").write_text(FAST_CARD)
        (self.folder / "suite.py").write_text("X = 1\n")

    def record(self, arm: str, time_ns: float = 1e6, device: str = "cpu", **more: object) -> Record:
        """An ``ok`` record at n = 2**20 on one thread, its rounds within 1 % of ``time_ns`` times the round's speed.

        All arms share the slow and fast rounds, as arms of one cell do.
        """
        point = more.pop("point", {"n": 2**20, "threads": 1})
        drift, own = random.Random("machine"), random.Random(arm)
        each = [(p, r) for p in range(3) for r in range(8)]
        taken = [int(10 * time_ns * drift.uniform(1, 1.8) * own.uniform(0.99, 1.01)) for _ in each]
        samples = Samples([p for p, _ in each], [r for _, r in each], [0] * 24, [10] * 24, taken)
        status = more.get("status", "ok")
        base: dict = {
            "input_bytes": 4 * 2**20, "bytes_moved": 12.0 * 2**20, "flops": 1.0, "error": 1e-7, "tolerance": 1e-6,
            "samples": samples if status == "ok" else Samples(), "first_call_ns": 5_000_000, "peak_bytes": 0,
        }
        made = _record("sums/fast", "sums", "speed", arm, point, 0, device=device, **{**base, **more})
        return replace(made, cell=f"{seed_for(device, made.cell):016x}")

    def run(self, run: str, records: list[Record], machine: dict | None = None, **changes: object) -> Path:
        """One stored run; ``machine`` changes what is known of it, ``key`` included."""
        described = {**MACHINE, **(machine or {})}
        folder = self.root / "results" / str(described["key"]) / run
        folder.mkdir(parents=True)
        state = {"version": 1, "code": code_hash(self.root, self.folder)}
        info = {
            "run": run, "started_at": 1767323045.0, "profile": "small", "litmus": "0.1.0", "machine": described,
            "ceilings": CEILINGS, "cards": {"sums/fast": state}, "canary": {"floor": 0.0093, "alarm": False},
        }
        write_run_info(folder, RunInfo(**{**info, **changes}))
        write_records(folder, records)
        return folder


@pytest.fixture()
def fast_project(tmp_path: Path) -> FastProject:
    """A project of its own for one test of fast paths."""
    return FastProject(tmp_path)


def _record(suite: str, experiment: str, kind: str, arm: str, point: dict, seed: int, **more: object) -> Record:
    cell = f"{seed_for(suite, experiment, str(point), seed):016x}"
    base = {
        "status": "ok",
        "card_version": 1,
        "code": "aaaa",
        "profile": "small",
        "device": "cpu",
        "repro": f"litmus repro {cell}",
        "started_at": 1767323046.0,
    }
    return Record(
        cell=cell, suite=suite, experiment=experiment, kind=kind, arm=arm, point=point, seed=seed, **{**base, **more}
    )


def speed_records() -> list[Record]:
    draw = random.Random(1)
    made = []
    passes = {"two_pass": 12, "three_pass": 16, "online": 12, "copy": 8}
    for power in range(12, 25, 2):
        for threads in (1, "all"):
            n, boost = 2**power, 1.6 if threads == "all" else 1.0
            rate = (60e9 if power < 18 else 30e9 if power < 23 else 19e9) * boost
            for arm, per_element in passes.items():
                slow = 1.25 if arm == "online" else 1.0
                nanoseconds = 400 + n * per_element / rate * 1e9 * slow
                samples = [
                    (p, r, k, max(1, int(5e6 / nanoseconds)), draw.uniform(0.97, 1.06))
                    for p in range(3)
                    for r in range(8)
                    for k in (0, 7)
                ]
                point = {"n": n, "threads": threads}
                if arm == "online" and power == 24 and threads == "all":
                    made.append(
                        _record(
                            "sums/two_pass",
                            "throughput",
                            "speed",
                            arm,
                            point,
                            0,
                            status="wrong",
                            error=0.3,
                            tolerance=1e-6,
                            reason="relative error 0.3 is above the tolerance 1e-06",
                            stderr_tail="Traceback (most recent call last):\n  nothing <really> happened",
                        )
                    )
                    continue
                made.append(
                    _record(
                        "sums/two_pass",
                        "throughput",
                        "speed",
                        arm,
                        point,
                        0,
                        input_bytes=4 * n,
                        bytes_moved=float(per_element * n),
                        flops=10.0 * n,
                        peak_bytes=8 * n + 2**20,
                        first_call_ns=900_000_000,
                        elapsed_ns=2_000_000_000,
                        error=2.5e-7,
                        tolerance=1e-6,
                        samples=Samples(
                            [s[0] for s in samples],
                            [s[1] for s in samples],
                            [s[2] for s in samples],
                            [s[3] for s in samples],
                            [int(nanoseconds * s[3] * s[4]) for s in samples],
                        ),
                    )
                )
    return made


def trial_records() -> list[Record]:
    draw = random.Random(2)
    made = []
    for seed in range(5):
        for arm, gain in (("projected", 0.03), ("adam", 0.0)):
            curve = [4.8 * math.exp(-step / 60) + 2.2 + gain + draw.gauss(0, 0.03) for step in range(300)]
            diverged = arm == "adam" and seed == 4
            made.append(
                _record(
                    "training/lowrank",
                    "pretrain",
                    "trial",
                    arm,
                    {"size": "small"},
                    seed,
                    elapsed_ns=3_000_000_000 + seed,
                    peak_bytes=300 * 2**20,
                    card_version=2,
                    metrics={
                        "val_loss": math.inf if diverged else 2.2 + gain + draw.gauss(0, 0.01),
                        "curve": curve,
                        "state_bytes": 1_300_000.0 if arm == "projected" else 3_200_000.0,
                    },
                )
            )
        for rank in (4, 8, 16, 32):
            made.append(
                _record(
                    "training/lowrank",
                    "ranks",
                    "trial",
                    "projected",
                    {"rank": rank},
                    seed,
                    card_version=2,
                    elapsed_ns=10**9,
                    metrics={"val_loss": 2.2 + 1 / rank + draw.gauss(0, 0.01)},
                )
            )
    return made


def hostile_records() -> list[Record]:
    return [
        _record("training/hostile", "one", "trial", "a", {}, seed, status="skipped", reason="budget <b>", repro="")
        for seed in range(3)
    ]


def _part(
    name: str,
    point: dict,
    estimate: tuple[float, float, float] | None,
    rules: tuple[str, str],
    verdict: str,
    reason: str,
    experiment: str = "throughput",
    unit: str = "round",
) -> dict:
    return {
        "id": name,
        "experiment": experiment,
        "point": point,
        "supported_if": rules[0],
        "refuted_if": rules[1],
        "verdict": verdict,
        "reason": reason,
        "cells": ["c0ffee00c0ffee00"],
        "refute_interval": {"low": estimate[1] * 0.98, "high": estimate[2] * 1.02, "level": 0.975}
        if estimate
        else None,
        "estimate": None
        if estimate is None
        else {
            "point": estimate[0],
            "low": estimate[1],
            "high": estimate[2],
            "level": 0.95,
            "n": 24,
            "unit": unit,
            "method": "bootstrap",
        },
    }


def verdicts() -> list[dict]:
    speed, band = ("> 1.05", "< 1.0"), ("inside [-0.05, 0.05]", "outside [-0.05, 0.05]")
    rows = [
        (
            "sums/two_pass",
            "out_of_cache_speedup",
            "supported",
            "Both points lie above 1.05 with their whole intervals.",
            [
                _part(
                    "out_of_cache_speedup",
                    {"n": 2**24, "threads": 1},
                    (1.3123456789, 1.29, 1.34),
                    speed,
                    "supported",
                    "above",
                ),
                _part(
                    "out_of_cache_speedup",
                    {"n": 2**24, "threads": "all"},
                    (1.12, 1.07, 1.16),
                    speed,
                    "supported",
                    "above",
                ),
            ],
        ),
        (
            "sums/two_pass",
            "bandwidth_bound",
            "inconclusive",
            "Part high is undecided: its interval crosses 0.8.",
            [
                _part(
                    "low",
                    {"n": 2**24, "threads": 1},
                    (18.7e9, 18.1e9, 19.4e9),
                    ("> 15e9", "< 9e9"),
                    "supported",
                    "above",
                ),
                _part(
                    "high",
                    {"n": 2**24, "threads": 1},
                    (0.76, 0.71, 0.84),
                    ("inside [0.8, 1.2]", "outside [0.5, 1.5]"),
                    "inconclusive",
                    "crosses 0.8",
                ),
            ],
        ),
        (
            "sums/two_pass",
            "same_in_cache",
            "refuted",
            "Two passes take 12 % less time in cache.",
            [_part("same_in_cache", {"n": 2**12, "threads": 1}, (-0.12, -0.14, -0.1), band, "refuted", "outside")],
        ),
        (
            "training/lowrank",
            "parity",
            "supported",
            "The whole interval lies within 0.05 nats.",
            [_part("parity", {}, (0.031, 0.02, 0.043), band, "supported", "inside", "pretrain", "seed")],
        ),
        (
            "training/lowrank",
            "memory",
            "supported",
            "States shrink to 0.41.",
            [
                _part(
                    "memory",
                    {},
                    (0.40625, 0.40625, 0.40625),
                    ("< 0.5", "> 0.6"),
                    "supported",
                    "below",
                    "pretrain",
                    "seed",
                )
            ],
        ),
        (
            "training/hostile",
            "nothing",
            "not run",
            "skipped: budget <b>",
            [_part("nothing", {}, None, ("> 1", "< 0"), "not run", "skipped: budget <b>", "one")],
        ),
    ]
    return [
        {
            "suite": suite,
            "claim": claim,
            "verdict": verdict,
            "reason": reason,
            "scale": {},
            "note": None,
            "parts": parts,
        }
        for suite, claim, verdict, reason, parts in rows
    ]
