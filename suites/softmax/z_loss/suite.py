"""The Z-loss (arXiv 1604.08859): the cost of a step by the number of classes, and errors among the k best words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.declare.estimate_spec import Difference
from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from reference.methods.softmax import z_loss as z
from reference.methods.softmax import z_loss_factored as factored
from reference.methods.softmax import z_loss_words as experiment
from reference.methods.softmax.z_loss_steps import FactoredNumba
from reference.testbeds import word_lm
from reference.testbeds.seeding import generator
from suites.softmax.z_loss.speed import step_problem

if TYPE_CHECKING:
    import pandas as pd

Metrics = dict[str, Any]

suite = Suite(__file__)

VALIDATION_WINDOWS, TEST_WINDOWS = 256, 512


@suite.speed("step")
def step(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One training step of the output layer."""
    return step_problem(point)


@suite.trial("words")
def train_words(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One loss from scratch."""
    text = suite.prepare("words", {"vocabulary": point["vocabulary"]}, experiment.text_of)
    suite.uses_data("DOC words", text.digest)
    setting = experiment.Setting(text, point["steps"], seed_for("data", seed), seed_for("init", seed))
    rates = tuned["head_lr"], tuned["trunk_lr"], tuned.get("scale", 1.0)
    model, history = experiment.train_with(setting, experiment.loss_of(arm, tuned), *rates)
    last = history.train_loss[-max(1, point["steps"] // 10):]

    def errors(side: torch.Tensor, count: int) -> dict[int, float]:
        return experiment.top_errors(model, word_lm.windows(side, experiment.WINDOW, count))

    return {
        "val_error_10": errors(text.validation, VALIDATION_WINDOWS)[10],
        **{f"error_{k}": value for k, value in errors(text.test, TEST_WINDOWS).items()},
        "train_loss": float(np.mean(last)),
    }


@suite.estimate("least_gap")
def least_gap(records: pd.DataFrame, level: float, of: str, minus: str) -> Estimate:
    """The smallest difference of the errors among the k best over all k, each by an interval at 1 - (1 - level) / k's.

    The bounds of the least are the least of the bounds: they hold whichever k is truly the best.
    """
    from harness.judge.contrasts import Question, difference  # its scipy.stats would delay every timing process

    question = Question(records, suite.card.experiments["words"], 1 - (1 - level) / len(experiment.TOPS))
    found = {k: difference(Difference(difference=f"error_{k}", of=of, minus=minus), question) for k in experiment.TOPS}
    curve = ", ".join(f"k={k} {item.point:+.4f} [{item.low:+.4f}, {item.high:+.4f}]" for k, item in found.items())
    first = found[experiment.TOPS[0]]
    point, low, high = (min(getattr(item, end) for item in found.values()) for end in ("point", "low", "high"))
    return Estimate(point, low, high, first.n, level, first.unit, f"least of paired differences, simultaneous: {curve}")


def _example(rows: int, classes: int = 30, width: int = 6) -> tuple[torch.Tensor, ...]:
    """W, hidden vectors and targets (one of them twice) in float64."""
    weight = torch.randn(classes, width, dtype=torch.float64, generator=generator("oracle W")) / width**0.5 + 0.1
    hidden = torch.randn(rows, width, dtype=torch.float64, generator=generator("oracle h", rows))
    targets = torch.randint(classes, (rows,), generator=generator("oracle y", rows))
    targets[-1] = targets[0]
    return weight, hidden, targets


LOSS = z.ZLoss(sharpness=0.7, location=0.4)


@suite.oracle
def factored_steps_equal_autograd() -> None:
    """25 factored steps, single and in batches, in torch and Numba, against dense float64 autograd."""
    for rows, quick in ((1, False), (1, True), (4, False)):
        weight, _, _ = _example(rows)
        state = factored.Factored.of(weight)
        numba = FactoredNumba(state)
        for count in range(25):
            hidden = torch.randn(rows, 6, dtype=torch.float64, generator=generator("oracle step", rows, count))
            targets = torch.randint(30, (rows,), generator=generator("oracle target", rows, count))
            dense, below = weight.clone().requires_grad_(), hidden.clone().requires_grad_()
            loss = LOSS.loss(z.parts_of(below @ dense.T, targets), 30).mean()
            loss.backward()
            arguments = hidden, targets, LOSS, 0.5
            losses, gradient = numba.step(*arguments) if quick else factored.step(state, *arguments)
            weight = weight - 0.5 * dense.grad
            assert abs(losses.mean().item() - loss.item()) <= 1e-10 * loss.item(), f"loss of step {count}"
            assert (gradient - below.grad).abs().max() <= 1e-10 * below.grad.abs().max(), f"gradient of step {count}"
        worst = ((state.weight() - weight).abs().max() / weight.abs().max()).item()
        assert worst <= 1e-12, f"W is off by {worst:.2g} after 25 steps of {rows}"


@suite.oracle
def factored_state_is_consistent() -> None:
    """Q = W^T W, wbar = W^T 1 and U U^-1 = I after 30 steps, and a clean-up changes no weight."""
    weight, hidden, targets = _example(60)
    state = factored.Factored.of(weight)
    for h, y in zip(hidden.split(2), targets.split(2), strict=True):
        factored.step(state, h, y, LOSS, 0.5)
    W = state.weight()
    for name, got, right in (("Q", state.Q, W.T @ W), ("wbar", state.wbar, W.sum(0)),
                             ("U U^-1", state.U @ state.U_inverse, torch.eye(6, dtype=torch.float64))):
        assert (got - right).abs().max() <= 1e-12 * max(1.0, right.abs().max()), f"{name} drifted"
    factored.refactor(state)
    assert torch.equal(state.U, torch.eye(6, dtype=torch.float64))
    assert (state.weight() - W).abs().max() <= 1e-12 * W.abs().max(), "refactoring changed W"


@suite.oracle
def shift_and_scale_invariance() -> None:
    """L(alpha o + beta) = L(o) for alpha > 0, and another value for alpha < 0."""
    weight, hidden, targets = _example(20)
    outputs = hidden @ weight.T
    plain = LOSS.loss(z.parts_of(outputs, targets), 30)
    moved = LOSS.loss(z.parts_of(3.7 * outputs - 5.2, targets), 30)
    assert (plain - moved).abs().max() <= 1e-10, "not invariant"
    assert (plain - LOSS.loss(z.parts_of(-outputs, targets), 30)).abs().max() > 0.01, "a sign must matter"


@suite.oracle
def slopes_equal_finite_differences() -> None:
    """L_s, L_q and L_c by central differences."""
    weight, hidden, targets = _example(20)
    parts = z.parts_of(hidden @ weight.T, targets)
    slopes = LOSS.slopes(parts, 30)
    for name in ("s", "q", "o"):
        step_size = 1e-5
        ends = [LOSS.loss(parts._replace(**{name: getattr(parts, name) + sign * step_size}), 30) for sign in (1, -1)]
        expected = (ends[0] - ends[1]) / (2 * step_size)
        worst = ((getattr(slopes, name) - expected).abs() / expected.abs().max()).max().item()
        assert worst <= 1e-6, f"dL/d{name} is off by {worst:.2g}"
