"""The speed experiment: output layers that take one training step, held against autograd in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.declare.suite import Arm, Problem, SkipArm
from reference.methods.softmax import z_loss as z
from reference.methods.softmax import z_loss_factored as factored
from reference.methods.softmax import z_loss_steps as steps
from reference.methods.softmax.heads import AdaptiveHead, HierarchicalHead

LOSS = z.ZLoss(sharpness=0.3, location=0.3)
ETA = 0.01  # small, since a timed layer takes thousands of steps on two batches
ALWAYS_COMPARED = 4  # rows of W, beside those of the targets

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Rows = Callable[[Tensor], Tensor]


@dataclass
class Layer:
    """The state that an arm updates: `step` gives losses and the gradient below, `rows` the weights to compare."""

    name: str
    step: Step
    rows: Rows
    before: Tensor | None = None
    found: tuple[Tensor, Tensor, Tensor] | None = None

    def run(self, hidden: Tensor, targets: Tensor) -> None:
        """One step; what it found is kept."""
        losses, gradient = self.step(hidden, targets)
        self.found = losses, gradient, targets

    def outcome(self) -> tuple[str, Tensor, Tensor, Tensor]:
        """Name, mean loss, gradient below, and the change of the rows over the rate."""
        losses, gradient, targets = self.found
        return self.name, losses.mean(), gradient, (self.rows(targets) - self.before) / ETA


def step_problem(point: Mapping[str, Any]) -> Problem:
    """Every arm steps a copy of its own layer, made afresh before each check."""
    torch.set_flush_denormal(True)
    classes, width, batch = point["classes"], point["width"], point["batch"]
    layers = Layers(classes, width)
    square, dense = 4.0 * width * width, 4.0 * classes * width

    def arm(name: str, bytes_moved: float, flops: float) -> Arm:
        return Arm(
            lambda hidden, targets, layer: layer.run(hidden, targets),
            bytes_moved=bytes_moved, flops=flops, in_place=True,
            buffers=lambda hidden, targets: (layers.make(name, targets),),
            outputs=lambda layer: layer.outcome(),
        )

    dense_cost = (3 * dense, 6.0 * batch * classes * width)
    two_level = 2 * classes**0.5
    small = arm("factored_torch", 8 * square, 20.0 * batch * width * width)
    return Problem(
        inputs=lambda random: (
            torch.from_numpy(random.standard_normal((batch, width), dtype=np.float32)),
            torch.from_numpy(random.integers(classes, size=batch)),
        ),
        buffers=lambda *_: (),
        truth=lambda hidden, targets: (hidden, targets),
        error=lambda found, given: step_error(found, layers.truth(found[0], *given)),
        arms={
            "factored": arm("factored", 8 * square, 20.0 * batch * width * width),
            "factored_torch": small if batch == 1 else SkipArm("mini-batches are what 'factored' takes in torch"),
            "dense_z": arm("dense_z", *dense_cost),
            "log_softmax": arm("log_softmax", *dense_cost),
            "hierarchical": arm("hierarchical", 12.0 * two_level * width, 6.0 * batch * two_level * width),
            "adaptive": arm("adaptive", 3 * dense / 16, 6.0 * batch * classes * width / 16),
            "refactor": arm("refactor", 3 * dense, 4.0 * classes * width * width),
        },
        input_bytes=4 * classes * width,
        tolerance=2e-3,
    )


class Layers:
    """The first weights of every arm, each in its own form, and their float64 truth."""

    def __init__(self, classes: int, width: int):
        dense = z.DenseHead(width, classes, LOSS, seed=0)
        soft = z.DenseHead(width, 1, z.LogSoftmax(), seed=0)
        soft.weight = dense.weight
        cutoffs = (max(1, classes // 50), classes // 5)
        self.heads: dict[str, nn.Module] = {
            "dense_z": dense, "log_softmax": soft,
            "hierarchical": HierarchicalHead(width, classes, seed=0),
            "adaptive": AdaptiveHead(width, classes, cutoffs, div_value=4, seed=0),
        }
        with torch.no_grad():
            self.state = factored.Factored.of(dense.weight.detach())

    @torch.no_grad()
    def make(self, name: str, targets: Tensor) -> Layer:
        """A layer of its own memory."""
        layer = getattr(self, f"_{name}")() if name in ("hierarchical", "adaptive") else self._flat(name)
        layer.before = layer.rows(targets).clone()
        return layer

    def _flat(self, name: str) -> Layer:
        """W itself, or its factored form."""
        if name in ("dense_z", "log_softmax"):
            weight = self.heads[name].weight.detach().clone()
            gradient = steps.softmax_output_gradient if name == "log_softmax" else steps.z_output_gradient(LOSS)
            return Layer(name, lambda h, y: steps.dense_step(weight, h, y, gradient, ETA), lambda y: weight[probes(y)])
        state = self.state.copy()
        if name == "refactor":
            return Layer(name, lambda h, y: _cleaned(state, h), lambda y: state.rows(probes(y)))
        if name == "factored":
            quick = steps.FactoredNumba(state)
            return Layer(name, lambda h, y: quick.step(h, y, LOSS, ETA), lambda y: state.rows(probes(y)))
        return Layer(name, lambda h, y: factored.step(state, h, y, LOSS, ETA), lambda y: state.rows(probes(y)))

    def _hierarchical(self) -> Layer:
        head = copy.deepcopy(self.heads["hierarchical"])
        return Layer("hierarchical", lambda h, y: steps.hierarchical_step(head, h, y, ETA),
                     lambda y: compared_rows(head, y))

    def _adaptive(self) -> Layer:
        head = copy.deepcopy(self.heads["adaptive"])
        return Layer("adaptive", lambda h, y: steps.adaptive_step(head, h, y, ETA), lambda y: compared_rows(head, y))

    def truth(self, name: str, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss, gradient below and the rows' gradient, by autograd in float64; a clean-up changes nothing."""
        key = "dense_z" if name.startswith("factored") else name
        if key == "refactor":
            return torch.zeros(()), torch.zeros_like(hidden), torch.zeros(len(probes(targets)), hidden.shape[1])
        head, below = copy.deepcopy(self.heads[key]).double(), hidden.double().requires_grad_()
        loss = head.loss(below, targets)
        loss.backward()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        return loss.detach(), below.grad, -compared_rows(head, targets)


def _cleaned(state: factored.Factored, hidden: Tensor) -> tuple[Tensor, Tensor]:
    factored.refactor(state)
    return hidden.new_zeros(1), torch.zeros_like(hidden)


def probes(targets: Tensor) -> Tensor:
    """The rows of W that are compared."""
    return torch.cat([targets, torch.arange(ALWAYS_COMPARED)])


def compared_rows(head: nn.Module, targets: Tensor) -> Tensor:
    """Weights [n, width] that a step on the targets changes most."""
    if isinstance(head, HierarchicalHead):
        return torch.cat([head.class_weight, head.word_weight[targets // head.size].flatten(0, 1)]).detach()
    if isinstance(head, AdaptiveHead):
        return head.layer.head.weight.detach()
    return head.weight.detach()[probes(targets)]


def step_error(found: tuple[str, Any, Any, Any], right: tuple[Tensor, Tensor, Tensor]) -> float:
    """The largest relative error of loss, gradient and change, each by its largest entry."""
    worst = 0.0
    for got, expected in zip(found[1:], right, strict=True):
        scale = float(expected.abs().max()) or 1.0
        worst = max(worst, float(torch.nan_to_num((got.double() - expected).abs(), nan=torch.inf).max()) / scale)
    return worst
