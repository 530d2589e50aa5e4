"""Speed arms that cheat or break, through the whole engine: each has its own status, honest ones are timed."""

from __future__ import annotations

import pytest
import yaml

BODY = '''
"""Arms of a copy kernel."""
import ctypes, os, signal, time
import numpy as np
from harness.declare.suite import Arm, Problem, SkipArm, Suite

suite = Suite(__file__)
calls, kept = {"n": 0}, {}


def honest(x, out):
    np.multiply(x, 2.0, out=out)


def wrong(x, out):
    np.multiply(x, 2.001, out=out)


def zero(x, out):
    out[:] = 0


def unwritten(x, out):
    pass


def cached(x, out):
    key = x.ctypes.data
    if key not in kept:
        kept[key] = x * 2.0
    out[:] = kept[key]


def alters(x, out):
    np.multiply(x, 2.0, out=out)
    x += 1e-3


def raises(x, out):
    raise RuntimeError("no such instruction")


def segfaults(x, out):
    ctypes.string_at(0)


def segfaults_later(x, out):
    honest(x, out)
    calls["n"] += 1
    if calls["n"] > 12:
        ctypes.string_at(0)


def hangs(x, out):
    time.sleep(600)


def missing_peer(x, out):
    raise SkipArm("peer not installed")


@suite.speed("s")
def s(point, rng, device):
    n = point["n"]
    arms = {name: Arm(run=run, bytes_moved=16 * n, flops=n) for name, run in globals().items()
            if name in suite.card.experiments["s"].arms}
    arms["skipped"] = SkipArm("not on this machine")
    return Problem(inputs=lambda rng: (rng.standard_normal(n),), buffers=lambda x: (np.empty_like(x),),
                   truth=lambda x: 2.0 * x, arms=arms, input_bytes=8 * n, tolerance=1e-6)
'''

EXPECTED = {
    "honest": "ok", "wrong": "wrong", "zero": "wrong", "unwritten": "wrong", "cached": "wrong", "alters": "wrong",
    "raises": "crashed", "segfaults": "crashed", "segfaults_later": "crashed", "hangs": "timeout",
    "skipped": "skipped", "missing_peer": "skipped", "absent": "crashed",
}


@pytest.fixture
def project(make_suite):
    project = make_suite("")
    folder = project.root / "suites" / "x" / "y"
    (folder / "suite.py").write_text(BODY)
    card = yaml.safe_load((folder / "card.yaml").read_text())
    card["experiments"] = {"s": {
        "kind": "speed", "arms": list(EXPECTED), "axes": {"n": [1000]}, "timeout_s": 2.0,
        "measure": {"processes": 2, "rounds": 3, "min_sample_ms": 0.2},
    }}
    card["claims"] = [{"id": "c", "statement": "s", "experiment": "s", "supported_if": "> 1", "refuted_if": "< 1",
                       "estimate": {"ratio": "time", "of": "honest", "to": "wrong"}}]
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return project


def test_each_arm_has_its_status_and_only_the_honest_one_is_timed(project, run_all):
    records = {record.arm: record for record in run_all(project)}
    assert {arm: record.status for arm, record in records.items()} == EXPECTED
    honest = records["honest"].samples
    assert sorted(set(honest.process)) == [0, 1]
    assert sorted(set(honest.round)) == [0, 1, 2]
    assert all(not record.samples.elapsed_ns for arm, record in records.items() if arm != "honest")
    assert all(record.reason for arm, record in records.items() if arm != "honest")
