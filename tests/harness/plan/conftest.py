import pytest

from harness.plan.machine import Device, Machine

CARD = """\
paper: {title: A paper, year: 2024}
version: 3
summary: What it does.
experiments:
  quality:
    kind: trial
    arms: [method, baseline]
    axes: {n: [16, 64], mode: [fast, slow]}
    seeds: 2
    metrics: {loss: {better: lower}}
  pace:
    kind: speed
    arms: [method, baseline]
    axes: {n: [1024], threads: [1, 64, all]}
    devices: [cpu, cuda]
    profiles: {smoke: skip}
  large:
    kind: trial
    arms: [method]
    metrics: {loss: {}}
    memory_gib: 500
  searched:
    kind: trial
    arms: [method, baseline]
    metrics: {loss: {}}
    tune: {metric: loss, grid: {method: {lr: [1, 2]}, baseline: {lr: [1, 2]}}}
claims:
  - id: better
    statement: It is better.
    experiment: quality
    estimate: {ratio: loss, of: method, to: baseline}
    supported_if: "< 0.9"
    refuted_if: "> 1.0"
"""
SUITE = "from reference.methods.alpha.one import method\n\nVALUE = method(2)\n"
METHOD = "from reference.shared import helper\n\n\ndef method(x):\n    return helper(x) + 1\n"
HELPER = "def helper(x):\n    return x * 2\n"


@pytest.fixture
def root(tmp_path):
    files = {
        "suites/alpha/one/card.yaml": CARD,
        "suites/alpha/one/suite.py": SUITE,
        "reference/__init__.py": "",
        "reference/methods/__init__.py": "",
        "reference/methods/alpha/__init__.py": "",
        "reference/methods/alpha/one.py": METHOD,
        "reference/shared.py": HELPER,
        "reference/unrelated.py": "VALUE = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.fixture
def machine():
    return Machine(
        cpu="Test CPU",
        cores=2,
        memory_bytes=24 * 2**30,
        caches={"l1": 2**15, "l2": 2**19, "llc": 2**25},
        simd=("avx2",),
        system="Linux-x86_64",
        devices=(Device("cpu", "Test CPU", 24 * 2**30),),
    )
