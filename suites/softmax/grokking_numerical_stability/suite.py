"""Grokking at the Edge of Numerical Stability (arXiv 2501.04697): softmax collapse, StableMax, PerpGrad, alignment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from harness.judge.stats.intervals import wilson
from reference.methods.softmax import grokking_numerical_stability as method
from reference.methods.softmax.grokking_numerical_stability_numba import stablemax_loss_and_gradient
from reference.methods.softmax.grokking_numerical_stability_training import (
    Curves,
    net_for,
    optimizer_for,
    run,
    task_for,
)
from reference.testbeds.modular import Task, UnbiasedMLP
from suites.softmax.grokking_numerical_stability.speed import loss_problem, step_problem

if TYPE_CHECKING:
    import pandas as pd

Metrics = dict[str, Any]

suite = Suite(__file__)

DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
GENERALISED, FITTED, COLLAPSED = 0.95, 0.99, 0.5
EVERY = 10
FOLLOWED, AFTER_FIT, LAST = 1000, 500, 50


def problem(point: Point, seed: int, loss: str, device: str) -> tuple[Task, UnbiasedMLP]:
    """The pairs and the net: the same for all arms of a seed."""
    task = task_for(point["task"], point["modulus"], point["train_share"], seed_for("data", seed))
    suite.uses_data("modular", task.batches().digest)
    return task, net_for(task, point["hidden"], seed_for("init", seed), loss).to(device)


def epochs_to_95(curves: Curves, budget: int) -> float:
    """When the test accuracy first was 95 %; otherwise above the budget, the less so the better it ever was.

    Only accuracies of a net that fits its training pairs count: one that has learnt nothing is right by chance.
    """
    first = curves.first(curves.test_accuracy, GENERALISED)
    pairs = zip(curves.train_accuracy, curves.test_accuracy, strict=True)
    best = max((test for train, test in pairs if train >= FITTED), default=0.0)
    return float(first) if first is not None else budget * (2 - best)


@suite.trial("generalisation")
def generalisation(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One arm until it generalises, or until the budget ends."""
    task, net = problem(point, seed, "stablemax" if arm.endswith("stablemax") else "fp32", device)
    settings = dict(tuned) or {"lr": 0.01}
    kind = arm.removesuffix("_decay").removesuffix("_stablemax")
    optimizer = optimizer_for(kind, net, **settings)
    curves = run(net, task, optimizer, point["epochs"], EVERY, stop_at=GENERALISED)
    best = max(curves.test_accuracy)
    return {
        "epochs_to_95": epochs_to_95(curves, point["epochs"]), "reached": float(best >= GENERALISED),
        "test_accuracy": best, "test_curve": curves.test_accuracy,
    }


@suite.trial("precision")
def precision(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Train until the loss has collapsed, and 1000 epochs on."""
    task, net = problem(point, seed, arm, device)
    optimizer = optimizer_for("adamw", net, point["lr"], eps=1e-30)
    curves = run(net, task, optimizer, point["epochs"], EVERY, dtype=DTYPES[arm], stop_after_collapse=FOLLOWED)
    onset = curves.first(curves.collapsed, COLLAPSED)
    accuracy = dict(zip(curves.epochs, curves.test_accuracy, strict=True))
    change = math.nan if onset is None else abs(curves.test_accuracy[-1] - accuracy[onset])
    return {
        "onset": float(onset if onset is not None else point["epochs"]), "change_after_onset": change,
        "test_accuracy": curves.test_accuracy[-1],
    }


@suite.trial("stability")
def stability(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """All of the budget, whatever happens."""
    task, net = problem(point, seed, arm, device)
    lr = tuned.get("lr") or (suite.tuned.values("stability", "fp32") or {"lr": 0.01})["lr"]
    optimizer = optimizer_for("adamw", net, lr)
    curves = run(net, task, optimizer, point["epochs"], EVERY, dtype=DTYPES.get(arm, torch.float32))
    return {
        "test_accuracy": curves.test_accuracy[-1], "epochs_to_95": epochs_to_95(curves, point["epochs"]),
        "zero_gradients": curves.gradient_norms.count(0.0), "least_gradient": min(curves.gradient_norms),
    }


@suite.trial("alignment")
def alignment(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Every step's gradient against the weights, before the fit and 500 epochs after it."""
    task, net = problem(point, seed, arm, device)
    optimizer = optimizer_for("adamw", net, point["lr"])
    curves = run(net, task, optimizer, point["epochs"], EVERY, stop_after_fit=AFTER_FIT, watch_alignment=True)
    fitted = curves.first(curves.train_accuracy, 1.0)
    cosines = [cosine for _, cosine, _ in curves.cosines]
    before = fmean(cosines[:fitted])
    after = math.nan if fitted is None else fmean(cosines[-LAST:])
    return {
        "cos_before": before, "cos_after": after, "cos_rise": after - before, "cos_start": cosines[0],
        "cos_random": curves.cosines[-1][2],
    }


@suite.speed("loss_time")
def loss_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """StableMax and softmax."""
    return loss_problem(point["rows"], point["classes"], point["dtype"])


@suite.speed("step_time")
def step_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """AdamW with and without the projection."""
    return step_problem(point["modulus"], point["hidden"])


@suite.estimate("prompt_share")
def prompt_share(records: pd.DataFrame, level: float, of: str, baseline: str, times: float) -> Estimate:
    """Share of seeds in which ``of`` generalised and ``baseline`` had not after ``times`` as many epochs.

    Where the budget ended before that many epochs, and ``baseline`` had not generalised, nobody knows: unbounded.
    """
    table = records.pivot(index=["cell", "epochs"], columns="arm", values=["epochs_to_95", "reached"]).reset_index()
    when, slow = table["epochs_to_95"][of], table["epochs_to_95"][baseline]
    reached, slow_reached = table["reached"][of] == 1, table["reached"][baseline] == 1
    prompt = reached & ~(slow_reached & (slow <= times * when))
    unknown = prompt & ~slow_reached & (times * when > table["epochs"])
    low, high = wilson(int(prompt.sum()), len(prompt), level)
    method = f"Wilson interval over {len(prompt)} seeds"
    if unknown.any():
        low, high, method = -math.inf, math.inf, f"the budget ended too early in {int(unknown.sum())} seeds"
    return Estimate(float(prompt.mean()), low, high, len(prompt), level, "seed", method)


@suite.oracle
def two_classes_collapse_at_the_closed_form_gap() -> None:
    """1 + exp(-gap) rounds to 1 from -ln(eps / 2) on: 7.62, 16.64 and 36.74."""
    for dtype, known in ((torch.float16, 7.62), (torch.float32, 16.64), (torch.float64, 36.74)):
        gap = method.collapse_gap(dtype)
        assert abs(gap - known) < 0.01, (dtype, gap)
        as_numpy = np.dtype(str(dtype).removeprefix("torch.")).type
        for factor, lost in ((1.01, True), (0.98, False)):
            logits = torch.tensor([[gap * factor, 0.0]], dtype=torch.float64)
            assert method.collapsed(logits, torch.tensor([0]), dtype).item() == lost, (dtype, factor)
            assert (as_numpy(1) + np.exp(as_numpy(-gap * factor)) == 1) == lost, (dtype, factor)


@suite.oracle
def a_collapsed_row_has_neither_loss_nor_gradient_at_its_class() -> None:
    for dtype in DTYPES.values():
        logits = torch.tensor([[1.5 * method.collapse_gap(dtype), 0.0]], dtype=torch.float64, requires_grad=True)
        loss = method.row_losses(logits, torch.tensor([0]), dtype).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0 and gradient[0, 0].item() == 0, (dtype, loss, gradient)


@suite.oracle
def softmax_losses_are_those_of_float64() -> None:
    logits = 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(50) % 7
    exact = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for name, dtype in DTYPES.items():
        error = (method.row_losses(logits, labels, dtype).double() - exact).abs().max().item()
        assert error < 40 * torch.finfo(dtype).eps, (name, error)


@suite.oracle
def stablemax_is_a_distribution_that_keeps_the_order() -> None:
    logits = 20 * torch.randn(100, 13, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = method.stablemax(logits)
    assert (p > 0).all() and (p.sum(-1) - 1).abs().max() < 1e-14
    assert torch.equal(p.argsort(-1), logits.argsort(-1))
    assert torch.equal(method.stable_map(torch.tensor([0.0, 3.0, -3.0])), torch.tensor([1.0, 4.0, 0.25]))
    expected = -p.gather(-1, torch.zeros(100, 1, dtype=torch.int64)).log().mean()
    assert abs(method.stablemax_cross_entropy(logits, torch.zeros(100, dtype=torch.int64)) - expected) < 1e-13


@suite.oracle
def stablemax_gradient_by_finite_differences() -> None:
    """Of both implementations, entry by entry."""
    logits = 4 * torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.arange(6) % 5
    (gradient,) = torch.autograd.grad(method.stablemax_cross_entropy(logits.requires_grad_(), labels), logits)
    losses, compiled = np.empty(6), np.empty((6, 5))
    stablemax_loss_and_gradient(logits.detach().numpy(), labels.numpy(), losses, compiled)
    moved = [[step * torch.eye(30, dtype=torch.float64)[i].view(6, 5) for i in range(30)] for step in (1e-6, -1e-6)]
    up, down = ([method.stablemax_cross_entropy(logits.detach() + by, labels).item() for by in side] for side in moved)
    slopes = ((np.array(up) - np.array(down)) / 2e-6).reshape(6, 5)
    for found in (gradient.numpy(), compiled):
        assert np.abs(found - slopes).max() < 1e-8, np.abs(found - slopes).max()
    assert abs(losses.mean() - method.stablemax_cross_entropy(logits, labels).item()) < 1e-13


@suite.oracle
def perpendicular_and_as_long() -> None:
    """<w, g_perp> = 0 and |g_perp| = |g|, and g_perp lies in the plane of w and g on the side of g."""
    random = torch.Generator().manual_seed(3)
    for shape in ((5,), (30, 20), (3, 4, 5)):
        w, g = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
        kept = method.perpendicular(w, g)
        assert abs((w * kept).sum() / (w.norm() * g.norm())) < 1e-12, shape
        assert abs(kept.norm() / g.norm() - 1) < 1e-12, shape
        along = (g * w).sum() / (w * w).sum()
        sine = torch.sqrt(1 - (g * w).sum() ** 2 / ((g * g).sum() * (w * w).sum()))
        assert torch.allclose(kept, (g - along * w) / sine), shape


@suite.oracle
def alignment_of_weights_with_themselves() -> None:
    """Descent along the weights has cosine 1, ascent -1, and a direction perpendicular to them 0."""
    w = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    assert abs(method.alignment([w], [-3 * w]) - 1) < 1e-12
    assert abs(method.alignment([w, w], [w, -w])) < 1e-12
    assert abs(method.alignment([w], [method.perpendicular(w, torch.ones_like(w))])) < 1e-6
