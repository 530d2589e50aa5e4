"""The A/A canary: one arithmetic load that stays in cache and one stream that does not, on a CPU or a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from harness.declare.suite import Arm, Problem, Suite

suite = Suite(__file__)
_SIZES = {"compute": 2**15, "memory": 2**22}
# A GPU's caches and its width are larger; a stream of 256 MiB passes every L2 cache there is.
_CUDA_SIZES = {"compute": 2**20, "memory": 2**25}
_RUN = {"compute": np.sin, "memory": np.negative}


@suite.speed("aa")
def same_twice(point: Mapping[str, Any], rng: np.random.Generator, device: str) -> Problem:
    """Arms a and b are one function object; the truth is its float64 result."""
    load = point["load"]
    return _on_cpu(_SIZES[load], _RUN[load]) if device == "cpu" else _on_cuda(_CUDA_SIZES[load], load, device)


def _on_cpu(size: int, function: Any) -> Problem:
    def run(x: Any, out: Any) -> None:
        function(x, out=out)

    return Problem(
        inputs=lambda draw: (draw.standard_normal(size),),
        buffers=lambda x: (np.empty_like(x),),
        truth=function,
        arms=_twice(run, size),
        input_bytes=8 * size,
        tolerance=1e-12,
    )


def _on_cuda(size: int, load: str, device: str) -> Problem:
    import torch

    function = {"compute": torch.sin, "memory": torch.neg}[load]

    def run(x: Any, out: Any) -> None:
        function(x, out=out)

    return Problem(
        inputs=lambda draw: (torch.from_numpy(draw.standard_normal(size)).to(device),),
        buffers=lambda x: (torch.empty_like(x),),
        truth=lambda x: _RUN[load](x.numpy()),
        arms=_twice(run, size),
        input_bytes=8 * size,
        tolerance=1e-12,
    )


def _twice(run: Callable[..., None], size: int) -> dict[str, Arm]:
    arm = Arm(run=run, bytes_moved=16.0 * size, flops=float(size))
    return {"a": arm, "b": arm}
