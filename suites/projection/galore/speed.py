"""The speed experiments: a step in a fixed subspace by every backend, and the ways to a new subspace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem, SkipArm
from reference.kernels import project as kernels
from reference.kernels.backend import missing
from reference.kernels.project import cost, truth
from reference.kernels.project.dispatch import SOURCE
from reference.kernels.project.refresh import REFRESHES, gradient_like, refresh_error

# the paper's scale of the projected update
ALPHA = 0.25
STEP = {"step": 10, "lr": 0.01, "alpha": ALPHA, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}


def step_problem(shape: str, device: str, arms: Sequence[str]) -> Problem:
    """One step with a fixed basis; the moments start away from zero, where every backend is well conditioned.

    The time does not depend on which orthonormal basis it is, so it is a random one: an SVD of each draw would take
    longer than the measurement.
    """
    m, n, rank = sizes(shape)
    side = kernels.small_side(m, n)

    def inputs(random: np.random.Generator) -> tuple[torch.Tensor, ...]:
        G = gradient_like(m, n, random)
        P = kernels.random_basis(G, rank, side, torch.Generator().manual_seed(int(random.integers(2**62))))
        W = torch.from_numpy(random.standard_normal((m, n), dtype=np.float32))
        G, P, W = (tensor.to(device) for tensor in (G, P, W))
        R = kernels.project(G, P, side)
        return G, P, W, 0.1 * R, 0.1 * R.square() + 0.01

    return Problem(
        inputs=inputs,
        buffers=lambda G, P, W, M, V: (W.clone(), M.clone(), V.clone()),
        truth=lambda G, P, W, M, V: truth.lowrank_adam_step(W, G, P, M, V, side=side, **STEP),
        arms={name: step_arm(name, (m, n, rank), device) for name in arms},
        input_bytes=4 * m * n,
        tolerance=1e-5,
    )


def step_arm(name: str, shape: tuple[int, int, int], device: str) -> Arm | SkipArm:
    """The step by one backend, or why that cannot run on ``device``. Only ``numba`` declares what it allocates."""
    side = kernels.small_side(*shape[:2])
    # what torch.compile makes for a CUDA device is Triton
    needed = name if name != "compile" else "triton" if device.startswith("cuda") else "eager"
    if reason := missing(needed, device, SOURCE):
        return SkipArm(reason)

    def run(G: Any, P: Any, W0: Any, M0: Any, V0: Any, W: Any, M: Any, V: Any) -> None:
        kernels.lowrank_adam_step(W, G, P, M, V, side=side, backend=name, **STEP)

    return Arm(
        run,
        bytes_moved=cost.lowrank_adam_bytes(*shape),
        flops=cost.lowrank_adam_flops(*shape),
        in_place=True,
        workspace_bytes=cost.lowrank_adam_workspace_bytes(*shape, side) if name == "numba" else None,
    )


def refresh_problem(shape: str) -> Problem:
    """Three ways to the same subspace; each is held against its own promise, see ``refresh_error``."""
    m, n, rank = sizes(shape)
    table = torch.empty(0)
    methods = {name: REFRESHES[name] for name in ("svd", "gram", "range_finder")}
    return Problem(
        inputs=lambda random: (gradient_like(m, n, random),),
        buffers=lambda G: (),
        truth=lambda G: G.double().numpy(),
        error=lambda found, G: refresh_error(found[0], G, found[1]),
        arms={
            name: Arm(
                lambda G, method=method: (method.run(G, rank, table), method.best),
                bytes_moved=cost.refresh_bytes(m, n, rank),
                flops=method.flops(m, n, rank),
            )
            for name, method in methods.items()
        },
        input_bytes=4 * m * n,
        tolerance=1e-4,
    )


def sizes(shape: str) -> tuple[int, int, int]:
    """``512x2048x128`` -> (512, 2048, 128): m, n and the rank."""
    m, n, rank = (int(part) for part in shape.split("x"))
    return m, n, rank
