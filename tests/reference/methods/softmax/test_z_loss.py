import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax import z_loss as z
from reference.methods.softmax import z_loss_factored as factored
from reference.methods.softmax import z_loss_steps as steps
from reference.methods.softmax import z_loss_words
from reference.methods.softmax.heads import AdaptiveHead, HierarchicalHead
from reference.testbeds import word_lm
from reference.testbeds.words import words


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(classes, count, seed=0):
    return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))


LOSSES = {
    "z_loss": z.ZLoss(0.7, 0.4), "squared": z.SquaredError(), "spherical": z.SphericalSoftmax(0.01),
    "taylor": z.TaylorSoftmax(),
}


def test_z_loss_by_hand():
    outputs = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    z_2 = (6 - 3) / math.sqrt((4 + 1 + 9) / 3)
    b = 0.5 * math.sqrt(2)
    expected = math.log1p(math.exp(0.3 * (b - z_2))) / 0.3
    found = z.ZLoss(0.3, 0.5).loss(z.parts_of(outputs, torch.tensor([2])), 3)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_the_largest_z_is_the_root_of_one_less_than_the_classes():
    outputs = torch.zeros(1, 50, dtype=torch.float64)
    outputs[0, 7] = 1.0
    found = z.ZLoss(2.0, 1.0).loss(z.parts_of(outputs, torch.tensor([7])), 50)
    assert found.item() == pytest.approx(math.log(2) / 2)  # z = b


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 100), st.floats(-50, 50), st.integers(3, 40), st.integers(0, 99))
def test_shift_and_scale_invariance(scale, shift, classes, seed):
    outputs, targets = draw(5, classes, seed=seed), ids(classes, 5, seed)
    loss = LOSSES["z_loss"]
    plain = loss.loss(z.parts_of(outputs, targets), classes)
    moved = loss.loss(z.parts_of(scale * (outputs + shift), targets), classes)
    torch.testing.assert_close(plain, moved, rtol=1e-6, atol=1e-8)


@settings(deadline=None, max_examples=50)
@given(st.floats(0.05, 5), st.floats(0.05, 1), st.integers(3, 40), st.integers(0, 99))
def test_slopes_are_what_autograd_finds(sharpness, location, classes, seed):
    loss = z.ZLoss(sharpness, location)
    parts = z.Parts(*(part.requires_grad_() for part in z.parts_of(draw(4, classes, seed=seed), ids(classes, 4, seed))))
    slopes = loss.slopes(parts, classes)
    expected = torch.autograd.grad(loss.loss(parts, classes).sum(), list(parts))
    for mine, right in zip(slopes, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_spherical_losses_need_three_numbers_and_equal_their_definition(name):
    outputs, targets = draw(6, 9), ids(9, 6)
    found = LOSSES[name].loss(z.parts_of(outputs, targets), 9)
    o = outputs.gather(1, targets[:, None])[:, 0]
    if name == "squared":
        right = (outputs - torch.nn.functional.one_hot(targets, 9)).square().sum(1)
    elif name == "spherical":
        right = -((o**2 + 0.01) / (outputs**2 + 0.01).sum(1)).log()
    elif name == "taylor":
        right = -((1 + o + o**2 / 2) / (1 + outputs + outputs**2 / 2).sum(1)).log()
    else:
        score = (o - outputs.mean(1)) / outputs.std(1, correction=0)
        right = torch.nn.functional.softplus(0.7 * (0.4 * math.sqrt(8) - score)) / 0.7
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", ["spherical", "taylor"])
def test_probabilities_are_those_of_the_loss(name):
    outputs, targets = draw(6, 9), ids(9, 6)
    log_p = LOSSES[name].scores(outputs)
    torch.testing.assert_close(log_p.exp().sum(1), torch.ones(6, dtype=torch.float64))
    right = LOSSES[name].loss(z.parts_of(outputs, targets), 9)
    torch.testing.assert_close(-log_p.gather(1, targets[:, None])[:, 0], right)


def dense_steps(weight, loss, eta, batches):
    """What plain descent makes of W, with autograd; yields loss, gradient below and W after each step."""
    for hidden, targets in batches:
        dense, below = weight.clone().requires_grad_(), hidden.clone().requires_grad_()
        value = loss.loss(z.parts_of(below @ dense.T, targets), len(weight)).mean()
        value.backward()
        weight = weight - eta * dense.grad
        yield value.item(), below.grad, weight


@pytest.mark.parametrize(("batch", "count", "numba"), [(1, 2000, False), (1, 2000, True), (5, 400, False)])
def test_thousands_of_factored_steps_equal_dense_ones(batch, count, numba):
    loss, eta, classes, width = z.ZLoss(0.3, 0.3), 0.5, 50, 8
    weight = draw(classes, width) / math.sqrt(width)
    batches = [(draw(batch, width, seed=i), ids(classes, batch, i)) for i in range(count)]
    state = factored.Factored.of(weight)
    quick = steps.FactoredNumba(state)
    for (hidden, targets), dense in zip(batches, dense_steps(weight, loss, eta, batches), strict=True):
        value, below, W = dense
        take = quick.step if numba else lambda *rest: factored.step(state, *rest)
        losses, gradient = take(hidden, targets, loss, eta)
        assert losses.mean().item() == pytest.approx(value, rel=1e-9)
        torch.testing.assert_close(gradient, below, rtol=1e-9, atol=1e-12)
    assert (W - weight).norm() > 0.5 * weight.norm()  # it went somewhere
    torch.testing.assert_close(state.weight(), W, rtol=0, atol=5e-14 * W.abs().max().item())
    torch.testing.assert_close(state.Q, W.T @ W, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state.wbar, W.sum(0), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(state.U @ state.U_inverse, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 6), st.integers(2, 9), st.integers(0, 999), st.floats(0.01, 3))
def test_one_step_of_any_batch(batch, width, seed, eta):
    weight, hidden = draw(12, width, seed=seed) + 0.3, draw(batch, width, seed=seed + 1)
    targets = ids(12, batch, seed)
    state = factored.Factored.of(weight)
    slopes = LOSSES["z_loss"].slopes(state.parts(hidden, targets)[0], 12)
    eta = factored.safe_eta(eta, 2 * slopes.q / batch, hidden)
    _, _, right = next(dense_steps(weight, LOSSES["z_loss"], eta, [(hidden, targets)]))
    factored.step(state, hidden, targets, LOSSES["z_loss"], eta)
    torch.testing.assert_close(state.weight(), right, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state.Q, right.T @ right, rtol=1e-8, atol=1e-8)


def test_a_rate_that_would_make_u_singular_is_lowered():
    weight, hidden, targets = draw(12, 4), 50 * draw(3, 4, seed=1), ids(12, 3)
    for numba in (False, True):
        state = factored.Factored.of(weight)
        for h, y in zip(hidden, targets, strict=True):
            quick = steps.FactoredNumba(state)
            take = quick.step if numba else lambda *rest: factored.step(state, *rest)  # noqa: B023
            take(h[None], y[None], LOSSES["z_loss"], 1e3)
        assert torch.linalg.cond(state.U) < 1e3
        torch.testing.assert_close(state.U @ state.U_inverse, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-9)
    assert factored.safe_eta(0.1, torch.tensor([1.0, -5.0]), torch.ones(2, 4)) == 0.1
    assert factored.safe_eta(1.0, torch.tensor([1.0, -5.0]), torch.ones(2, 4)) == pytest.approx(0.125)


def test_refactoring_changes_no_weight():
    state = factored.Factored.of(draw(20, 5))
    for i in range(30):
        factored.step(state, draw(2, 5, seed=i), ids(20, 2, i), LOSSES["z_loss"], 0.5)
    before, memory = state.weight(), state.V.data_ptr()
    factored.refactor(state)
    torch.testing.assert_close(state.weight(), before, rtol=1e-12, atol=1e-12)
    assert torch.equal(state.U, torch.eye(5, dtype=torch.float64))
    assert torch.equal(state.U_inverse, state.U)
    assert not state.omega.any()
    assert state.V.data_ptr() == memory
    copied = state.copy()
    copied.V.zero_()
    assert state.V.any()


def autograd_step(head, hidden, targets, eta):
    below = hidden.clone().requires_grad_()
    head.zero_grad()
    loss = head.loss(below, targets)
    loss.backward()
    for parameter in head.parameters():
        if parameter.grad is not None:
            parameter.data -= eta * parameter.grad
    return loss.item(), below.grad


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("kind", ["z_loss", "log_softmax", "hierarchical", "adaptive"])
def test_every_step_is_plain_descent(kind, batch):
    width, classes, eta = 6, 40, 0.3
    hidden, targets = draw(batch, width), ids(classes, batch)
    targets[-1] = targets[0]

    def head():
        if kind == "hierarchical":
            return HierarchicalHead(width, classes, seed=1).double()
        if kind == "adaptive":
            return AdaptiveHead(width, classes, (8, 20), 2, seed=1).double()
        return z.DenseHead(width, classes, z.LogSoftmax() if kind == "log_softmax" else LOSSES[kind], 1).double()

    mine, right = head(), head()
    value, below = autograd_step(right, hidden, targets, eta)
    with torch.set_grad_enabled(kind == "adaptive"):
        if kind == "hierarchical":
            losses, gradient = steps.hierarchical_step(mine, hidden, targets, eta)
        elif kind == "adaptive":
            losses, gradient = steps.adaptive_step(mine, hidden, targets, eta)
        else:
            rule = steps.softmax_output_gradient if kind == "log_softmax" else steps.z_output_gradient(LOSSES[kind])
            losses, gradient = steps.dense_step(mine.weight.data, hidden, targets, rule, eta)
    assert losses.shape == (batch,)
    assert losses.mean().item() == pytest.approx(value, rel=1e-6)
    torch.testing.assert_close(gradient, below, rtol=1e-6, atol=1e-9)
    for name, parameter in mine.named_parameters():
        torch.testing.assert_close(parameter.data, right.get_parameter(name).data, rtol=1e-6, atol=1e-9)


@pytest.fixture(scope="module")
def setting():
    return z_loss_words.Setting(words(256, byte_cap=300_000), 60, 1, 2, width=16)


@pytest.mark.parametrize("name", [*LOSSES, "log_softmax"])
def test_training_lowers_the_loss(name, setting):
    loss = LOSSES.get(name, z.LogSoftmax())
    model, history = z_loss_words.train_with(setting, loss, 0.1 if name == "squared" else 5.0, 0.01)
    assert np.mean(history.train_loss[-10:]) < np.mean(history.train_loss[:10])
    assert model.head.weight.grad is None
    errors = list(z_loss_words.top_errors(model, word_lm.windows(setting.text.test, 32, 8)).values())
    assert all(0 <= later <= earlier <= 1 for earlier, later in itertools.pairwise(errors))


def test_the_head_takes_plain_descent_steps(setting):
    one = z_loss_words.Setting(setting.text, 1, 1, 2, width=16)
    model, _ = z_loss_words.train_with(one, LOSSES["z_loss"], 0.5, 1e-12)
    start = word_lm.WordLM("ngram", 256, 2, 16, 4)
    start.head = z.DenseHead(16, 256, LOSSES["z_loss"], 2)
    batch = next(iter(word_lm.word_batches(setting.text, z_loss_words.BATCH_WINDOWS, z_loss_words.WINDOW, 1)))[0]
    start.loss(batch).backward()
    expected = start.head.weight - 0.5 * start.head.weight.grad
    torch.testing.assert_close(model.head.weight, expected, rtol=1e-4, atol=1e-6)


def test_parts_without_outputs_are_those_of_the_outputs():
    weight, hidden, targets = draw(30, 4), draw(9, 4, seed=1), ids(30, 9)
    for mine, right in zip(z.parts_without_outputs(weight, hidden, targets), z.parts_of(hidden @ weight.T, targets),
                           strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_a_head_has_the_same_gradient_whichever_way_its_loss_is_computed(name):
    gradients = []
    for size in (9, 3):  # more rows than inputs, and fewer
        head = z.DenseHead(4, 30, LOSSES[name], 1, scale=0.5).double()
        hidden, targets = draw(9, 4, seed=1), ids(30, 9)
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        sum(head.loss(*part) * size / 9 for part in parts).backward()
        gradients.append(head.weight.grad)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-12)


def test_what_is_not_a_number_is_a_miss(setting):
    model = word_lm.WordLM("ngram", 256, 0, 16, 2)
    model.head.weight.data.fill_(torch.nan)
    assert set(z_loss_words.top_errors(model, word_lm.windows(setting.text.test, 32, 2)).values()) == {1.0}


def test_top_errors_count_ranks_and_halve_ties(setting):
    model = word_lm.WordLM("ngram", 256, 0, 16, 2)

    class Fixed(torch.nn.Module):
        def log_probabilities(self, hidden):
            return torch.arange(256.0).flip(0).expand(len(hidden), -1)  # word i has rank i

    model.head = Fixed()
    windows = torch.tensor([[0, 0, 4, 5, 99, 100]])
    assert z_loss_words.top_errors(model, windows) == {1: 0.8, 5: 0.6, 10: 0.4, 20: 0.4, 50: 0.4, 100: 0.2}
    model.head.log_probabilities = lambda hidden: torch.zeros(len(hidden), 256)
    assert z_loss_words.top_errors(model, windows, (127, 128)) == {127: 1.0, 128: 0.0}


def test_refusals():
    with pytest.raises(ValueError, match="sharpness"):
        z.ZLoss(0.0, 0.5)
