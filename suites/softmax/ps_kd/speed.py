"""The speed experiment: a training step with labels, with the table of old answers, with a copy of the old net."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness.declare.suite import Arm, Problem
from reference.methods.softmax.ps_kd import Answers, mixed, soft_cross_entropy
from reference.methods.softmax.ps_kd_training import Setting
from reference.testbeds.flops import forward_flops
from reference.testbeds.glyph_nets import residual_net

ALPHA = 0.5


@dataclass
class Step:
    """A training step of a net; old answers come from a table or from an older net, where there is one.

    The rate is 0: a step does all its work, and thousands of them on the same images leave the weights as they are.
    """

    net: nn.Module
    answers: Answers | None = None
    older: nn.Module | None = None

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.0, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def __call__(self, x: Tensor, labels: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [n] of the batch and the gradient of the head's weight [classes, width]."""
        logits = self.net(x)
        if self.answers is not None:
            losses = soft_cross_entropy(logits, self.answers.targets(rows, labels, ALPHA))
            self.answers.keep(rows, logits)
        elif self.older is not None:
            with torch.no_grad():
                targets = mixed(labels, torch.softmax(self.older(x), 1), ALPHA)
            losses = soft_cross_entropy(logits, targets)
        else:
            losses = cross_entropy(logits, labels, reduction="none")
        self.optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        self.optimizer.step()
        return losses.detach(), self.net.head.weight.grad


def step_problem(classes: int, batch: int) -> Problem:
    """The three steps on random batches of the training images; the table begins with the older net's answers."""
    setting = Setting(epochs=1, data_seed=0, init_seed=0, classes=classes)
    images, labels = setting.images("train")
    net, older = (residual_net(seed, classes, setting.width) for seed in (0, 1))
    with torch.no_grad():
        old_answers = torch.softmax(older.eval()(images), 1)

    def step(name: str, dtype: torch.dtype = torch.float32) -> Step:
        answers = Answers(labels, classes)
        answers.table = old_answers.to(dtype, copy=True)
        kinds: dict[str, Any] = {"table": {"answers": answers}, "net_copy": {"older": copy.deepcopy(older).to(dtype)}}
        return Step(copy.deepcopy(net).to(dtype), **kinds.get(name, {}))

    def inputs(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        rows = torch.from_numpy(rng.choice(len(images), batch, replace=False))
        return images[rows], labels[rows], rows

    def truth(x: Tensor, y: Tensor, rows: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        # of the copy, also for the table: both ask the older net
        found = {name: step(name, torch.float64)(x.double(), y, rows) for name in ("ce", "net_copy")}
        return found | {"table": found["net_copy"]}

    forward = batch * forward_flops(net, setting.side)
    parameters = 4.0 * sum(parameter.numel() for parameter in net.parameters())
    table_bytes = 3 * 4.0 * batch * classes

    def arm(name: str) -> Arm:
        return Arm(
            run=lambda x, y, rows, taken: (*taken(x, y, rows), name),
            buffers=lambda x, y, rows: (step(name),),
            in_place=True,
            bytes_moved=6 * parameters + {"table": table_bytes, "net_copy": parameters}.get(name, 0.0),
            flops=forward * (4 if name == "net_copy" else 3),
        )

    return Problem(
        inputs=inputs, buffers=lambda x, y, rows: (), truth=truth, error=step_error, tolerance=1e-3,
        arms={name: arm(name) for name in ("ce", "table", "net_copy")}, input_bytes=4 * batch * setting.side**2,
    )


def step_error(found: tuple[Tensor, Tensor, str], truth: dict[str, tuple[Tensor, Tensor]]) -> float:
    """The larger of the largest errors of losses and gradient, each over the largest of its values."""
    *got, name = found
    pairs = zip(got, truth[name], strict=True)
    return max(float((ours.double() - exact).abs().max() / exact.abs().max()) for ours, exact in pairs)
