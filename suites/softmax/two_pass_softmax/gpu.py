"""The competitors on a CUDA device: softmax of rows by this project's backends and by torch, beside a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem, SkipArm
from reference.kernels import backend as backends
from reference.kernels.softmax import ALGORITHMS, cost, softmax, truth
from suites.softmax.two_pass_softmax.arms import TOLERANCE, draw, torch_tolerance

Tensor = torch.Tensor

COPY = cost.Cost(1, 1, 0.0)


def gpu_problem(rows: int, n: int, device: str) -> Problem:
    """Softmax of (rows, n) on ``device``; the buffer is the result.

    An arm named BACKEND_ALGORITHM skips where its backend is missing. Where a row fits on chip it is read once,
    whatever the algorithm, so there the arms of a backend differ by chance alone.
    """
    ours = {f"{backend}_{algorithm}": _ours(backend, algorithm, rows, n, device)
            for backend in ("cuda", "triton") for algorithm in ALGORITHMS}
    return Problem(
        inputs=lambda rng: (torch.from_numpy(draw(rng, (rows, n))).to(device),),
        buffers=lambda x: (torch.empty_like(x),),
        truth=lambda x: truth.softmax(x.numpy()),
        error=lambda y, expected: truth.error_units(np.asarray(y), expected),
        arms={
            **ours,
            "torch": _arm(_torch, cost.ALGORITHMS["three_pass_reload"], rows * n, tolerance=torch_tolerance(n)),
            "copy": _arm(_copy, COPY, rows * n, checked=False),
        },
        input_bytes=4 * rows * n,
        tolerance=TOLERANCE,
    )


def _ours(backend: str, algorithm: str, rows: int, n: int, device: str) -> Arm | SkipArm:
    if (reason := backends.missing(backend, device, _source(backend))) is not None:
        return SkipArm(reason)

    def run(x: Tensor, y: Tensor) -> None:
        softmax(x, y, algorithm=algorithm, backend=backend)

    # Triton's interpreter, on a CPU, has no device whose width would say how much is needed.
    workspace_bytes = None if device == "cpu" else cost.workspace_bytes(
        rows, n, algorithm=algorithm, backend=backend, device=torch.device(device))
    return _arm(run, cost.ALGORITHMS[algorithm], rows * n, workspace_bytes=workspace_bytes)


def _source(backend: str) -> Any:
    if backend != "cuda":
        return None
    from reference.kernels.softmax import cuda_gpu

    return cuda_gpu.SOURCE


def _arm(run: Any, model: cost.Cost, elements: int, **details: Any) -> Arm:
    return Arm(run, model.bytes_moved(elements), model.flops_done(elements), **details)


def _torch(x: Tensor, y: Tensor) -> None:
    torch.softmax(x, dim=-1, out=y)


def _copy(x: Tensor, y: Tensor) -> None:
    y.copy_(x)
