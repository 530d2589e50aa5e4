import pytest
import torch
from torch import nn

from reference.testbeds.glyph_nets import embedder, initialise, residual_net
from reference.testbeds.glyphs import glyphs
from reference.testbeds.nets import accuracy
from reference.testbeds.training import array_batches, train, warmup_cosine


@pytest.mark.parametrize("side", [16, 24, 32])
def test_embedder_shapes(side):
    net = embedder(0, dim=48, width=8, side=side)
    assert net(torch.zeros(3, 1, side, side)).shape == (3, 48)


def test_an_embedder_of_another_side_is_refused():
    with pytest.raises(ValueError, match="multiple of 8, not 20"):
        embedder(0, side=20)


def test_residual_net_reads_its_features():
    net = residual_net(0, classes=7, width=8).eval()
    x, _ = glyphs(range(3), 2, 0, side=16)
    features = net.features(x)
    assert features.shape == (6, 32)
    assert features.min() >= 0
    assert torch.equal(net(x), net.head(features))
    assert net(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("make", [embedder, lambda seed: residual_net(seed, 5)])
def test_the_seed_decides_every_parameter_and_all_are_set(make):
    first, again, other = (make(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if first[name].ndim > 1)


def test_initialising_again_makes_a_used_net_new():
    net = residual_net(0, 5)
    fresh = {name: value.clone() for name, value in net.state_dict().items()}
    net(torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0)))
    assert not torch.equal(net.norm.running_mean, fresh["norm.running_mean"])
    initialise(net, 0)
    with torch.no_grad():
        net.head.weight.mul_(0.1)
    assert all(torch.equal(value, fresh[name]) for name, value in net.state_dict().items())


def test_weights_have_the_variance_of_he():
    net = embedder(3, width=32)
    convolution = [layer for layer in net if isinstance(layer, nn.Conv2d)][1]
    assert convolution.weight.var().item() == pytest.approx(2 / (32 * 9), rel=0.05)


def test_residual_net_learns_twenty_glyphs():
    x, y = glyphs(range(20), 60, 0, side=16)
    test = glyphs(range(20), 10, 0, "test", side=16)
    net = residual_net(0, 20, width=8)
    batches = array_batches(x, y, 64, 0, test)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    history = train(net, batches, optimizer, warmup_cosine(150), 150)
    assert history.train_loss[0] == pytest.approx(3.0, abs=0.4)
    assert accuracy(net, *test) > 0.5
