import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from reference.methods.adaptation import online
from reference.methods.adaptation.batch_statistics import MovingBatchNorm, move_statistics
from reference.methods.adaptation.label_spreading import LabelSpreading
from reference.methods.adaptation.memory import peak_allocated_bytes, second_call_bytes
from reference.testbeds.glyph_nets import residual_net

X = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    """Statistics and affine parameters away from 0 and 1."""
    net = residual_net(0, classes=5, width=4)
    random = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=random)
            module.running_var.uniform_(0.5, 2.0, generator=random)
            module.weight.data.uniform_(0.5, 2.0, generator=random)
            module.bias.data.normal_(generator=random)
    net.head.weight.data.mul_(20)
    return net.eval()


def norm():
    layer = nn.BatchNorm2d(3)
    layer.running_mean.copy_(torch.tensor([1.0, -1.0, 0.5]))
    layer.running_var.copy_(torch.tensor([2.0, 0.5, 1.0]))
    layer.weight.data = torch.tensor([1.5, 0.7, -1.0])
    layer.bias.data = torch.tensor([0.1, 0.2, 0.3])
    return layer


IMAGES = 2 + 3 * torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(2))


def test_weight_0_is_evaluation_mode_and_weight_1_training_mode():
    layer = norm()
    assert torch.allclose(MovingBatchNorm(layer, 0.0)(IMAGES), copy.deepcopy(layer).eval()(IMAGES))
    assert torch.allclose(MovingBatchNorm(layer, 1.0)(IMAGES), copy.deepcopy(layer).train()(IMAGES), atol=1e-5)
    for weight, near in ((1e-6, 0.0), (1 - 1e-6, 1.0)):
        assert torch.allclose(MovingBatchNorm(layer, weight)(IMAGES), MovingBatchNorm(layer, near)(IMAGES), atol=1e-3)


def test_statistics_between_are_weighted_and_kept():
    layer = norm()
    moving = MovingBatchNorm(layer, 0.25)
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    for _ in range(3):
        y = moving(IMAGES)
        mean = 0.75 * mean + 0.25 * IMAGES.mean((0, 2, 3))
        var = 0.75 * var + 0.25 * IMAGES.var((0, 2, 3), correction=0)
        expected = (IMAGES - mean.view(-1, 1, 1)) / (var + layer.eps).sqrt().view(-1, 1, 1)
        assert torch.allclose(y, expected * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1), atol=1e-4)
    assert torch.equal(layer.running_mean, norm().running_mean)


def test_the_batch_carries_gradients_also_through_its_statistics():
    for weight in (0.4, 1.0):
        x = IMAGES.double().requires_grad_()
        moving = MovingBatchNorm(norm().double(), weight)

        def forward(x, moving=moving, weight=weight):
            return MovingBatchNorm(norm().double(), weight)(x)

        assert torch.autograd.gradcheck(lambda x: forward(x)[:2, :, :2, :2], (x,))


def test_a_weight_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="weight"):
        MovingBatchNorm(norm(), 1.5)


def test_every_norm_of_a_model_is_replaced(model):
    count = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert len(move_statistics(model, 0.1)) == count > 3
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", online.ADAPTERS)
def test_an_adapter_gives_probabilities_and_leaves_the_source_alone(name, model):
    before = copy.deepcopy(model.state_dict())
    adapter = online.ADAPTERS[name](model)
    for _ in range(3):
        P = adapter(X)
        assert P.shape == (32, 5)
        assert torch.allclose(P.sum(1), torch.ones(32))
        assert not P.requires_grad
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_statistics_and_rate_nothing_moves(model):
    expected = model(X).softmax(1)
    for name in ("tent", "shot_im", "pseudo_label"):
        adapter = online.ADAPTERS[name](model, lr=0.0, weight=0.0)
        adapter(X)
        assert torch.allclose(adapter(X), expected, atol=1e-6), name
    assert torch.allclose(online.adabn(model, weight=0.0)(X), expected, atol=1e-6)


@pytest.mark.parametrize(("name", "loss", "rate"), [
    ("tent", online.entropy, 1e-2), ("shot_im", online.information_loss, 1e-3),
])
def test_its_own_loss_falls(name, loss, rate, model):
    adapter = online.ADAPTERS[name](model, lr=rate, weight=0.0)
    values = []
    for _ in range(20):
        values.append(loss(adapter(X).clamp_min(1e-12).log()).item())
    assert values[-1] < values[0] - 1e-3


def changed(model, adapter):
    source, own = dict(model.named_parameters()), dict(adapter.model.named_parameters())
    renamed = {name.replace(".scale", ".weight").replace(".shift", ".bias"): value for name, value in own.items()}
    return {name for name, value in source.items() if not torch.equal(value, renamed[name])}


def test_which_parameters_move(model):
    norms = {name for name, _ in model.named_parameters() if "norm" in name}
    everything = {name for name, _ in model.named_parameters()}
    for name, expected in (("tent", norms), ("shot_im", everything - {"head.weight", "head.bias"})):
        adapter = online.ADAPTERS[name](model, lr=0.1)
        adapter(X)
        assert changed(model, adapter) == expected


def test_losses_by_hand():
    flat, sure = torch.zeros(4, 5), 50.0 * torch.eye(5)
    assert online.entropy(flat).item() == pytest.approx(torch.tensor(5.0).log().item())
    assert online.entropy(sure).item() == pytest.approx(0.0, abs=1e-6)
    assert online.information_loss(flat).item() == pytest.approx(0.0, abs=1e-6)
    assert online.information_loss(sure).item() == pytest.approx(-torch.tensor(5.0).log().item(), rel=1e-5)
    assert online.information_loss(sure[:1].repeat(3, 1)).item() == pytest.approx(0.0, abs=1e-6)


def test_pseudo_labels_count_only_where_sure():
    logits = torch.tensor([[3.0, 0.0], [0.5, 0.0]])
    sure = -torch.log_softmax(logits, 1)[0, 0]
    assert online.pseudo_label_loss(logits, 0.9).item() == pytest.approx(sure.item())
    assert online.pseudo_label_loss(logits, 0.99).item() == 0.0
    everyone = -torch.log_softmax(logits, 1)[:, 0].mean().item()
    assert online.pseudo_label_loss(logits, 0.0).item() == pytest.approx(everyone)


def test_accuracy_is_taken_as_the_stream_passes():
    seen = []

    def adapter(x):
        seen.append(len(x))
        return torch.eye(3)[x.long()]

    labels = torch.tensor([0, 1, 2, 0, 1])
    assert online.accuracy_on(adapter, torch.tensor([0, 1, 2, 1, 1]), labels, batch=2) == 0.8
    assert seen == [2, 2, 1]


def test_label_spreading_moves_labels_from_sure_to_near_images(model):
    adapter = LabelSpreading(model, k=3)
    P = adapter(X)
    assert P.shape == (32, 5)
    assert torch.allclose(P.sum(1), torch.ones(32), atol=1e-4)

    class Clusters(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(2, 2, bias=False)
            self.head.weight.data = torch.tensor([[4.0, 0.0], [0.0, 4.0]])

        def features(self, x):
            return x.flatten(1)

    # two tight directions; in each half the images are unsure because they are short
    angles = torch.tensor([0.3, 0.31, 0.32, 0.33, 1.2, 1.21, 1.22, 1.23])
    points = torch.stack([angles.cos(), angles.sin()], 1) * torch.tensor([1.0, 0.01]).repeat(4)[:, None]
    labels = LabelSpreading(Clusters(), k=3)(points[:, :, None, None]).argmax(1)
    assert labels.tolist() == [0] * 4 + [1] * 4
    assert torch.allclose(normalize(points, dim=1).norm(dim=1), torch.ones(8))


def test_peak_memory_counts_what_is_alive_together():
    def one_after_the_other():
        for _ in range(3):
            torch.ones(10_000)

    def together():
        held = [torch.ones(10_000) for _ in range(3)]
        return len(held)

    assert peak_allocated_bytes(one_after_the_other) == pytest.approx(40_000, rel=0.01)
    assert peak_allocated_bytes(together) == pytest.approx(120_000, rel=0.01)


def test_memory_of_the_second_call_leaves_out_what_the_first_one_keeps():
    kept = []

    def call(x):
        if not kept:
            kept.append(torch.ones(50_000))
        return (x + 1).sum()

    assert second_call_bytes(call, torch.zeros(10_000)) == pytest.approx(40_000, rel=0.01)
