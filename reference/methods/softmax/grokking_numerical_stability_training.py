"""Full-batch runs on modular tasks, watched as they go: accuracies, collapsed rows, gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from reference.methods.softmax.grokking_numerical_stability import (
    LOSSES,
    alignment,
    collapsed,
    with_grokfast,
    with_perpgrad,
)
from reference.testbeds.modular import Task, UnbiasedMLP, arithmetic, sparse_parity
from reference.testbeds.seeding import generator
from reference.testbeds.training import train

FITTED, COLLAPSED = 0.99, 0.5
_LAST = 50


@dataclass
class Curves:
    """Seen every few epochs (``epochs``) and, where asked for, at every step (``gradient_norms``, ``cosines``).

    ``collapsed`` is the share of training rows that softmax in the run's dtype loses. ``cosines`` holds (step, cosine
    of descent with the weights, cosine of a fixed random direction with them).
    """

    epochs: list[int] = field(default_factory=list)
    train_accuracy: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    collapsed: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    cosines: list[tuple[int, float, float]] = field(default_factory=list)
    failed: bool = False

    def first(self, series: list[float], at_least: float) -> int | None:
        """The first epoch seen at which ``series`` is that high; None where it never is."""
        return next((epoch for epoch, value in zip(self.epochs, series, strict=True) if value >= at_least), None)

    def epochs_to(self, accuracy: float, budget: int) -> float:
        """When the test accuracy first was that high; otherwise above the budget, the less so the better it ever was.

        Only accuracies of a net that fits its training rows count: one that has learnt nothing is right by chance.
        """
        first = self.first(self.test_accuracy, accuracy)
        pairs = zip(self.train_accuracy, self.test_accuracy, strict=True)
        best = max((test for train, test in pairs if train >= FITTED), default=0.0)
        return float(first) if first is not None else budget * (2 - best)

    def onset(self) -> int | None:
        """The first epoch seen at which more than half of the training rows have collapsed."""
        return self.first(self.collapsed, COLLAPSED)

    def change_since(self, epoch: int | None) -> float:
        """How far the last test accuracy is from that at ``epoch``; NaN where that never was."""
        if epoch is None:
            return math.nan
        return abs(self.test_accuracy[-1] - self.test_accuracy[self.epochs.index(epoch)])

    def alignment_around_fit(self) -> tuple[float, float]:
        """Mean cosine before every training row was right, and over the last 50 steps; NaN where that never was."""
        fitted, cosines = self.first(self.train_accuracy, 1.0), [cosine for _, cosine, _ in self.cosines]
        return fmean(cosines[:fitted]), math.nan if fitted is None else fmean(cosines[-_LAST:])


def task_for(operation: str, modulus: int, train_share: float, seed: int) -> Task:
    """``add`` or ``product`` of two numbers, or ``parity`` of three among 43 signs, which has no modulus."""
    if operation == "parity":
        return sparse_parity(seed, train_share=train_share)
    return arithmetic(operation, modulus, train_share, seed)


def net_for(task: Task, hidden: int, seed: int, loss: str) -> UnbiasedMLP:
    """width - hidden - hidden - classes without biases, trained on one of ``LOSSES``."""
    return UnbiasedMLP((task.width, hidden, hidden, task.classes), seed, LOSSES[loss])


def optimizer_for(kind: str, net: UnbiasedMLP, lr: float, **settings: Any) -> torch.optim.Optimizer:
    """``adamw`` or ``sgd``, alone or behind ``perp_`` or ``grokfast_``; no weight decay unless asked for.

    Adam's betas are 0.9 and 0.99 and its eps 1e-25: the usual 1e-8 is far above the gradients that remain when a net
    has fitted its data, and would hide everything that happens then.
    """
    filter_, _, base = kind.rpartition("_")
    parameters = net.parameters()
    if base == "adamw":
        settings = {"betas": (0.9, 0.99), "eps": 1e-25, "weight_decay": 0.0, **settings}
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(parameters, lr=lr, **settings)
    elif base == "sgd":
        optimizer = torch.optim.SGD(parameters, lr=lr, **settings)
    else:
        raise KeyError(f"no optimizer {base!r}; there are adamw and sgd")
    if filter_ == "perp":
        return with_perpgrad(optimizer)
    return with_grokfast(optimizer) if filter_ == "grokfast" else optimizer


def run(
    net: UnbiasedMLP,
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    every: int,
    *,
    dtype: torch.dtype = torch.float32,
    stop_at: float = math.inf,
    stop_after_fit: int | None = None,
    stop_after_collapse: int | None = None,
    watch_norms: bool = False,
    watch_alignment: bool = False,
) -> Curves:
    """Up to ``epochs`` full-batch steps, looking every ``every``: one row of the curves each time.

    Ends early once the test accuracy is at least ``stop_at``, and so many epochs after the first look at which every
    training row is right (``stop_after_fit``) or half of them have collapsed (``stop_after_collapse``). ``dtype`` is
    the one in which collapsed rows are counted.
    """
    device = next(net.parameters()).device
    parts = ("train_x", "train_y", "test_x", "test_y")
    task = replace(task, **{name: getattr(task, name).to(device) for name in parts})
    curves, batches, random = Curves(), task.batches(), generator("direction")
    direction = [torch.randn(p.shape, generator=random).to(device) for p in net.parameters()]
    done = 0

    def on_gradients(step: int, gradients: dict[str, Tensor]) -> None:
        if watch_norms:
            norms = [g.double().norm() for g in gradients.values()]
            curves.gradient_norms.append(float(torch.stack(norms).norm()))
        if watch_alignment:
            weights = list(net.parameters())
            pair = alignment(weights, gradients.values()), alignment(weights, direction)
            curves.cosines.append((done + step, *pair))

    watch = on_gradients if watch_norms or watch_alignment else None
    while done < epochs and not curves.failed:
        history = train(net, batches, optimizer, None, min(every, epochs - done), on_gradients=watch)
        done += len(history.train_loss)
        curves.failed = history.failed
        _look(curves, net, task, done, dtype)
        if curves.test_accuracy[-1] >= stop_at:
            break
        if _long_after(curves.first(curves.train_accuracy, 1.0), stop_after_fit, done):
            break
        if _long_after(curves.onset(), stop_after_collapse, done):
            break
    return curves


def _long_after(event: int | None, wait: int | None, now: int) -> bool:
    return event is not None and wait is not None and now >= event + wait


@torch.no_grad()
def _look(curves: Curves, net: UnbiasedMLP, task: Task, epoch: int, dtype: torch.dtype) -> None:
    logits = net(task.train_x)
    curves.epochs.append(epoch)
    curves.train_accuracy.append(_accuracy(logits, task.train_y))
    curves.collapsed.append(float(collapsed(logits, task.train_y, dtype).double().mean()))
    curves.test_accuracy.append(_accuracy(net(task.test_x), task.test_y))


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
