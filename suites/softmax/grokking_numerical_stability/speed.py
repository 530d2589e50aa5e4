"""The speed experiments: what StableMax costs against softmax, and what PerpGrad adds to a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness.declare.suite import Arm, Point, Problem
from reference.methods.softmax.grokking_numerical_stability import perpendicular, stablemax_row_losses
from reference.methods.softmax.grokking_numerical_stability_numba import stablemax_loss_and_gradient
from reference.methods.softmax.grokking_numerical_stability_training import net_for, optimizer_for
from reference.testbeds.modular import UnbiasedMLP, arithmetic

Truth = dict[str, list[np.ndarray]]


def worst(found: tuple[Any, ...], truth: Truth) -> float:
    """The largest error of any entry over the largest entry of its array; the last item says which truth is meant."""
    arrays = [np.asarray(item, np.float64) for item in found[:-1]]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(arrays, truth[found[-1]], strict=True))


def _by_autograd(row_losses: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    losses = row_losses(logits, labels)
    (gradient,) = torch.autograd.grad(losses.mean(), logits)
    return losses.detach(), gradient


def _softmax(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(logits, labels, reduction="none")


def loss_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """StableMax and softmax on logits of N(0, 10^2), so that both branches of the map are taken."""
    rows, classes, dtype = point["rows"], point["classes"], point["dtype"]
    size = np.dtype(dtype).itemsize * rows * classes

    def truth(logits: Tensor, labels: Tensor) -> Truth:
        return {name: [part.numpy() for part in _by_autograd(function, logits.double(), labels)]
                for name, function in (("stablemax", stablemax_row_losses), ("softmax", _softmax))}

    def compiled(logits: Tensor, labels: Tensor) -> tuple[np.ndarray, np.ndarray, str]:
        x = logits.numpy()
        losses, gradient = np.empty(rows, x.dtype), np.empty_like(x)
        stablemax_loss_and_gradient(x, labels.numpy(), losses, gradient)
        return losses, gradient, "stablemax"

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        logits = (10 * rng.standard_normal((rows, classes))).astype(dtype)
        return torch.from_numpy(logits), torch.from_numpy(rng.integers(classes, size=rows))

    # a read and a write of the matrix; per entry the map, its sum and its slope
    cost = {"bytes_moved": 2.0 * size, "flops": 8.0 * rows * classes}
    return Problem(
        inputs=draw,
        buffers=lambda *_: (),
        truth=truth,
        error=worst,
        arms={
            "stablemax_eager": Arm(lambda x, y: (*_by_autograd(stablemax_row_losses, x, y), "stablemax"), **cost),
            "stablemax_numba": Arm(compiled, **cost),
            "softmax_torch": Arm(lambda x, y: (*_by_autograd(_softmax, x, y), "softmax"), **cost),
        },
        input_bytes=size,
        tolerance=1e-4 if dtype == "float32" else 1e-11,
    )


def step_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One step from given initial values, with and without the projection.

    What is compared with the truth is the gradient that AdamW was given.
    """
    hidden, modulus = point["hidden"], point["modulus"]
    task = arithmetic("add", modulus, 0.4, 0)
    rows, weights = len(task.train_y), hidden * (3 * modulus + hidden)

    def net(dtype: torch.dtype = torch.float32) -> UnbiasedMLP:
        return net_for(task, hidden, 0, "fp32" if dtype == torch.float32 else "fp64").to(dtype)

    def truth(x: Tensor, y: Tensor) -> Truth:
        exact = net(torch.float64)
        exact.loss(x.double(), y).backward()
        pairs = [(p.detach(), p.grad) for p in exact.parameters()]
        return {"adamw": [g.numpy() for _, g in pairs], "perp_adamw": [perpendicular(p, g).numpy() for p, g in pairs]}

    def arm(kind: str) -> Arm:
        def buffers(x: Tensor, y: Tensor) -> tuple[UnbiasedMLP, torch.optim.Optimizer]:
            model = net()
            return model, optimizer_for(kind, model, 0.01)

        def step(x: Tensor, y: Tensor, model: UnbiasedMLP, optimizer: torch.optim.Optimizer) -> None:
            optimizer.zero_grad()
            model.loss(x, y).backward()
            optimizer.step()

        def outputs(model: UnbiasedMLP, optimizer: torch.optim.Optimizer) -> tuple[Any, ...]:
            return (*(p.grad for p in model.parameters()), kind)

        # the products of forward and backward pass; Adam's 12 operations, and 8 of the projection
        flops = 6.0 * rows * weights + (20.0 if kind == "perp_adamw" else 12.0) * weights
        moved = 4.0 * (3 * rows * (2 * modulus + 2 * hidden) + (11 if kind == "perp_adamw" else 7) * weights)
        return Arm(step, bytes_moved=moved, flops=flops, buffers=buffers, outputs=outputs, in_place=True)

    return Problem(
        inputs=lambda rng: (task.train_x, task.train_y),
        buffers=lambda *_: (),
        truth=truth,
        error=worst,
        arms={kind: arm(kind) for kind in ("adamw", "perp_adamw")},
        input_bytes=4 * task.train_x.numel(),
        tolerance=1e-4,
    )
