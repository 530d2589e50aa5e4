"""Small image classifiers for the digits: a multilayer perceptron and a convolutional net of any width."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reference.testbeds.digits import CLASSES
from reference.testbeds.seeding import empty_linear, fill_uniform, he_bound

_KERNELS = (5, 3, 3)
_HEAD_SCALE = 0.1  # small first logits: training starts at a loss of log(classes)


class Classifier(nn.Module):
    """A stack of layers from images to logits, the last of them the linear head, with the loss it is trained on."""

    def __init__(self, layers: Sequence[nn.Module], seed: int):
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Set every parameter anew: weights uniform with variance 2/fan_in, biases 0, norms 1 and 0, statistics reset.

        The head's weights are a tenth of that. Values depend on the seed and on each parameter's name and shape only.
        """
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_parameters()
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                fill_uniform(parameter, he_bound(parameter[0].numel()), seed, name)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.layers[-1].weight.mul_(_HEAD_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        """Images float32 [batch, 1, side, side] -> logits [batch, classes]."""
        return self.layers(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy in nats, a scalar."""
        return cross_entropy(self(x), y)


def mlp(
    seed: int,
    side: int = 8,
    hidden: Sequence[int] = (128,),
    classes: int = CLASSES,
    activation: Callable[[], nn.Module] = nn.ReLU,
) -> Classifier:
    """side^2 -> hidden -> ... -> classes, with biases."""
    widths = [side * side, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths):
        layers += [empty_linear(inputs, outputs), activation()]
    return Classifier([*layers, empty_linear(widths[-1], classes)], seed)


def conv_net(
    seed: int,
    width: int = 16,
    classes: int = CLASSES,
    min_weight_entries: int = 0,
    batch_norm: bool = False,
) -> Classifier:
    """conv 5x5, pool to half, conv 3x3, conv 3x3, maximum over all places, linear; width, 2 width, 2 width channels.

    ReLU behind each convolution, batch norm before it if asked; images of any even side. `min_weight_entries` widens
    each layer just as far as it takes for the weights of all convolutions and of the head to have that many entries,
    for methods that leave smaller tensors alone. Biases and norms are vectors and stay small: `small_tensors` names
    them.
    """
    first = max(width, math.ceil(min_weight_entries / _KERNELS[0] ** 2))
    second = max(2 * width, math.ceil(min_weight_entries / (first * _KERNELS[1] ** 2)))
    last = max(
        2 * width,
        math.ceil(min_weight_entries / (second * _KERNELS[2] ** 2)),
        math.ceil(min_weight_entries / classes),
    )
    layers: list[nn.Module] = []
    for (inputs, outputs), kernel in zip(pairwise((1, first, second, last)), _KERNELS, strict=True):
        layers.append(nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, padding=kernel // 2))
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if batch_norm else [nn.ReLU()]
        if inputs == 1:
            layers.append(nn.MaxPool2d(2))
    return Classifier([*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), empty_linear(last, classes)], seed)


def small_tensors(model: nn.Module, entries: int) -> list[str]:
    """Names of the parameters with fewer entries than that."""
    return [name for name, parameter in model.named_parameters() if parameter.numel() < entries]


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Share of rows whose largest logit is the label's, in evaluation mode; the mode is restored."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    right = (model(x.to(device)).argmax(1) == y.to(device)).sum().item()
    model.train(was_training)
    return right / len(y)
