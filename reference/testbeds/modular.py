"""Finite problems on which networks grok: modular arithmetic on one-hot pairs, sparse parity, and a net for them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from reference.testbeds.seeding import empty_linear, fill_uniform, generator
from reference.testbeds.training import Batch, Batches, array_digest

Loss = Callable[[Tensor, Tensor], Tensor]

OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"add": torch.add, "product": torch.mul}


@dataclass(frozen=True)
class Task:
    """Rows float32 [n, width] with labels int64 [n] in 0..classes-1, in two disjoint parts of fixed order."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: int

    @property
    def width(self) -> int:
        """Entries of a row."""
        return self.train_x.shape[1]

    def batches(self) -> Batches:
        """The whole training part at every step, always in the same order: sums over it round the same way."""
        train: Batch = (self.train_x, self.train_y)

        def stream() -> Iterator[Batch]:
            while True:
                yield train

        return Batches(stream, ((self.test_x, self.test_y),), array_digest(*train, self.test_x, self.test_y))


def arithmetic(operation: str, modulus: int, train_share: float, seed: int) -> Task:
    """All modulus^2 pairs (a, b) as two one-hot vectors side by side, labelled a op b mod modulus.

    A `train_share` of the pairs, chosen by the seed, is for training, all others are the test. Raises KeyError for an
    operation other than "add" and "product", ValueError where a part would be empty.
    """
    if operation not in OPERATIONS:
        raise KeyError(f"no operation {operation!r}; there are {', '.join(OPERATIONS)}")
    order = torch.randperm(modulus**2, generator=generator("modular", operation, modulus, seed))
    a, b = order // modulus, order % modulus
    x = torch.cat([one_hot(a, modulus), one_hot(b, modulus)], dim=1).float()
    return _split(x, OPERATIONS[operation](a, b) % modulus, train_share, modulus)


def sparse_parity(
    seed: int, relevant: int = 3, noise_bits: int = 40, rows: int = 2000, train_share: float = 0.5
) -> Task:
    """`rows` different strings of relevant + noise_bits signs (-1, 1), labelled by whether the product of the relevant
    ones is negative; which places are relevant depends on the seed.

    Raises ValueError where there are fewer strings than rows, or a part would be empty.
    """
    width = relevant + noise_bits
    if rows > 2**width:
        raise ValueError(f"there are no {rows} different strings of {width} signs")
    random = generator("sparse_parity", seed)
    places = torch.randperm(width, generator=random)[:relevant]
    bits = torch.empty(0, width, dtype=torch.int64)
    while len(bits) < rows:
        drawn = torch.cat([bits, torch.randint(2, (2 * rows, width), generator=random)])
        bits = drawn[_first_of_equals(drawn)][:rows]
    return _split(1.0 - 2.0 * bits, bits[:, places].sum(1) % 2, train_share, 2)


def _first_of_equals(rows: Tensor) -> Tensor:
    """The indices of rows that no earlier row equals, rising."""
    _, group = torch.unique(rows, dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(rows)).scatter_reduce(0, group, torch.arange(len(rows)), "amin")
    return first.sort().values


def _split(x: Tensor, y: Tensor, train_share: float, classes: int) -> Task:
    count = round(train_share * len(x))
    if not 0 < count < len(x):
        raise ValueError(f"a train_share of {train_share} of {len(x)} rows leaves a part empty")
    return Task(x[:count], y[:count], x[count:], y[count:], classes)


class UnbiasedMLP(nn.Module):
    """widths[0] -> widths[1] -> ..., ReLU between, no biases: c times every one of L matrices is c^L times the logits.

    Weights are U(-1/sqrt(fan_in), 1/sqrt(fan_in)), torch's law for linear layers, on which the time to grok depends;
    they follow from the seed and from each parameter's name and shape. `criterion(logits, labels)` is what is trained.
    """

    def __init__(self, widths: Sequence[int], seed: int, criterion: Loss = cross_entropy):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            layers += [empty_linear(inputs, outputs, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.criterion = criterion
        for name, parameter in self.named_parameters():
            fill_uniform(parameter, parameter.shape[1] ** -0.5, seed, name)

    def forward(self, x: Tensor) -> Tensor:
        """Rows [n, widths[0]] -> logits [n, widths[-1]]."""
        return self.layers(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The criterion of the logits, a scalar."""
        return self.criterion(self(x), y)
