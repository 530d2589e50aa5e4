"""Small convolutional nets for the glyphs: one that embeds images and one, with residual blocks, that classifies."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from reference.testbeds.seeding import empty_linear, fill_uniform, he_bound

_HEAD_SCALE = 0.1  # small first logits: training starts at a loss of log(classes)


def embedder(seed: int, dim: int = 64, width: int = 16, side: int = 32) -> nn.Sequential:
    """Images [n, 1, side, side] -> [n, dim]: three convolutions of stride 2 with batch norm and ReLU, then linear.

    width, 2 width and 4 width channels. `side` must be a multiple of 8. The embedding is not normalised.
    """
    if side % 8:
        raise ValueError(f"side must be a multiple of 8, not {side}")
    layers: list[nn.Module] = []
    for (inputs, outputs), kernel in zip(pairwise((1, width, 2 * width, 4 * width)), (5, 3, 3), strict=True):
        layers += [_convolution(inputs, outputs, kernel, 2), nn.BatchNorm2d(outputs), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Flatten(), empty_linear(4 * width * (side // 8) ** 2, dim))
    initialise(net, seed)
    return net


class ResidualNet(nn.Module):
    """A stem of stride 2, then one residual block each of width, 2 width and 4 width channels, and a linear head.

    The later two blocks halve the image; the mean over all places is the feature. Images of any side.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.stem = _convolution(1, width, 3, 2)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(
            _Block(width, width, 1), _Block(width, 2 * width, 2), _Block(2 * width, 4 * width, 2)
        )
        self.head = empty_linear(4 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        """Images float32 [n, 1, side, side] -> float32 [n, 4 width], what the head reads; none is negative."""
        return self.blocks(relu(self.norm(self.stem(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits [n, classes]."""
        return self.head(self.features(x))

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy in nats, a scalar."""
        return cross_entropy(self(x), y)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.first = _convolution(inputs, outputs, 3, stride)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = _convolution(outputs, outputs, 3, 1)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.skip = nn.Identity() if inputs == outputs else _convolution(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.first_norm(self.first(x)))
        return relu(self.second_norm(self.second(inner)) + self.skip(x))


def residual_net(seed: int, classes: int, width: int = 16) -> ResidualNet:
    """A ResNet in small, every parameter set by the seed."""
    net = ResidualNet(classes, width)
    initialise(net, seed)
    with torch.no_grad():
        net.head.weight.mul_(_HEAD_SCALE)
    return net


def initialise(net: nn.Module, seed: int) -> None:
    """Set every parameter anew: weights uniform with variance 2/fan_in, biases 0, norms 1 and 0, statistics reset.

    Values depend on the seed and on each parameter's name and shape only.
    """
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    for name, parameter in net.named_parameters():
        if parameter.ndim > 1:
            fill_uniform(parameter, he_bound(parameter[0].numel()), seed, name)
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
    """Without bias, which the batch norm behind it would take out."""
    return nn.utils.skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
