import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from reference.methods.softmax.ps_kd import (
    Answers,
    alpha_at,
    gradient_pulls,
    mixed,
    smoothed,
    soft_cross_entropy,
    true_class_factor,
)
from reference.methods.softmax.ps_kd_training import (
    Mining,
    Recipe,
    Setting,
    fit,
    indexed_batches,
    quality,
    teacher_answers,
)

pytestmark = pytest.mark.usefixtures("one_thread")


TOY = Setting(epochs=3, data_seed=0, init_seed=0, classes=6, per_class=12, test_per_class=10, batch=16, width=8)


def draw(seed, n=9, classes=5, spread=2.0):
    random = torch.Generator().manual_seed(seed)
    logits, old = spread * torch.randn(2, n, classes, generator=random, dtype=torch.float64)
    return logits, torch.softmax(old, 1), torch.randint(classes, (n,), generator=random)


@given(st.integers(0, 1000), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_targets_are_distributions_between_label_and_answer(seed, alpha):
    _, answers, labels = draw(seed)
    targets = mixed(labels, answers, alpha)
    assert torch.allclose(targets.sum(1), torch.ones(9, dtype=torch.float64))
    assert targets.min() >= 0
    expected = 1 - alpha * (1 - answers.gather(1, labels[:, None]))
    assert torch.allclose(targets.gather(1, labels[:, None]), expected)


@given(st.integers(0, 1000), st.floats(0.01, 0.99), st.sampled_from([0.5, 3.0, 8.0]))
@settings(max_examples=30, deadline=None)
def test_pulls_are_the_gradients_that_autograd_finds(seed, alpha, spread):
    logits, answers, labels = draw(seed, spread=spread)
    logits.requires_grad_()
    targets = mixed(labels, answers, alpha)
    plain = torch.autograd.grad(cross_entropy(logits, labels, reduction="sum"), logits)[0]
    soft = torch.autograd.grad(soft_cross_entropy(logits, targets).sum(), logits)[0]
    share, factor, difficulty = gradient_pulls(logits, targets, labels)
    column = labels[:, None]
    assert torch.allclose(share, soft.abs().sum(1) / plain.abs().sum(1), rtol=1e-6)
    assert torch.allclose(factor, (soft / plain).gather(1, column)[:, 0], rtol=1e-5, atol=1e-6)
    assert torch.allclose(difficulty, -plain.gather(1, column)[:, 0], rtol=1e-6)
    assert torch.allclose(
        factor, true_class_factor(torch.softmax(logits, 1), answers, labels, alpha), rtol=1e-5, atol=1e-6
    )


def test_an_image_that_improved_counts_less_than_one_that_did_not():
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0]]).log_softmax(1)
    labels = torch.tensor([0, 0])
    answers = torch.stack([torch.tensor([0.5, 0.5]), torch.softmax(logits[1], 0)])
    share, factor, _ = gradient_pulls(logits, mixed(labels, answers, 0.2), labels)
    assert share[0] < share[1]
    assert share[1].item() == pytest.approx(0.8, abs=1e-5)
    assert factor[1].item() == pytest.approx(0.8, abs=1e-5)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_the_loss_is_least_where_the_net_says_the_targets(seed):
    logits, answers, labels = draw(seed)
    targets = mixed(labels, answers, 0.5)
    entropy = -(targets * targets.log()).sum(1)
    assert (soft_cross_entropy(logits, targets) >= entropy - 1e-12).all()
    assert torch.allclose(soft_cross_entropy(targets.log(), targets), entropy)


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.2])
def test_label_smoothing_is_torchs(epsilon):
    logits, _, labels = draw(3)
    loss = soft_cross_entropy(logits, smoothed(labels, 5, epsilon).double()).mean()
    assert torch.allclose(loss, cross_entropy(logits, labels, label_smoothing=epsilon), atol=1e-6)


def test_alpha_rises_evenly_to_the_last_epoch():
    assert [alpha_at(epoch, 4, 0.8) for epoch in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_the_table_keeps_what_was_last_said_and_carries_no_gradient():
    labels = torch.tensor([0, 1, 2])
    answers = Answers(labels, 3)
    assert torch.equal(answers.targets(torch.arange(3), labels, 0.7), torch.eye(3))
    logits = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    answers.keep(torch.tensor([2]), logits)
    assert torch.allclose(answers.table[2], torch.softmax(logits[0].detach(), 0))
    assert torch.equal(answers.table[:2], torch.eye(3)[:2])
    assert torch.allclose(answers.table.sum(1), torch.ones(3))
    assert not answers.table.requires_grad


def test_training_is_bit_for_bit_repeatable_and_kinds_differ():
    models = {}
    for kind, strength in (("ce", 0.0), ("label_smoothing", 0.1), ("ps_kd", 0.8), ("ps_kd again", 0.8)):
        model, history = fit(TOY, Recipe(kind.removesuffix(" again"), strength))
        assert not history.failed
        models[kind] = model.net.head.weight
    assert torch.equal(models["ps_kd"], models["ps_kd again"])
    assert len({tuple(weight.flatten().tolist()) for weight in models.values()}) == 3


def test_no_strength_is_plain_cross_entropy():
    plain, _ = fit(TOY, Recipe("ce"))
    for kind, teacher in (("ps_kd", None), ("label_smoothing", None), ("kd", torch.full((72, 6), 1 / 6))):
        model, _ = fit(TOY, Recipe(kind, 0.0), teacher)
        assert torch.equal(model.net.head.weight, plain.net.head.weight)


def test_the_old_answers_are_of_the_epoch_before():
    """In epoch t the targets of an image mix in what the table held at the end of epoch t - 1."""
    model, _ = fit(TOY, Recipe("ps_kd", 0.8))
    assert model.epoch == 2
    labels, rows = TOY.images("train")[1][:4], torch.arange(4)
    expected = mixed(labels, model.answers.table[rows], 0.8)
    assert torch.allclose(model.targets(labels, rows), expected)
    assert len(model.mining.shares) == 3
    assert torch.allclose(model.mining.shares[0].nan_to_num(1.0), torch.ones(72, dtype=torch.float64), atol=1e-6)


def test_quality_and_mining_are_finite_and_within_bounds():
    model, _ = fit(TOY, Recipe("ps_kd", 0.8))
    found = quality(model, TOY) | model.mining.rank_correlations()
    assert all(-1 <= found[name] <= 1 for name in ("share_rho", "factor_rho", "total_share_rho"))
    assert all(0 <= found[name] <= 1 for name in ("error", "ece_10", "ece_15", "aurc", "val_error"))
    assert found["nll"] > 0
    assert model.net.training


def test_mining_of_equal_pulls_is_no_correlation():
    mining = Mining()
    for _ in range(2):
        mining.begin_epoch(4)
        mining.shares[-1][:3], mining.factors[-1][:3] = 1.0, torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
        mining.difficulties[-1][:3] = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    found = mining.rank_correlations()
    assert found["share_rho"] == 0
    assert found["factor_rho"] == pytest.approx(1)


def test_a_teacher_answers_for_every_image():
    answers = teacher_answers({**vars(TOY), "lr": 0.1})
    assert answers.shape == (72, 6)
    assert torch.allclose(answers.sum(1), torch.ones(72))
    right = (answers.argmax(1) == TOY.images("train")[1]).double().mean()
    assert right > 0.3


@pytest.mark.parametrize("strength", [-0.1, 1.28])
def test_a_strength_is_a_share(strength):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Recipe("ps_kd", strength)


def test_batches_name_their_rows():
    x, y = TOY.images("train")
    batches = indexed_batches(x, y, 16, 0)
    seen = []
    for (images, labels, rows), _ in zip(batches, range(4), strict=False):
        assert torch.equal(images, x[rows])
        assert torch.equal(labels, y[rows])
        seen += rows.tolist()
    assert len(set(seen)) == 64
