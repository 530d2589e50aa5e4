"""Clean against attacked accuracy on small images: the classifiers to mix, attacks through the mixture, its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from reference.methods.robustness.attacks import (
    Attack,
    apgd_attack,
    pgd,
    random_start,
    targeted_attack,
    worst_case,
)
from reference.methods.robustness.training import AdversarialTraining, Trades
from reference.methods.softmax.adaptive_smoothing import Mixed, MixingNet, MixingTraining, margins
from reference.testbeds import nets
from reference.testbeds.digits import Split, digits
from reference.testbeds.seeding import generator
from reference.testbeds.training import array_batches, array_digest, train, warmup_cosine

BATCH = 64
# radii at which adversarial training keeps half to 70 % of the validation images, found without any mixture
EPS = {"digits": 0.12}
TRADES_BETAS = (0.5, 1.0, 3.0, 6.0)
EPS_SHARES = (0.25, 0.5, 0.75, 1.0)
# (1 - alpha) / alpha falls by the root of two from 1 to a thousandth, then to 0
ALPHAS = (*(1.0 / (1.0 + 2.0 ** (-j / 2)) for j in range(21)), 1.0)
_WIDTH = 8
_TRAINING_ATTACK_STEPS = 4
_HIGHEST = 0.99  # of a mixing network's alpha
_SOFTER = 8.0  # how much flatter g is in the stand-in that attackers use when gradients through f vanish


@dataclass(frozen=True)
class Effort:
    """How hard an attacker tries: steps of each APGD, random restarts of the first, wrong classes to aim at."""

    steps: int
    restarts: int
    targets: int


def selection(steps: int) -> Effort:
    """What choosing on validation images is worth."""
    return Effort(max(1, 3 * steps // 4), restarts=1, targets=1)


def final(steps: int) -> Effort:
    """What test images go through."""
    return Effort(steps, restarts=5, targets=3)


@dataclass(frozen=True)
class Accuracy:
    """Shares of images predicted rightly: as they are, and after every attack."""

    clean: float
    robust: float


class FeatureNet(nn.Module):
    """A classifier of `nets` that tells what its head reads."""

    def __init__(self, net: nets.Classifier):
        super().__init__()
        self.net = net
        self.width = net.layers[-1].in_features

    def features(self, x: Tensor) -> Tensor:
        """Images -> [n, width]."""
        return self.net.layers[:-1](x)

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        return self.net(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross entropy in nats."""
        return self.net.loss(x, y)


@cache
def data(name: str, seed: int) -> Split:
    """Images in 0..1 by name; so far the digits. Raises KeyError for another name."""
    return {"digits": digits}[name](seed)


def classifier(config: Mapping[str, Any]) -> FeatureNet:
    """A convolutional net, trained with Adam for `steps` steps and in evaluation mode.

    `config` names `data`, `seed`, `lr`, `steps` and the `kind`: standard, adversarial (with `share` of the radius) or
    trades (with `beta`).
    """
    split, seed, steps = data(config["data"], config["seed"]), config["seed"], config["steps"]
    net = FeatureNet(nets.conv_net(seed, _WIDTH))
    eps = EPS[config["data"]]
    model: nn.Module = net
    if config["kind"] == "adversarial":
        model = AdversarialTraining(net, config["share"] * eps, _TRAINING_ATTACK_STEPS, seed)
    elif config["kind"] == "trades":
        model = Trades(net, eps, _TRAINING_ATTACK_STEPS, seed, config["beta"])
    batches = array_batches(split.train_x, split.train_y, BATCH, seed, (split.val_x, split.val_y))
    train(model, batches, torch.optim.Adam(net.parameters(), lr=config["lr"]), warmup_cosine(steps), steps)
    return net.eval().requires_grad_(False)


def mixing_net(g: FeatureNet, h: FeatureNet, config: Mapping[str, Any]) -> MixingNet:
    """A mixing network trained on clean images and on images attacked through the mixture and through itself."""
    name, seed, steps = config["data"], config["seed"], config["steps"]
    split, random = data(name, seed), generator("mixing attack", seed)
    net = MixingNet(g, h, g.width + h.width, seed)

    def attack(mixed: Mixed, x: Tensor, y: Tensor) -> Tensor:
        start = random_start(x, EPS[name], random)
        size = 2.5 * EPS[name] / _TRAINING_ATTACK_STEPS
        return pgd(mixed, x, y, EPS[name], steps=_TRAINING_ATTACK_STEPS, step_size=size, start=start)

    model = MixingTraining(Mixed(g, h, net), attack)
    batches = array_batches(split.train_x, split.train_y, BATCH, seed, (split.val_x, split.val_y))
    optimizer = torch.optim.AdamW(net.parameters(), lr=config["lr"], weight_decay=1e-5)
    train(model, batches, optimizer, warmup_cosine(steps), steps)
    return net.eval().requires_grad_(False)


def in_range(net: MixingNet, lowest: float) -> MixingNet:
    """The network itself, its alpha from now on between `lowest` and 0.99."""
    net.lowest, net.span = lowest, max(0.0, _HIGHEST - lowest)
    return net


# --- attacks ---


def attacks_on(model: nn.Module, eps: float, effort: Effort, sources: Sequence[nn.Module] = ()) -> list[Attack]:
    """APGD on the cross entropy with restarts, APGD towards wrong classes, and what fools each of the `sources`.

    Through a mixture all gradients run through both classifiers and alpha. Its sources are the two classifiers and the
    mixture with a flatter g, whose gradients do not vanish where g is sure.
    """
    if isinstance(model, Mixed):
        softer = Mixed(model.g, model.h, model.alpha, model.g_scale / _SOFTER, model.h_scale)
        sources = [softer, model.h, model.g]
    transfers = [attack for source in sources for attack in apgd_attack(source, eps, effort.steps)]
    return [*apgd_attack(model, eps, effort.steps, effort.restarts),
            *targeted_attack(model, eps, effort.steps, effort.targets), *transfers]


@dataclass(frozen=True)
class Examined:
    """A classifier on one part of the data: its accuracy and the images after the attacks."""

    accuracy: Accuracy
    attacked: Tensor
    right: Tensor


def examine(
    model: nn.Module, name: str, seed: int, part: str, effort: Effort, sources: Sequence[nn.Module] = ()
) -> Examined:
    """Clean and worst-case accuracy on the part `val` or `test`."""
    split = data(name, seed)
    x, y = (split.val_x, split.val_y) if part == "val" else (split.test_x, split.test_y)
    model = model.eval()
    attacked, right = worst_case(model, x, y, attacks_on(model, EPS[name], effort, sources),
                                 generator("examine", part, seed))
    return Examined(Accuracy(nets.accuracy(model, x, y), float(right.double().mean())), attacked, right)


def choose(candidates: Sequence[float], robust: Callable[[float], float], needed: float) -> float:
    """The first candidate with `robust(candidate) >= needed`, by bisection; the last where none is known to be.

    Candidates come in the order in which `robust` rises.
    """
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high) // 2
        if robust(candidates[middle]) >= needed:
            high = middle
        else:
            low = middle + 1
    return candidates[low]


def clean_at(robust: float, points: Sequence[Accuracy]) -> float:
    """The best clean accuracy at that robust accuracy, or a higher one, by a random choice between two of the points.

    Where none is as robust, the clean accuracy of the most robust one.
    """
    found = [point.clean for point in points if point.robust >= robust]
    for low in points:
        for high in points:
            if low.robust < robust < high.robust:
                weight = (robust - low.robust) / (high.robust - low.robust)
                found.append((1 - weight) * low.clean + weight * high.clean)
    return max(found) if found else max(points, key=lambda point: point.robust).clean


def margin_gap(h: nn.Module, h_scale: float, seen: Examined, x: Tensor, y: Tensor) -> float:
    """Mean margin of h where it is right under attack minus where it is wrong on clean images, in probability."""
    with torch.no_grad():
        attacked, clean = ((h_scale * h(images)).log_softmax(1) for images in (seen.attacked, x))
    return float(margins(attacked)[seen.right].mean() - margins(clean)[clean.argmax(1) != y].mean())


def digest(name: str, seed: int) -> str:
    """Of all images and labels."""
    return array_digest(*vars(data(name, seed)).values())
