"""A project with one suite whose cells do nothing, to see what everything around them costs."""

from __future__ import annotations

from pathlib import Path

NAME = "overhead/empty"
CARD = """
paper: {{title: Empty cells, year: 2024}}
version: 1
summary: A trial that does nothing, to see what everything around it costs.
experiments:
  empty: {{kind: trial, arms: [only], seeds: {seeds}, metrics: {{value: {{better: none}}}}}}
claims:
  - {{id: runs, statement: It runs., experiment: empty, estimate: {{mean: value, of: only}},
     supported_if: ">= 0", refuted_if: "< 0"}}
"""
SUITE = """
from harness.declare.suite import Suite
suite = Suite(__file__)

@suite.trial("empty")
def empty(arm, point, seed, device):
    return {"value": 0.0}
"""


def write(root: Path, seeds: int) -> None:
    """The suite below ``root``, with a cell for each of ``seeds``."""
    suite = root / "suites" / NAME
    suite.mkdir(parents=True)
    (suite / "card.yaml").write_text(CARD.format(seeds=seeds))
    (suite / "suite.py").write_text(SUITE)
