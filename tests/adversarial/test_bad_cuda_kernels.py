"""CUDA arms that cheat or break, through the whole engine; and what a request for CUDA ends in where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan
from harness.records.record import Record
from harness.run.lanes import run_cell
from harness.run.progress import Silent
from harness.run.session import RunOptions, run

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")
no_cuda = pytest.mark.skipif(torch.cuda.is_available() or len(this_machine().devices) > 1, reason="a GPU is here")

BODY = '''
"""Arms of a doubling kernel."""
import torch
from harness.declare.suite import Arm, Problem, Suite

suite = Suite(__file__)
kept = {}


def honest(x, out):
    torch.mul(x, 2.0, out=out)


def wrong(x, out):
    torch.mul(x, 2.001, out=out)


def unwritten(x, out):
    pass


def cached(x, out):
    key = x.data_ptr()
    if key not in kept:
        kept[key] = x * 2.0
    out.copy_(kept[key])


def alters(x, out):
    torch.mul(x, 2.0, out=out)
    x.add_(1e-3)


def unjoined(x, out):
    side = kept.setdefault("side", torch.cuda.Stream())
    with torch.cuda.stream(side):
        torch.mul(x, 2.0, out=out)


def leaves_a_stream(x, out):
    torch.cuda.set_stream(kept.setdefault("left", torch.cuda.Stream()))
    torch.mul(x, 2.0, out=out)


def illegal(x, out):
    out.copy_(x[torch.full((1,), 2**40, device=x.device)].expand_as(out))


def hangs(x, out):
    torch.mul(x, 2.0, out=out)
    torch.cuda._sleep(10**15)


def greedy(x, out):
    out.copy_(torch.empty(2**36, dtype=torch.uint8, device=x.device)[: x.numel()] + x)


@suite.speed("s")
def s(point, rng, device):
    n = point["n"]
    arms = {name: Arm(run=run, bytes_moved=8.0 * n, flops=float(n), workspace_bytes=0.0)
            for name, run in globals().items() if name in suite.card.experiments["s"].arms}
    return Problem(
        inputs=lambda rng: (torch.from_numpy(rng.standard_normal(n)).float().to(device),),
        buffers=lambda x: (torch.empty_like(x),), truth=lambda x: 2.0 * x.double(), arms=arms, input_bytes=4 * n,
        tolerance=1e-6)


@suite.oracle
def one_is_one():
    assert 1 == 1
'''

EXPECTED = {
    "honest": "ok", "wrong": "wrong", "unwritten": "wrong", "cached": "wrong", "alters": "wrong", "unjoined": "wrong",
    "leaves_a_stream": "wrong", "illegal": "crashed", "hangs": "timeout", "greedy": "oom",
}


@pytest.fixture
def project(make_suite):
    project = make_suite("")
    folder = project.root / "suites" / "x" / "y"
    (folder / "suite.py").write_text(BODY)
    card = yaml.safe_load((folder / "card.yaml").read_text())
    card["experiments"] = {"s": {
        "kind": "speed", "arms": list(EXPECTED), "axes": {"n": [2**22]}, "timeout_s": 20.0, "devices": ["cpu", "cuda"],
        "measure": {"processes": 2, "rounds": 3, "min_sample_ms": 0.2}, "memory_gib": 2,
    }}
    card["claims"] = [{"id": "c", "statement": "s", "experiment": "s", "where": {"device": "cuda"},
                       "supported_if": "> 1", "refuted_if": "< 1",
                       "estimate": {"ratio": "time", "of": "honest", "to": "wrong"}}]
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    return project


@needs_cuda
def test_each_cuda_arm_has_its_status_and_only_the_honest_one_is_timed(project, engine):
    cells = make_plan(project.root, Request(devices=("cuda:0",)), this_machine()).cells
    records: list[Record] = []
    for cell in cells:
        run_cell(engine, project.root, cell, cell.arms, records.append, lambda text: None)
    found = {record.arm: record for record in records}
    assert {arm: record.status for arm, record in found.items()} == EXPECTED
    honest = found["honest"]
    assert honest.cache == "cold" and set(honest.samples.process) == {0, 1}
    assert len(honest.other_samples.elapsed_ns) == len(honest.samples.elapsed_ns)
    assert honest.peak_bytes < 2**21
    assert all(not record.samples.elapsed_ns for arm, record in found.items() if arm != "honest")
    assert "CUDA" in found["illegal"].stderr_tail


TRIAL = """
import torch

@suite.trial("t")
def t(arm, point, seed, device):
    x = torch.ones(4, device=device)
    if arm == "bad":
        x = x[torch.full((1,), 2**40, device=device)]
    return {"m": float(x.sum())}
"""


@needs_cuda
def test_a_trial_that_breaks_cuda_for_its_process_does_not_break_the_others(make_suite, engine):
    project = make_suite(TRIAL, devices=["cuda"])
    records: list[Record] = []
    for cell in make_plan(project.root, Request(devices=("cuda:0",)), this_machine()).cells:
        run_cell(engine, project.root, cell, cell.arms, records.append, lambda text: None)
    assert {record.arm: record.status for record in records} == {"before": "ok", "bad": "crashed", "after": "ok"}
    assert all(record.peak_bytes > 0 for record in records if record.status == "ok")


@no_cuda
def test_a_run_for_cuda_without_a_device_leaves_skipped_records_and_a_claim_not_run(project, engine):
    folder = project.root / "out"
    result = run(project.root, Request(devices=("cuda",)), RunOptions(out=folder), Silent(), engine)
    assert dict(result.counts) == {"skipped": len(EXPECTED)}
    (verdict,) = result.verdicts
    assert verdict["verdict"] == "not run"
    assert "no CUDA device is visible on this machine" in verdict["reason"]


@no_cuda
@pytest.mark.parametrize("words", [("--device", "cuda"), ("--device", "cuda:1", "--dry-run")])
def test_the_command_says_so_and_ends_well(project, words, monkeypatch):
    monkeypatch.setenv("LITMUS_ROOT", str(project.root))
    done = subprocess.run([sys.executable, "-m", "harness", "run", *words], capture_output=True, text=True,
                          cwd=project.root, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "no CUDA device is visible on this machine" in " ".join(done.stdout.split())


@no_cuda
def test_by_default_a_machine_without_a_gpu_runs_the_cpu_alone(project):
    plan = make_plan(project.root, Request(), this_machine())
    assert {cell.device for cell in plan.cells} == {"cpu"} and not plan.skipped


@no_cuda
def test_a_cuda_cell_that_reaches_a_worker_all_the_same_is_skipped_with_torchs_reason(project, engine):
    (cell, *_) = (skip.cell for skip in make_plan(project.root, Request(devices=("cuda:0",)), this_machine()).skipped)
    records: list[Record] = []
    run_cell(engine, project.root, cell, cell.arms, records.append, lambda text: None)
    assert {record.status for record in records} == {"skipped"}
    assert all("sees no CUDA device here" in record.reason and record.started_at > 0 for record in records)
