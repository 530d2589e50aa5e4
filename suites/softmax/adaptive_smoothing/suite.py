"""Adaptive smoothing (arXiv 2301.12554): mixtures of an accurate and a robust classifier against other trade-offs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Suite
from reference.methods.robustness.attacks import apgd, random_start
from reference.methods.softmax import adaptive_smoothing as smoothing
from reference.methods.softmax import adaptive_smoothing_frontier as frontier
from reference.methods.softmax.adaptive_smoothing import Mixed
from reference.methods.softmax.adaptive_smoothing_frontier import Accuracy, Examined, FeatureNet

Metrics = dict[str, float]
Tensor = torch.Tensor

suite = Suite(__file__)

SLACK = 0.02  # robust accuracy that a mixture may cost
DEFAULT_LR = {"standard": 0.006, "adversarial": 0.012, "trades": 0.012, "network": 0.005}
FLATTENED = 0.1


class Case:
    """One data set and seed: its classifiers, trained once, and what attacks leave of them, found once."""

    def __init__(self, point: Point, seed: int):
        self.name, self.steps, self.seed = point["data"], point["steps"], seed_for("data", seed)
        self.attack_steps = point["attack_steps"]
        suite.uses_data(self.name, frontier.digest(self.name, self.seed))

    def net(self, kind: str, lr: float | None = None, **options: float) -> FeatureNet:
        """A trained classifier; `lr` None takes the one that won."""
        config = {"data": self.name, "seed": self.seed, "steps": self.steps, "kind": kind,
                  "lr": lr or self.rates()[kind], **options}
        return suite.prepare("classifier", config, frontier.classifier)

    def pair(self) -> tuple[FeatureNet, FeatureNet]:
        """g and h."""
        return self.net("standard"), self.net("adversarial", share=1.0)

    def mixed(self, alpha: smoothing.Alpha, h_scale: float = smoothing.H_SCALE) -> Mixed:
        """The mixture."""
        return Mixed(*self.pair(), alpha, h_scale=h_scale)

    def examined(self, model: torch.nn.Module, part: str, **names: Any) -> Examined:
        """The model under all attacks; `names` tell it from other models."""
        effort = (frontier.final if part == "test" else frontier.selection)(self.attack_steps)
        config = {"data": self.name, "seed": self.seed, "steps": self.steps, "part": part,
                  "attack_steps": self.attack_steps, "tuned": self.rates(), **names}
        sources = () if isinstance(model, Mixed) else self.pair()
        return suite.prepare("examined", config, lambda _: frontier.examine(
            model, self.name, self.seed, part, effort, sources))

    def rates(self) -> dict[str, float]:
        """The learning rate of each kind of training."""
        return {kind: (suite.tuned.values("training", kind) or {"lr": DEFAULT_LR[kind]})["lr"]
                for kind in ("standard", "adversarial", "trades")}

    def constant(self, alpha: float, part: str, h_scale: float = smoothing.H_SCALE) -> Examined:
        """The mixture with a constant alpha."""
        return self.examined(self.mixed(alpha, h_scale), part, alpha=alpha, h_scale=h_scale)

    def needed(self) -> float:
        """The robust accuracy on validation images that a mixture must keep."""
        return self.constant(1.0, "val").accuracy.robust - SLACK

    def alpha(self, h_scale: float = smoothing.H_SCALE) -> float:
        """The smallest alpha that keeps it."""
        needed = self.needed()
        return frontier.choose(frontier.ALPHAS, lambda a: self.constant(a, "val", h_scale).accuracy.robust, needed)

    def rivals(self, arm: str) -> list[Accuracy]:
        """The points of one family on test images."""
        if arm == "chance":
            g, h = self.pair()
            return [self.examined(net, "test", net=kind).accuracy for kind, net in (("g", g), ("h", h))]
        if arm == "trades":
            nets = [(f"trades {beta}", self.net("trades", beta=beta)) for beta in frontier.TRADES_BETAS]
        else:
            nets = [(f"eps {share}", self.net("adversarial", share=share)) for share in frontier.EPS_SHARES]
        return [self.examined(net, "test", net=kind).accuracy for kind, net in nets]


@suite.trial("training")
def training(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One classifier, under attack."""
    case, lr = Case(point, seed), tuned.get("lr", DEFAULT_LR[arm])
    options = {"adversarial": {"share": 1.0}, "trades": {"beta": 1.0}}.get(arm, {})
    net = case.net(arm, lr, **options)
    effort = frontier.selection(case.attack_steps)
    found = {part: frontier.examine(net, case.name, case.seed, part, effort).accuracy for part in ("val", "test")}
    kept = found["val"].clean if arm == "standard" else found["val"].robust
    return {"clean": found["test"].clean, "robust": found["test"].robust, "val_error": 1.0 - kept}


@suite.trial("tradeoff")
def tradeoff(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The mixture, or a rival's clean accuracy at the mixture's robust accuracy."""
    case = Case(point, seed)
    alpha = case.alpha()
    own = case.constant(alpha, "test").accuracy
    if arm == "adversarial":
        own = case.constant(1.0, "test").accuracy
    elif arm != "mixed":
        own = replace(own, clean=frontier.clean_at(own.robust, case.rivals(arm)))
    return {"clean": own.clean, "robust": own.robust, "alpha": alpha}


@suite.trial("confidence")
def confidence(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """What the margins of h are worth."""
    case = Case(point, seed)
    split, rivals = frontier.data(case.name, case.seed), case.rivals("chance")

    def gain(alpha: float, h_scale: float) -> tuple[Accuracy, float]:
        own = case.constant(alpha, "test", h_scale).accuracy
        return own, own.clean - frontier.clean_at(own.robust, rivals)

    scale = smoothing.H_SCALE * (FLATTENED if arm == "flattened" else 1.0)
    alpha = case.alpha(scale)
    (own, gained), (_, plain) = gain(alpha, scale), gain(case.alpha(), smoothing.H_SCALE)
    h = case.pair()[1]
    gap = frontier.margin_gap(h, scale, case.examined(h, "test", net="h"), split.test_x, split.test_y)
    return {"gap": gap, "alpha": alpha, "clean": own.clean, "robust": own.robust, "gain": gained,
            "excess": gained - 0.5 * plain}


@suite.trial("network")
def network(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """The mixing network, or constants interpolated at its robust accuracy."""
    case = Case(point, seed)
    values = tuned or suite.tuned.values("network", "network") or {"lr": DEFAULT_LR["network"]}
    config = {"data": case.name, "seed": case.seed, "steps": case.steps, "tuned": case.rates(), **values}
    mixing = suite.prepare("mixing", config, lambda config: frontier.mixing_net(*case.pair(), config))
    split = frontier.data(case.name, case.seed)

    def with_network(lowest: float, part: str) -> Examined:
        return case.examined(case.mixed(frontier.in_range(mixing, lowest)), part, lowest=lowest, **values)

    lowest = frontier.choose(frontier.ALPHAS, lambda a: with_network(a, "val").accuracy.robust, case.needed())
    found = with_network(lowest, "test")
    own, validation = found.accuracy, with_network(lowest, "val").accuracy
    alphas = [float(frontier.in_range(mixing, lowest)(x).mean()) for x in (split.test_x, found.attacked)]
    if arm == "constant":
        chosen = frontier.ALPHAS.index(case.alpha())
        near = sorted({min(max(chosen + step, 0), len(frontier.ALPHAS) - 1) for step in (-2, 0, 2)})
        points = [case.constant(frontier.ALPHAS[index], "test").accuracy for index in near]
        own = replace(own, clean=frontier.clean_at(own.robust, [*points, case.constant(1.0, "test").accuracy]))
        validation, alphas = case.constant(case.alpha(), "val").accuracy, [case.alpha()] * 2
    return {"clean": own.clean, "robust": own.robust, "val_clean": validation.clean,
            "alpha_clean": alphas[0], "alpha_attacked": alphas[1]}


# --- oracles ---


def random_case(random: torch.Generator, count: int = 2000, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Logits of g and h, from flat to peaked."""
    scales = 4 * torch.rand((2, count, 1), generator=random, dtype=torch.float64)
    return tuple(scales * torch.randn((2, count, classes), generator=random, dtype=torch.float64))


@suite.oracle
def a_margin_of_h_is_safe_from_any_g() -> None:
    """The lemma on 20 000 cases, g chosen freely or against h: margin >= (1 - alpha) / alpha keeps h's class."""
    random = torch.Generator().manual_seed(0)
    kept = 0
    for alpha in (0.5, 0.55, 0.6, 0.7, 0.8, 0.84, 0.9, 0.95, 0.99, 1.0):
        g, h = random_case(random)
        y = h.argmax(1)
        g = torch.where(torch.arange(len(g))[:, None] % 2 == 0, g, 50 * h.scatter(1, y[:, None], -torch.inf).softmax(1))
        safe = smoothing.margins(h.log_softmax(1)) >= smoothing.needed_margin(alpha)
        f = smoothing.mix(g, h, alpha, 1.0, 1.0)
        assert (f.argmax(1) == y)[safe].all(), alpha
        kept += int(safe.sum())
    assert kept > 4000


@suite.oracle
def just_below_the_margin_a_g_turns_it() -> None:
    """The bound is tight: h with a margin of (1 - alpha) / alpha - 0.001 and g sure of the second class."""
    for alpha in (0.55, 0.7, 0.84, 0.95):
        for change, turned in ((-1e-3, True), (1e-3, False)):
            margin = smoothing.needed_margin(alpha) + change
            h = torch.tensor([[0.5 + margin / 2, 0.5 - margin / 2]], dtype=torch.float64).clamp_min(1e-12).log()
            g = torch.tensor([[-200.0, 200.0]], dtype=torch.float64)
            assert (smoothing.mix(g, h, alpha).argmax(1).item() == 1) is turned, (alpha, change)


@suite.oracle
def ends_of_alpha_are_the_classifiers() -> None:
    """alpha 0 and 1 give log softmax of g and h exactly, finite however sure the other is, gradients included."""
    g, h = (10 * item.float() for item in random_case(torch.Generator().manual_seed(1), 200))
    for alpha, expected in ((0.0, (2 * g).log_softmax(1)), (1.0, h.log_softmax(1))):
        assert torch.equal(smoothing.mix(g, h, alpha), expected), alpha
        leaf = g.clone().requires_grad_()
        smoothing.mix(leaf, 100 * h, alpha).sum().backward()
        assert torch.isfinite(leaf.grad).all(), alpha
    by_row = smoothing.mix(g, h, torch.linspace(0.1, 0.9, 200))
    direct = 0.1 * (2 * g[:1]).double().softmax(1) * 9 + 0.1 * h[:1].double().softmax(1)
    assert (by_row[:1].exp() - direct).abs().max() < 1e-6


@suite.oracle
def no_attack_succeeds_inside_the_radius() -> None:
    """h linear in the image, so that its constants are known; g is an adversary that follows the attack."""
    random = torch.Generator().manual_seed(2)
    x = torch.rand((200, 6), generator=random, dtype=torch.float64)
    slopes = 0.2 * torch.randn((6, 3), generator=random, dtype=torch.float64)
    slopes = slopes - slopes.mean(1, keepdim=True)  # rows of h then sum to 1
    lipschitz = slopes.abs().sum(0)  # of h_i in l_inf

    def probabilities(images: Tensor) -> Tensor:
        return 1 / 3 + (images - 0.5) @ slopes

    alpha = 0.8
    h = probabilities(x)
    inside = (h > 0).all(1)
    x, h, y = x[inside], h[inside], h[inside].argmax(1)
    radius = smoothing.lipschitz_radius(h, lipschitz, alpha)
    assert (radius > 0).any()
    for eps in (0.02, 0.05, 0.1):
        certain = radius >= eps
        if not certain.any():
            continue
        signs = torch.sign(slopes.T)[torch.randint(3, (len(x),), generator=random)]
        worst = torch.stack([probabilities(x + eps * direction) for direction in (signs, -signs, torch.sign(
            torch.randn(x.shape, generator=random, dtype=torch.float64)))])
        g = 1e3 * worst.scatter(2, y.expand(3, -1)[:, :, None], -torch.inf).softmax(2)
        f = smoothing.mix(g, worst.clamp_min(1e-12).log(), alpha)
        assert (f.argmax(2) == y)[:, certain].all(), eps


@suite.oracle
def attacks_stay_in_the_ball_and_win_when_it_is_large() -> None:
    """APGD through a mixture of linear classifiers: inside the ball and 0..1; nothing survives eps = 1."""
    random = torch.Generator().manual_seed(3)
    g, h = (torch.nn.Linear(6, 3) for _ in range(2))
    for layer in (g, h):
        layer.weight.data = 8 * torch.randn((3, 6), generator=random)
        layer.bias.data = torch.zeros(3)
    x = torch.rand((100, 6), generator=random)
    f = Mixed(g, h, 0.8)
    y = f(x).argmax(1)
    for eps in (0.05, 1.0):
        adversarial = apgd(f, x, y, eps, steps=20, start=random_start(x, eps, random))
        assert (adversarial - x).abs().max() <= eps + 1e-6
        assert 0.0 <= adversarial.min() <= adversarial.max() <= 1.0
    assert (f(adversarial).argmax(1) == y).float().mean() < 0.05


@suite.oracle
def interpolation_is_the_upper_hull() -> None:
    """By hand: two points, between them, beyond the more robust one; a point under the line does not matter."""
    points = [Accuracy(0.9, 0.1), Accuracy(0.7, 0.5), Accuracy(0.75, 0.3)]
    for robust, clean in ((0.1, 0.9), (0.3, 0.8), (0.5, 0.7), (0.6, 0.7), (0.0, 0.9)):
        assert np.isclose(frontier.clean_at(robust, points), clean), robust
