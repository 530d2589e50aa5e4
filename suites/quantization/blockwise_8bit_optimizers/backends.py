"""Which of this project's backends an arm can have on a device, and what it may allocate there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from harness.declare.suite import Arm, SkipArm
from reference.kernels.backend import missing
from reference.kernels.quantize import SOURCE, cost

BLOCK = 256


def unless_missing(backend: str, device: str, build: Callable[[], Arm]) -> Arm | SkipArm:
    """``build()``, or why ``backend`` cannot run on ``device``."""
    reason = missing(backend, device, SOURCE if backend == "cuda" else None)
    return build() if reason is None else SkipArm(reason)


def unless_not_installed(build: Callable[[], Arm]) -> Arm | SkipArm:
    """``build()`` of an arm that calls bitsandbytes, whose operators are registered first; a skip without it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return SkipArm("bitsandbytes is not installed")
    import bitsandbytes  # noqa: F401  # registers the operators

    return build()


def workspace_bytes(op: str, n: int, backend: str) -> int | None:
    """What a call of ``op`` on ``n`` entries in blocks of ``BLOCK`` may allocate; None where nothing is promised."""
    if backend == "numba":
        return cost.workspace_bytes(op, torch.get_num_threads())
    if backend == "cuda":
        from reference.kernels.quantize import cuda_gpu

        return cuda_gpu.workspace_bytes(op, n, BLOCK)
    return 0 if backend == "triton" else None
