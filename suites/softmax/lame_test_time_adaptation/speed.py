"""The speed experiments: one batch through each method, and LAME's iteration on its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from harness.declare.suite import Arm, Problem
from reference.methods.softmax.lame_test_time_adaptation import affinity, neighbours, refine
from reference.methods.softmax.lame_test_time_adaptation_numba import refine_steps
from reference.testbeds.flops import forward_flops

Tensor = torch.Tensor

BATCH = 64
NEIGHBOURS = 5
STEPS = 10
DIMENSIONS = 64
# all the work and next to no step: thousands of calls on the same images must not drive numbers into the subnormals
_RATE = 1e-6


def batch_problem(model: torch.nn.Module, pool: Tensor, methods: Mapping[str, Callable[..., Any]]) -> Problem:
    """Each method with a copy of the model, on batches drawn from `pool`; gradients and statistics in full.

    The truth is the same method on a float64 copy. An arm's error is the median over images of the distance in total
    variation: two neighbours at all but equal distance may change places, and then a few images differ.
    """
    options: dict[str, dict[str, float]] = {name: {} for name in methods}
    options |= {name: {"lr": _RATE} for name in ("tent", "shot_im", "pseudo_label") if name in methods}
    exact = copy.deepcopy(model).double()

    def inputs(rng: np.random.Generator) -> tuple[Tensor]:
        start = int(rng.integers(len(pool) - BATCH + 1))
        return (pool[start : start + BATCH].clone(),)

    def arm(name: str) -> Arm:
        passes = 1 if name in ("none", "lame", "adabn") else 3
        return Arm(
            run=lambda x, adapter: (adapter(x), name),
            buffers=lambda x: (methods[name](model, **options[name]),),
            in_place=True,
            bytes_moved=float(4 * pool[0].numel() * BATCH * passes),
            flops=float(passes * BATCH * forward_flops(model, pool.shape[-1])),
        )

    def truth(x: Tensor) -> dict[str, Tensor]:
        return {name: methods[name](exact, **options[name])(x.double()) for name in methods}

    return Problem(
        inputs=inputs, buffers=lambda x: (), truth=truth, arms={name: arm(name) for name in methods},
        error=lambda found, expected: float(0.5 * (found[0].double() - expected[found[1]]).abs().sum(1).median()),
        input_bytes=4 * BATCH * pool[0].numel(), tolerance=1e-3,
    )


def refine_problem(n: int, classes: int) -> Problem:
    """Nearest neighbours and `STEPS` steps from features and probabilities; the affinity as a matrix or as lists.

    Equal work in every arm: the iteration does not stop early. Arms return the lists they used, and are held against
    float64 steps on these lists: an error in the distances counts by how much farther a chosen neighbour is.
    """

    def inputs(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        features = rng.standard_normal((n, DIMENSIONS), dtype=np.float32)
        logits = 3 * rng.standard_normal((n, classes), dtype=np.float32)
        return normalize(torch.from_numpy(features), dim=1), torch.from_numpy(logits).softmax(1)

    def dense(f: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        W = affinity(f, "knn", NEIGHBOURS)
        return refine(Q, W, 0.0, STEPS).probabilities, W

    def sparse(f: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        lists = neighbours(f, NEIGHBOURS)
        return refine(Q, lists, 0.0, STEPS).probabilities, lists

    def compiled(f: Tensor, Q: Tensor) -> tuple[Tensor, Tensor]:
        lists = neighbours(f, NEIGHBOURS)
        return torch.from_numpy(refine_steps(Q.numpy(), lists.numpy(), STEPS)), lists

    size = 4.0 * n * classes
    distances, exponentials = 2.0 * n * n * DIMENSIONS, 20.0 * STEPS * n * classes
    gathered = Arm(sparse, bytes_moved=STEPS * (NEIGHBOURS + 3) * size, workspace_bytes=None,
                   flops=distances + exponentials + STEPS * NEIGHBOURS * n * classes)
    return Problem(
        inputs=inputs, buffers=lambda f, Q: (),
        truth=lambda f, Q: (f.double(), Q.double()),
        error=refine_error,
        arms={
            "dense_torch": Arm(dense, bytes_moved=STEPS * (4.0 * n * n + 4 * size),
                               flops=distances + exponentials + 2.0 * STEPS * n * n * classes),
            "sparse_torch": gathered,
            "sparse_numba": Arm(compiled, bytes_moved=gathered.bytes_moved, flops=gathered.flops),
        },
        input_bytes=int(size) + 4 * n * DIMENSIONS, tolerance=1e-4,
    )


def refine_error(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    """The larger of two faults: how much farther a chosen neighbour is than the right one, and the rows Z."""
    (Z, W), (f, Q) = found, exact
    lists = W.nonzero()[:, 1].view(len(W), -1) if W.is_floating_point() else W
    distance = torch.cdist(f, f).fill_diagonal_(torch.inf)
    nearest = distance.topk(NEIGHBOURS, largest=False).values
    if lists.shape != nearest.shape:
        return float("inf")
    excess = (distance.gather(1, lists).sort(1).values - nearest).max()
    return float(torch.maximum(excess, (Z.double() - refine(Q, lists, 0.0, STEPS).probabilities).abs().max()))
