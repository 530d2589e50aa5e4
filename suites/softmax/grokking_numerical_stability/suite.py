"""Grokking at the Edge of Numerical Stability (arXiv 2501.04697): softmax collapse, StableMax, PerpGrad, alignment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Suite
from reference.methods.softmax import grokking_numerical_stability as method
from reference.methods.softmax.grokking_numerical_stability_numba import stablemax_loss_and_gradient
from reference.methods.softmax.grokking_numerical_stability_training import net_for, optimizer_for, run, task_for
from reference.testbeds.modular import Task, UnbiasedMLP
from suites.softmax.grokking_numerical_stability.share import prompt_share
from suites.softmax.grokking_numerical_stability.speed import loss_time, step_time

Metrics = dict[str, Any]

suite = Suite(__file__)
suite.estimate("prompt_share")(prompt_share)
suite.speed("loss_time")(loss_time)
suite.speed("step_time")(step_time)

DTYPES = {"fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
EVERY, GENERALISED, FOLLOWED, AFTER_FIT = 10, 0.95, 1000, 500


def problem(point: Point, seed: int, loss: str, device: str) -> tuple[Task, UnbiasedMLP]:
    """The pairs and the net: the same for all arms of a seed."""
    task = task_for(point["task"], point["modulus"], point["train_share"], seed_for("data", seed))
    suite.uses_data("modular", task.batches().digest)
    return task, net_for(task, point["hidden"], seed_for("init", seed), loss).to(device)


@suite.trial("generalisation")
def generalisation(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One arm until it generalises, or until the budget ends."""
    task, net = problem(point, seed, "stablemax" if arm.endswith("stablemax") else "fp32", device)
    optimizer = optimizer_for(arm.removesuffix("_decay").removesuffix("_stablemax"), net, **tuned)
    curves = run(net, task, optimizer, point["epochs"], EVERY, stop_at=GENERALISED)
    best = max(curves.test_accuracy)
    return {"epochs_to_95": curves.epochs_to(GENERALISED, point["epochs"]), "reached": float(best >= GENERALISED),
            "test_accuracy": best, "test_curve": curves.test_accuracy}


@suite.trial("precision")
def precision(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Train until the loss has collapsed, and 1000 epochs on."""
    task, net = problem(point, seed, arm, device)
    optimizer = optimizer_for("adamw", net, point["lr"], eps=1e-30)
    curves = run(net, task, optimizer, point["epochs"], EVERY, dtype=DTYPES[arm], stop_after_collapse=FOLLOWED)
    onset = curves.onset()
    return {"onset": float(point["epochs"] if onset is None else onset),
            "change_after_onset": curves.change_since(onset), "test_accuracy": curves.test_accuracy[-1]}


@suite.trial("stability")
def stability(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """All of the budget, whatever happens."""
    task, net = problem(point, seed, arm, device)
    optimizer = optimizer_for("adamw", net, **tuned)
    curves = run(net, task, optimizer, point["epochs"], EVERY, dtype=DTYPES.get(arm, torch.float32), watch_norms=True)
    return {"test_accuracy": curves.test_accuracy[-1], "epochs_to_95": curves.epochs_to(GENERALISED, point["epochs"]),
            "zero_gradients": curves.gradient_norms.count(0.0), "least_gradient": min(curves.gradient_norms)}


@suite.trial("alignment")
def alignment(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Every step's gradient against the weights, before the fit and 500 epochs after it."""
    task, net = problem(point, seed, arm, device)
    optimizer = optimizer_for("adamw", net, point["lr"])
    curves = run(net, task, optimizer, point["epochs"], EVERY, stop_after_fit=AFTER_FIT, watch_alignment=True)
    before, after = curves.alignment_around_fit()
    return {"cos_before": before, "cos_after": after, "cos_rise": after - before, "cos_start": curves.cosines[0][1],
            "cos_random": curves.cosines[-1][2]}


@suite.oracle
def two_classes_collapse_at_the_closed_form_gap() -> None:
    """1 + exp(-gap) rounds to 1 from -ln(eps / 2) on: 7.62, 16.64 and 36.74; the row's loss is then exactly 0."""
    label = torch.tensor([0])
    for dtype, known in ((torch.float16, 7.62), (torch.float32, 16.64), (torch.float64, 36.74)):
        gap, as_numpy = method.collapse_gap(dtype), np.dtype(str(dtype).removeprefix("torch.")).type
        assert abs(gap - known) < 0.01, (dtype, gap)
        for factor, lost in ((1.01, True), (0.98, False)):
            logits = torch.tensor([[gap * factor, 0.0]], dtype=torch.float64)
            assert method.collapsed(logits, label, dtype).item() == lost, (dtype, factor)
            assert (method.row_losses(logits, label, dtype).item() == 0) == lost, (dtype, factor)
            assert (as_numpy(1) + np.exp(as_numpy(-gap * factor)) == 1) == lost, (dtype, factor)


@suite.oracle
def losses_are_those_of_their_definitions() -> None:
    """Softmax in each dtype against float64, StableMax against s(x) / sum s(x), which keeps the order of the logits."""
    logits = 3 * torch.randn(50, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(50) % 7
    exact = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    for name, dtype in DTYPES.items():
        error = (method.row_losses(logits, labels, dtype).double() - exact).abs().max().item()
        assert error < 40 * torch.finfo(dtype).eps, (name, error)
    s = torch.where(logits >= 0, logits + 1, 1 / (1 - logits))
    p = method.stablemax(logits)
    assert torch.allclose(p, s / s.sum(1, keepdim=True)) and torch.equal(p.argsort(1), logits.argsort(1))
    assert torch.allclose(method.stablemax_row_losses(logits, labels), -p.gather(1, labels[:, None])[:, 0].log())


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


@suite.oracle
def perpendicular_and_as_long() -> None:
    """<w, g_perp> = 0 and |g_perp| = |g|, and g_perp lies in the plane of w and g on the side of g."""
    random = torch.Generator().manual_seed(3)
    for shape in ((5,), (30, 20), (3, 4, 5)):
        w, g = (torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(2))
        kept = method.perpendicular(w, g)
        assert abs((w * kept).sum() / (w.norm() * g.norm())) < 1e-12, shape
        along, cosine = (g * w).sum() / (w * w).sum(), (g * w).sum() / (g.norm() * w.norm())
        assert torch.allclose(kept, (g - along * w) / torch.sqrt(1 - cosine**2)), shape
