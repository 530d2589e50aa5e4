import math

import pytest
import torch
from torch import nn

from reference.testbeds.digits import digits, digits_hard
from reference.testbeds.nets import accuracy, conv_net, mlp, small_tensors
from reference.testbeds.training import array_batches, train, warmup_cosine


def learn(model, split, steps, rate):
    batches = array_batches(split.train_x, split.train_y, 64, 0, (split.val_x, split.val_y))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    return train(model, batches, optimizer, warmup_cosine(steps), steps)


@pytest.mark.parametrize("make", [mlp, conv_net, lambda seed: conv_net(seed, batch_norm=True)])
def test_digits_are_learnt_within_a_few_hundred_steps(make):
    split, model = digits(0), make(0)
    untrained = accuracy(model, split.val_x, split.val_y)
    history = learn(model, split, steps=200, rate=3e-3)
    assert untrained < 0.3
    assert not history.failed
    assert accuracy(model, split.val_x, split.val_y) > 0.9


def test_the_widened_net_learns_too():
    split, model = digits(0), conv_net(0, min_weight_entries=4096)
    learn(model, split, steps=60, rate=3e-3)
    assert accuracy(model, split.val_x, split.val_y) > 0.9


def test_hard_digits_do_not_saturate():
    split, model = digits_hard(0), conv_net(0)
    learn(model, split, steps=300, rate=3e-3)
    assert 0.4 < accuracy(model, split.val_x, split.val_y) < 0.9


@pytest.mark.parametrize("make", [mlp, conv_net])
@pytest.mark.parametrize("side", [8, 12])
def test_shapes_and_a_first_loss_of_log_10(make, side):
    model = make(0, **({"side": side} if make is mlp else {}))
    x, y = torch.rand(200, 1, side, side, generator=torch.Generator().manual_seed(0)), torch.arange(200) % 10
    assert model(x).shape == (200, 10)
    assert abs(model.loss(x, y).item() - math.log(10)) < 0.2


@pytest.mark.parametrize("entries", [0, 1000, 4096, 20_000])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_only_vectors_stay_small_when_asked(entries, batch_norm):
    model = conv_net(0, min_weight_entries=entries, batch_norm=batch_norm)
    small = small_tensors(model, entries)
    assert all(model.get_parameter(name).ndim == 1 for name in small)
    assert set(small) == ({n for n, p in model.named_parameters() if p.ndim == 1} if entries else set())


def test_width_and_activation():
    assert conv_net(0, width=8).layers[0].weight.shape == (8, 1, 5, 5)
    weights = [p for p in mlp(0, hidden=(32, 16)).parameters() if p.ndim > 1]
    assert [tuple(weight.shape) for weight in weights] == [(32, 64), (16, 32), (10, 16)]
    assert sum(isinstance(layer, nn.Tanh) for layer in mlp(0, hidden=(32, 16), activation=nn.Tanh).modules()) == 2


@pytest.mark.parametrize("make", [mlp, conv_net])
def test_equal_seeds_give_equal_values(make):
    first, again, other = (list(make(seed).parameters()) for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_weights_have_the_variance_of_he():
    weight = mlp(0, hidden=(512,)).layers[1].weight
    assert weight.var().item() == pytest.approx(2 / 64, rel=0.02)


def test_measuring_accuracy_leaves_the_mode_alone():
    model = conv_net(0, batch_norm=True)
    statistics = model.layers[1].running_mean.clone()
    split = digits(0)
    accuracy(model, split.val_x, split.val_y)
    assert model.training
    assert torch.equal(model.layers[1].running_mean, statistics)
