import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import grokking_numerical_stability as method
from reference.methods.softmax.grokking_numerical_stability_numba import stablemax_loss_and_gradient
from reference.methods.softmax.grokking_numerical_stability_training import (
    Curves,
    net_for,
    optimizer_for,
    run,
    task_for,
)
from reference.testbeds.training import train

SEEDS = st.integers(0, 2**32)


pytestmark = pytest.mark.usefixtures("one_thread")


def normal(shape, seed, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(seed=SEEDS, scale=st.floats(0.01, 100), rows=st.integers(1, 20), classes=st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_both_implementations_of_stablemax_agree(seed, scale, rows, classes):
    logits, labels = normal((rows, classes), seed, scale).requires_grad_(), torch.arange(rows) % classes
    row_losses = method.stablemax_row_losses(logits, labels)
    (gradient,) = torch.autograd.grad(row_losses.mean(), logits)
    losses, compiled = np.empty(rows), np.empty((rows, classes))
    stablemax_loss_and_gradient(logits.detach().numpy(), labels.numpy(), losses, compiled)
    assert np.allclose(losses, row_losses.detach().numpy(), rtol=1e-12)
    assert np.allclose(compiled, gradient.numpy(), rtol=1e-10, atol=1e-15)
    assert (row_losses >= 0).all()


@given(seed=SEEDS, scale=st.floats(0.1, 1e6))
@settings(max_examples=30, deadline=None)
def test_the_stable_map_rises_and_meets_itself_at_zero(seed, scale):
    x = normal(50, seed, scale).sort().values
    assert (method.stable_map(x).diff() > 0).all()
    assert (method.stable_map(x) > 0).all()
    assert torch.allclose(method.stable_map(x) * method.stable_map(-x), torch.ones_like(x))  # s(x) s(-x) = 1


def test_stablemax_is_a_distribution():
    p = method.stablemax(normal((100, 13), 1, 20))
    assert (p > 0).all()
    assert (p.sum(-1) - 1).abs().max() < 1e-14
    assert torch.equal(method.stable_map(torch.tensor([0.0, 3.0, -3.0])), torch.tensor([1.0, 4.0, 0.25]))


def test_stablemax_keeps_a_gradient_where_softmax_has_none():
    logits = torch.tensor([[1e4, 0.0, -3.0]], requires_grad=True)
    label = torch.tensor([0])
    for loss, alive in ((method.LOSSES["fp32"], False), (method.stablemax_cross_entropy, True)):
        (gradient,) = torch.autograd.grad(loss(logits, label), logits)
        assert torch.isfinite(gradient).all()
        assert (gradient[0, 0] != 0) == alive


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_collapse_only_where_the_label_is_the_largest(dtype):
    gap = 1.2 * method.collapse_gap(dtype)
    logits = torch.tensor([[gap, 0.0], [0.0, gap], [gap / 2, 0.0]], dtype=torch.float64)
    assert method.collapsed(logits, torch.tensor([0, 0, 0]), dtype).tolist() == [True, False, False]
    losses = method.row_losses(logits, torch.tensor([0, 0, 0]), dtype)
    assert losses.dtype == dtype
    assert losses[0] == 0 < losses[2] < losses[1]
    lost = torch.tensor([[gap, 0.0]], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(method.row_losses(lost, torch.tensor([0]), dtype).sum(), lost)
    assert gradient[0, 0] == 0


@given(seed=SEEDS, shift=st.floats(-50, 50))
@settings(max_examples=30, deadline=None)
def test_softmax_losses_ignore_a_shift_and_match_torch(seed, shift):
    logits, labels = normal((8, 5), seed, 5), torch.arange(8) % 5
    exact = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert torch.allclose(method.row_losses(logits + shift, labels, torch.float64), exact, atol=1e-10)


@given(seed=SEEDS, scale=st.floats(1e-6, 1e6), dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50, deadline=None)
def test_perpendicular_gradients(seed, scale, dtype):
    w, g = normal((7, 11), seed).to(dtype), (scale * normal((7, 11), seed + 1)).to(dtype)
    kept = method.perpendicular(w, g)
    assert abs((w * kept).sum() / (w.norm() * g.norm())) < 1e-6
    assert abs(kept.norm() / g.norm() - 1) < 1e-6
    assert (kept * g).sum() > 0
    assert torch.allclose(method.perpendicular(-2 * w, g), kept, rtol=1e-4, atol=1e-5 * float(g.abs().max()))


def test_perpendicular_of_a_zero_gradient_or_zero_weights():
    w = normal((3, 4), 0)
    assert torch.equal(method.perpendicular(w, torch.zeros_like(w)), torch.zeros_like(w))
    assert torch.allclose(method.perpendicular(torch.zeros_like(w), w), w)


def test_the_hook_projects_what_the_optimizer_sees():
    p = torch.nn.Parameter(normal((4, 5), 0))
    optimizer = method.with_perpgrad(torch.optim.SGD([p], lr=0.1))
    before, g = p.detach().clone(), normal((4, 5), 1)
    p.grad = g.clone()
    optimizer.step()
    assert torch.allclose(before - p.detach(), 0.1 * method.perpendicular(before, g))


def test_grokfast_adds_the_average_of_past_gradients():
    p = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = method.with_grokfast(torch.optim.SGD([p], lr=1.0), alpha=0.9, strength=2.0)
    average, expected = normal(3, 0), torch.zeros(3, dtype=torch.float64)
    for seed in range(4):
        g = normal(3, seed)
        average = 0.9 * average + 0.1 * g
        expected -= g + 2 * average
        p.grad = g.clone()
        optimizer.step()
    assert torch.allclose(p.detach(), expected)


@given(seed=SEEDS)
@settings(max_examples=20, deadline=None)
def test_alignment_is_a_mean_cosine(seed):
    weights, gradients = [normal((3, 4), seed + i) for i in range(2)], [normal((3, 4), seed + 9 + i) for i in range(2)]
    expected = torch.stack([torch.cosine_similarity(-g.flatten(), w.flatten(), dim=0)
                            for w, g in zip(weights, gradients, strict=True)]).mean()
    assert method.alignment(weights, gradients) == pytest.approx(expected.item())
    assert method.alignment(weights, [torch.zeros(3, 4), torch.zeros(3, 4)]) == 0
    scaled = [g * 1e-25 for g in gradients]
    assert method.alignment(weights, scaled) == pytest.approx(expected.item())


def test_alignment_of_weights_with_themselves():
    w = normal((4, 6), 4)
    assert method.alignment([w], [-3 * w]) == pytest.approx(1)
    assert method.alignment([w, w], [w, -w]) == pytest.approx(0)
    assert method.alignment([w], [method.perpendicular(w, torch.ones_like(w))]) == pytest.approx(0, abs=1e-12)


def test_a_run_is_the_training_loop_in_pieces():
    task = task_for("add", 7, 0.5, 0)
    nets = [net_for(task, 12, 0, "fp32") for _ in range(2)]
    curves = run(nets[0], task, optimizer_for("perp_adamw", nets[0], 0.01), 25, 10, watch_norms=True)
    train(nets[1], task.batches(), optimizer_for("perp_adamw", nets[1], 0.01), None, 25)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
    assert curves.epochs == [10, 20, 25]
    assert len(curves.gradient_norms) == 25


def test_where_an_accuracy_is_never_reached_the_best_one_of_a_fitted_net_counts():
    curves = Curves(epochs=[10, 20, 30], train_accuracy=[0.2, 1.0, 1.0], test_accuracy=[0.1, 0.96, 0.9])
    assert curves.epochs_to(0.95, 30) == 20
    curves.test_accuracy[1] = 0.5
    assert curves.epochs_to(0.95, 30) == pytest.approx(33)
    curves.train_accuracy[:] = [0.2, 0.5, 0.6]
    assert curves.epochs_to(0.95, 30) == 60


def test_what_happens_after_the_collapse_and_around_the_fit():
    curves = Curves(epochs=[10, 20, 30], collapsed=[0.0, 0.6, 1.0], test_accuracy=[0.1, 0.4, 0.35])
    assert curves.onset() == 20
    assert curves.change_since(20) == pytest.approx(0.05)
    assert math.isnan(curves.change_since(None))
    cosines = [(step, 0.1 if step < 20 else 0.9, 0.0) for step in range(100)]
    curves = Curves(epochs=[10, 20], train_accuracy=[0.5, 1.0], cosines=cosines)
    assert curves.alignment_around_fit() == pytest.approx((0.1, 0.9))
    curves.train_accuracy[1] = 0.9
    assert math.isnan(curves.alignment_around_fit()[1])


def test_runs_end_when_they_are_told_to():
    task = task_for("parity", 0, 0.5, 0)
    assert (task.width, task.classes) == (43, 2)
    net = net_for(task, 64, 0, "fp32")
    curves = run(net, task, optimizer_for("adamw", net, 0.01), 300, 10, stop_after_fit=30, watch_alignment=True)
    fitted = curves.first(curves.train_accuracy, 1.0)
    assert curves.epochs[-1] == fitted + 30
    assert [step for step, _, _ in curves.cosines] == list(range(fitted + 30))
    assert curves.first(curves.train_accuracy, 1.5) is None
    again = net_for(task, 64, 0, "fp16")
    curves = run(again, task, optimizer_for("adamw", again, 0.03), 400, 10, dtype=torch.float16, stop_after_collapse=20)
    assert curves.epochs[-1] == curves.first(curves.collapsed, 0.5) + 20
    assert run(again, task, optimizer_for("sgd", again, 0.0), 50, 10, stop_at=0.1).epochs == [10]


def test_unknown_optimizers_are_refused():
    net = net_for(task_for("product", 5, 0.5, 0), 8, 0, "stablemax")
    with pytest.raises(KeyError, match="adamw and sgd"):
        optimizer_for("lion", net, 0.1)
