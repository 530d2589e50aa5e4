"""Clean against attacked accuracy: attacks through the mixture, the choice of alpha, and the rivals' points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reference.methods.robustness.attacks import (
    Attack,
    apgd_attack,
    targeted_attack,
    worst_case,
)
from reference.methods.softmax.adaptive_smoothing import H_SCALE, Mixed, margins
from reference.methods.softmax.adaptive_smoothing_nets import EPS, FeatureNet, classifier, in_range, mixing_net, split
from reference.testbeds.nets import accuracy
from reference.testbeds.seeding import generator

PARTS = ("val", "test")
SLACK = 0.02  # robust accuracy that a mixture may cost
SWEEPS = {
    "trades": [{"beta": beta} for beta in (0.5, 1.0, 3.0, 6.0)],
    "adversarial": [{"share": share} for share in (0.25, 0.5, 0.75)],
}
ALPHAS = (*(1.0 / (1.0 + 0.5**halvings) for halvings in range(11)), 1.0)  # (1 - alpha) / alpha halves from 1, then is 0
_SOFTER = 8.0  # how much flatter g is in the stand-in that attackers use when gradients through f vanish


@dataclass(frozen=True)
class Effort:
    """How hard an attacker tries: steps of each APGD, random restarts of the first, wrong classes to aim at."""

    steps: int
    restarts: int
    targets: int


def effort(part: str, steps: int) -> Effort:
    """What test images go through, and what choosing on validation images is worth."""
    return Effort(steps, restarts=5, targets=3) if part == "test" else Effort(steps, restarts=1, targets=1)


@dataclass(frozen=True)
class Accuracy:
    """Shares of images predicted rightly: as they are, and after every attack."""

    clean: float
    robust: float


@dataclass(frozen=True)
class Examined:
    """A classifier on one part of the data: its accuracy and the images after the attacks."""

    accuracy: Accuracy
    attacked: Tensor
    right: Tensor


def attacks_on(model: nn.Module, eps: float, effort: Effort) -> list[Attack]:
    """APGD on the cross entropy with restarts, APGD towards wrong classes and, against a mixture, transfers.

    Through a mixture all gradients run through both classifiers and alpha. Transfers come from the two classifiers and
    from the mixture with a flatter g, whose gradients do not vanish where g is sure.
    """
    sources: list[nn.Module] = []
    if isinstance(model, Mixed):
        softer = Mixed(model.g, model.h, model.alpha, model.g_scale / _SOFTER, model.h_scale)
        sources = [softer, model.h, model.g]
    transfers = [attack for source in sources for attack in apgd_attack(source, eps, effort.steps)]
    return [*apgd_attack(model, eps, effort.steps, effort.restarts),
            *targeted_attack(model, eps, effort.steps, effort.targets), *transfers]


def examine(model: nn.Module, config: Mapping[str, Any], part: str) -> Examined:
    """Clean and worst-case accuracy on the part `val` or `test`."""
    data, model = split(config["classes"], config["seed"]), model.eval()
    x, y = (data.val_x, data.val_y) if part == "val" else (data.test_x, data.test_y)
    attacks = attacks_on(model, EPS, effort(part, config["attack_steps"]))
    attacked, right = worst_case(model, x, y, attacks, generator("examine", part, config["seed"]))
    return Examined(Accuracy(accuracy(model, x, y), float(right.double().mean())), attacked, right)


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


def smallest_alpha(mixture: Callable[[float], Mixed], needed: float, config: Mapping[str, Any]) -> float:
    """The smallest alpha whose mixture keeps the needed robust accuracy on validation images."""
    return choose(ALPHAS, lambda alpha: examine(mixture(alpha), config, "val").accuracy.robust, needed)


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


# --- what is measured for one seed ---


@dataclass(frozen=True)
class Case:
    """The two classifiers of one seed and their mixture with the smallest constant alpha that is robust enough.

    `points[part]` holds the accuracies of standard, adversarial and mixed; `curve` those of mixtures around alpha, on
    test images; `seen` is the robust classifier on them.
    """

    g: FeatureNet
    h: FeatureNet
    needed: float
    alpha: float
    points: dict[str, dict[str, Accuracy]]
    curve: list[Accuracy]
    seen: Examined

    def gain(self, own: Accuracy) -> float:
        """Clean accuracy on test images over that of a random choice between the classifiers, at equal robustness."""
        points = self.points["test"]
        return own.clean - clean_at(own.robust, [points["standard"], points["adversarial"]])


def case(config: Mapping[str, Any]) -> Case:
    """Both classifiers trained with the rates `standard_lr` and `adversarial_lr`, mixed and attacked."""
    g, h = (classifier({**config, "kind": kind}) for kind in ("standard", "adversarial"))
    # as a mixture, so that h meets as many attacks as the mixtures do
    seen = {part: examine(Mixed(g, h, 1.0), config, part) for part in PARTS}
    needed = seen["val"].accuracy.robust - SLACK
    alpha = smallest_alpha(lambda alpha: Mixed(g, h, alpha), needed, config)
    points = {part: {"standard": examine(g, config, part).accuracy, "adversarial": seen[part].accuracy,
                     "mixed": examine(Mixed(g, h, alpha), config, part).accuracy} for part in PARTS}
    chosen, last = ALPHAS.index(alpha), len(ALPHAS) - 1
    near = {min(max(chosen + step, 0), last) for step in (-1, 1)} - {chosen, last}
    curve = [examine(Mixed(g, h, ALPHAS[index]), config, "test").accuracy for index in sorted(near)]
    return Case(g, h, needed, alpha, points, [*curve, points["test"]["mixed"], points["test"]["adversarial"]],
                seen["test"])


def sweep(config: Mapping[str, Any]) -> dict[str, list[Accuracy]]:
    """The points of TRADES over beta, or of adversarial training over smaller radii (`kind`), on each part."""
    nets = [classifier({**config, **options}) for options in SWEEPS[config["kind"]]]
    return {part: [examine(net, config, part).accuracy for net in nets] for part in PARTS}


@dataclass(frozen=True)
class Adaptive:
    """A mixture whose alpha a network gives: its accuracy on each part, and the mean alpha on test images."""

    points: dict[str, Accuracy]
    alpha_clean: float
    alpha_attacked: float


def adaptive(case: Case, config: Mapping[str, Any]) -> Adaptive:
    """A mixing network of rate `lr`, attacked through itself; its lower end is the smallest that is robust enough."""
    net = mixing_net(case.g, case.h, config)

    def mixture(lowest: float) -> Mixed:
        return Mixed(case.g, case.h, in_range(net, lowest))

    found = mixture(smallest_alpha(mixture, case.needed, config))
    seen = {part: examine(found, config, part) for part in PARTS}
    clean = split(config["classes"], config["seed"]).test_x
    means = [float(found.alpha_of(x).mean()) for x in (clean, seen["test"].attacked)]
    return Adaptive({part: item.accuracy for part, item in seen.items()}, *means)


def mixed_at_scale(case: Case, h_scale: float, config: Mapping[str, Any]) -> tuple[float, Accuracy]:
    """Alpha chosen anew for h with its logits scaled, and that mixture on test images."""
    if h_scale == H_SCALE:
        return case.alpha, case.points["test"]["mixed"]
    alpha = smallest_alpha(lambda alpha: Mixed(case.g, case.h, alpha, h_scale=h_scale), case.needed, config)
    return alpha, examine(Mixed(case.g, case.h, alpha, h_scale=h_scale), config, "test").accuracy
