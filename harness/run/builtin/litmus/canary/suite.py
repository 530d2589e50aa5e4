"""The A/A canary: one arithmetic load that stays in cache and one stream that does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.declare.suite import Arm, Problem, Suite

suite = Suite(__file__)
_SIZES = {"compute": 2**15, "memory": 2**22}
_RUN = {"compute": np.sin, "memory": np.negative}


@suite.speed("aa")
def same_twice(point: Mapping[str, Any], rng: np.random.Generator, device: str) -> Problem:
    """Arms a and b are one function object; the truth is its float64 result."""
    size, function = _SIZES[point["load"]], _RUN[point["load"]]

    def run(x: Any, out: Any) -> None:
        function(x, out=out)

    arm = Arm(run=run, bytes_moved=16.0 * size, flops=float(size))
    return Problem(
        inputs=lambda draw: (draw.standard_normal(size),),
        buffers=lambda x: (np.empty_like(x),),
        truth=function,
        arms={"a": arm, "b": arm},
        input_bytes=8 * size,
        tolerance=1e-12,
    )
