"""The files that ``litmus new`` writes: a complete small suite that passes ``litmus validate`` as it is."""

from __future__ import annotations

from pathlib import Path
from string import Template

_CARD = """\
# One paper as data. The placeholder sums rows in float32: replace what follows, key by key (docs/adding-a-suite.md).
paper: {title: Replace with the title of the paper, year: 2024}
version: 1  # raise it whenever numbers may change
summary: >-
  Replace with our own words: what the method does and why it might work.
  The placeholder folds each row in halves, so that rounding errors grow with log n instead of n.
experiments:
  accuracy:
    kind: trial
    help: mean relative error of the row sums of uniform numbers
    arms: [$slug, in_order]
    axes: {n: [2**12, 2**16]}
    seeds: 8
    metrics:
      error: {better: lower, help: mean relative error against float64}
    timeout_s: 30
    memory_gib: 2
  throughput:
    kind: speed
    arms: [$slug, in_order]
    axes: {n: [2**12]}
    timeout_s: 60
    memory_gib: 2
claims:
  - id: lower_error
    statement: The method's error is below a quarter of that of summing in order.
    paper: {table: replace with the paper's own figure}
    experiment: accuracy
    estimate: {ratio: error, of: $slug, to: in_order}
    supported_if: "< 0.25"
    refuted_if: "> 0.5"
    scale: {here: rows of 4096 and 65536 numbers}
  - id: no_slower
    statement: The method takes no longer than summing in order.
    experiment: throughput
    estimate: {ratio: time, of: $slug, to: in_order}
    supported_if: "< 1.0"
    refuted_if: "> 1.0"
    scale: {here: 64 rows of 4096 numbers}
"""

_METHOD = '''\
"""Replace with the paper's method; cite its equations. The placeholder: row sums in halves, and its baseline."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


def $slug(values: Rows, out: Rows) -> None:
    """``out[i]`` = sum of ``values[i]`` ([rows, n], n >= 1), folding the upper half onto the lower."""
    work = values.copy()
    left = work.shape[1]
    while left > 1:
        half = left // 2
        work[:, :half] += work[:, left - half : left]
        left -= half
    out[:] = work[:, 0]


def in_order(values: Rows, out: Rows) -> None:
    """``out[i]`` = sum of ``values[i]``, one number after the other in float32."""
    out[:] = np.cumsum(values, axis=1, dtype=np.float32)[:, -1]
'''

_SUITE = '''\
"""The functions behind card.yaml: one for each experiment, and an oracle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.declare.seeds import seed_for
from harness.declare.suite import Arm, Problem, Suite
from reference.methods.$family.$slug import $slug, in_order

suite = Suite(__file__)
ROWS = 64
ARMS = {"$slug": $slug, "in_order": in_order}


def draw(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random((ROWS, n), dtype=np.float32)


@suite.trial("accuracy")
def accuracy(arm: str, point: Mapping[str, Any], seed: int, device: str) -> dict[str, float]:
    values = draw(np.random.default_rng(seed_for("data", seed)), point["n"])  # the same in both arms: paired by seed
    truth = values.sum(axis=1, dtype=np.float64)
    out = np.empty(ROWS, np.float32)
    ARMS[arm](values, out)
    return {"error": float(np.mean(np.abs(out - truth) / truth))}


@suite.speed("throughput")
def throughput(point: Mapping[str, Any], rng: np.random.Generator, device: str) -> Problem:
    n = point["n"]
    size = 4 * ROWS * n
    return Problem(
        inputs=lambda rng: (draw(rng, n),),
        buffers=lambda values: (np.empty(ROWS, np.float32),),
        truth=lambda values: values.sum(axis=1, dtype=np.float64),
        arms={
            "$slug": Arm(run=$slug, bytes_moved=5.0 * size, flops=float(ROWS * n)),  # copy: 2, folding: 3
            "in_order": Arm(run=in_order, bytes_moved=2.0 * size, flops=float(ROWS * n)),
        },
        input_bytes=size,
        tolerance=1e-3,
    )


@suite.oracle
def small_whole_numbers_are_exact() -> None:
    values = np.random.default_rng(0).integers(-100, 100, (ROWS, 1000)).astype(np.float32)
    for name, function in ARMS.items():
        out = np.empty(ROWS, np.float32)
        function(values, out)
        assert np.array_equal(out, values.sum(axis=1, dtype=np.float64)), name
'''


def skeleton(family: str, slug: str) -> dict[Path, str]:
    """Path below the project's root -> text, for the suite ``family/slug``."""
    names = {"family": family, "slug": slug}
    return {
        Path("suites", family, slug, "card.yaml"): Template(_CARD).substitute(names),
        Path("suites", family, slug, "suite.py"): Template(_SUITE).substitute(names),
        Path("reference", "methods", family, f"{slug}.py"): Template(_METHOD).substitute(names),
    }
