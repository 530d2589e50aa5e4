"""Adaptive smoothing (arXiv 2301.12554): mixtures of an accurate and a robust classifier against other trade-offs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Suite
from reference.methods.softmax import adaptive_smoothing as smoothing
from reference.methods.softmax import adaptive_smoothing_frontier as frontier
from reference.methods.softmax import adaptive_smoothing_nets as nets
from reference.testbeds.training import array_digest

Metrics = dict[str, float]
Tensor = torch.Tensor
Tuned = Mapping[str, Any]

suite = Suite(__file__)

LR = {"standard_lr": 0.04, "adversarial_lr": 0.04}  # where nothing is tuned yet
FLATTENED = 0.1


def configured(point: Point, seed: int, tuned: Tuned) -> dict[str, Any]:
    """All that the two classifiers of a seed depend on."""
    config = {**point, "seed": seed_for("data", seed), **{name: tuned.get(name, lr) for name, lr in LR.items()}}
    suite.uses_data("glyphs", array_digest(*vars(nets.split(config["classes"], config["seed"])).values()))
    return config


def prepared(config: Mapping[str, Any]) -> frontier.Case:
    """The classifiers and their mixture, trained and attacked once for all experiments."""
    return suite.prepare("case", config, frontier.case)


@suite.trial("training")
def training(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """The two classifiers, on validation images."""
    config = configured(point, seed, tuned)
    standard, adversarial = (frontier.examine(nets.classifier({**config, "kind": kind}), config, "val").accuracy
                             for kind in ("standard", "adversarial"))
    return {"val_error": 2.0 - standard.clean - adversarial.robust, "clean_lost": standard.clean - adversarial.clean,
            "robust_won": adversarial.robust - standard.robust}


@suite.trial("tradeoff")
def tradeoff(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """A family's clean accuracy at the mixture's robust accuracy."""
    config = configured(point, seed, tuned)
    case = prepared(config)
    names = {"chance": ["standard", "adversarial"], "smaller_eps": ["adversarial"], "trades": []}.get(arm, [arm])
    points = {part: [case.points[part][name] for name in names] for part in frontier.PARTS}
    if kind := {"trades": "trades", "smaller_eps": "adversarial"}.get(arm):
        rates = {"kind": kind, "trades_lr": tuned.get("trades_lr", LR["adversarial_lr"])}
        swept = suite.prepare("sweep", {**config, **rates}, frontier.sweep)
        points = {part: points[part] + swept[part] for part in frontier.PARTS}
    at = {part: case.points[part]["mixed"].robust for part in frontier.PARTS}
    robust = points["test"][0].robust if len(points["test"]) == 1 else at["test"]
    return {"clean": frontier.clean_at(at["test"], points["test"]), "robust": robust, "alpha": case.alpha,
            "val_clean": frontier.clean_at(at["val"], points["val"])}


@suite.trial("confidence")
def confidence(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """What the margins of h are worth."""
    config = configured(point, seed, tuned)
    case, data = prepared(config), nets.split(config["classes"], config["seed"])
    scale = smoothing.H_SCALE * (FLATTENED if arm == "flattened" else 1.0)
    alpha, own = frontier.mixed_at_scale(case, scale, config)
    gain, plain = case.gain(own), case.gain(case.points["test"]["mixed"])
    gap = frontier.margin_gap(case.h, scale, case.seen, data.test_x, data.test_y)
    return {"gap": gap, "alpha": alpha, "clean": own.clean, "robust": own.robust, "gain": gain,
            "excess": gain - 0.5 * plain}


@suite.trial("network")
def network(arm: str, point: Point, seed: int, device: str, tuned: Tuned) -> Metrics:
    """The mixing network beside the constants around the best one, interpolated at its robust accuracy."""
    config = configured(point, seed, tuned)
    case = prepared(config)
    found = frontier.adaptive(case, {**config, "lr": tuned.get("lr", 0.005)})
    own = found.points["test"]
    return {"clean": own.clean, "robust": own.robust, "gain": own.clean - frontier.clean_at(own.robust, case.curve),
            "val_clean": found.points["val"].clean, "alpha_clean": found.alpha_clean,
            "alpha_attacked": found.alpha_attacked}


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
        signs = torch.sign(slopes.T)[torch.randint(3, (len(x),), generator=random)]
        other = torch.sign(torch.randn(x.shape, generator=random, dtype=torch.float64))
        worst = torch.stack([probabilities(x + eps * direction) for direction in (signs, -signs, other)])
        g = 1e3 * worst.scatter(2, y.expand(3, -1)[:, :, None], -torch.inf).softmax(2)
        f = smoothing.mix(g, worst.clamp_min(1e-12).log(), alpha)
        assert (f.argmax(2) == y)[:, certain].all(), eps
