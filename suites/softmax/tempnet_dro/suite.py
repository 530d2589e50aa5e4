"""TempNet (arXiv 2404.04575): temperatures by a network and by bisection, in prediction, contrasts and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Arm, Point, Problem, Suite
from reference.methods.softmax import tempnet_dro, tempnet_dro_numba
from reference.methods.softmax import tempnet_dro_contrastive as contrast
from reference.methods.softmax import tempnet_dro_words as wording
from reference.methods.softmax.tempnet_dro import Range, TempNet, rho_for
from reference.testbeds.seeding import generator
from reference.testbeds.training import array_digest
from reference.testbeds.word_lm import WordLM
from reference.testbeds.words import Words, words

Metrics = dict[str, Any]
Tensor = torch.Tensor

suite = Suite(__file__)

VOCABULARY, WIDTH, TOP = 2048, 128, 256
UNTUNED = {"lr": 0.00316, "target": 4.5, "tau": 0.1, "rho": 1.0}
PROMPTS, PROMPT, WRITTEN = 64, 8, 24
BATCH, LR = 128, 0.003
SPEED_TARGET, SPEED_RANGE = 3.0, Range()


def text() -> Words:
    """DOC as words, parsed once."""
    return suite.prepare("words", {"vocabulary": VOCABULARY}, lambda config: words(config["vocabulary"]))


def bed_of(point: Point, seed: int) -> dict[str, Any]:
    """A frozen word model with what it makes of four texts, prepared once."""
    config = {"lm_steps": point["lm_steps"], "tokens": point["tokens"], "seed": seed}
    bed = suite.prepare("bed", config, lambda config: wording.frozen(
        text(), WIDTH, config["lm_steps"], seed_for("data", seed), seed_for("init", seed), config["tokens"]))
    suite.uses_data("words", bed["digest"])
    return bed


@suite.trial("amortisation")
def amortisation(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One TempNet for the radius of the target entropy."""
    bed, rho, lr = bed_of(point, seed), rho_for(point["target"], VOCABULARY), (tuned or UNTUNED)["lr"]
    net = wording.amortise(bed, rho, point["steps"], lr, seed_for("net", seed), top=TOP if arm == "sorted" else None)
    return wording.amortisation(bed, net, rho)


@suite.trial("prediction")
def prediction(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Temperatures of one arm, for predicting held-out text and for writing."""
    bed, net, rho = bed_of(point, seed), None, None
    if arm in {"bisection", "tempnet"}:
        rho = rho_for((tuned or UNTUNED)["target"], VOCABULARY)
    if arm in {"tempnet", "likelihood"}:
        lr = (tuned or suite.tuned.values("prediction", "tempnet") or UNTUNED)["lr"]
        net = wording.amortise(bed, rho, point["steps"], lr, seed_for("net", seed))
    tau_of = wording.temperatures(arm, bed, rho, net)
    prompts = bed["test"][1][: PROMPTS * 32].view(-1, 32)[:, :PROMPT]
    return {**wording.prediction(bed, "test", tau_of),
            "val_nll": wording.prediction(bed, "validation", tau_of)["nll"],
            **wording.writing(bed, judge(point), tau_of, prompts, WRITTEN, seed_for("writing", seed))}


def judge(point: Point) -> WordLM:
    """A model of twice the width, trained on the same text, that scores samples; prepared once."""
    model = WordLM("gru", VOCABULARY, 0, 2 * WIDTH)
    model.load_state_dict(suite.prepare("judge", {"lm_steps": point["lm_steps"]}, lambda config: wording.language_model(
        text(), 2 * WIDTH, config["lm_steps"], seed_for("judge data"), seed_for("judge")).state_dict()))
    return model


@suite.trial("contrastive")
def contrastive(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Two nets from scratch; the images of a seed are the same in all arms."""
    classes = point["classes"]
    config = {"classes": classes, "largest": point["largest"], "seed": seed}
    images, validation, test = suite.prepare("halves", config, lambda config: (
        contrast.long_tailed(classes, config["largest"], 0.7, seed_for("data", seed)),
        contrast.balanced(classes, 2, seed_for("data", seed), "val"),
        contrast.balanced(classes, 2, seed_for("data", seed), "test")))
    suite.uses_data("glyphs", array_digest(images, validation, test))
    init = seed_for("init", seed)
    model = contrast.TwoView(contrast.objective_of(arm, len(images), dict(tuned or UNTUNED), init), init)
    batch = min(BATCH, len(images))
    reached = contrast.fit(model, images, validation, point["steps"], batch, LR, seed_for("batches", seed))
    return {"val_recall": reached, "recall": contrast.recall(model, test)}


@suite.speed("speed")
def speed(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Each arm returns its temperatures and its name; a bisected one is right when the entropy is the target's."""
    rows, vocabulary = point["rows"], point["vocabulary"]
    net = TempNet(vocabulary, 0, SPEED_RANGE).requires_grad_(False)
    net.eval()
    exact_net = TempNet(vocabulary, 0, SPEED_RANGE).double()
    exact_net.eval()
    rho, work = rho_for(SPEED_TARGET, vocabulary), float(rows * vocabulary)

    def inputs(random: np.random.Generator) -> tuple[Tensor]:
        return (torch.from_numpy(2 * random.standard_normal((rows, vocabulary), dtype=np.float32)),)

    def in_numba(logits: Tensor) -> tuple[np.ndarray, str]:
        tau = np.empty(rows, np.float32)
        tempnet_dro_numba.exact_tau(logits.numpy(), SPEED_TARGET, SPEED_RANGE.low, SPEED_RANGE.high,
                                    tempnet_dro.BISECTION_STEPS, tau)
        return tau, "bisection"

    def error(found: tuple[Any, str], logits: Tensor) -> float:
        tau = torch.as_tensor(found[0]).double()
        if found[1] == "tempnet":
            with torch.no_grad():
                return (tau / exact_net(logits) - 1).abs().max().item()
        return (tempnet_dro.entropy(logits, tau) - SPEED_TARGET).abs().max().item()

    passes = tempnet_dro.BISECTION_STEPS
    return Problem(
        inputs=inputs, buffers=lambda _: (), truth=lambda logits: logits.double(), error=error,
        arms={
            "tempnet": Arm(lambda logits: (net(logits), "tempnet"), 4 * (work + 256 * vocabulary), 2 * 256 * work),
            "bisection": Arm(lambda logits: (tempnet_dro.exact_tau(logits, rho, SPEED_RANGE), "bisection"),
                             4 * work * passes, 8 * work * passes),
            "bisection_numba": Arm(in_numba, 4 * work, 22 * work * passes),
        },
        input_bytes=int(4 * work), tolerance=2e-3,
    )


@suite.oracle
def primal_equals_dual() -> None:
    """The KL ball's maximiser softmax(h / tau*) has the dual's value; no other p in the ball has a larger one."""
    logits, labels, rho = _logits(), torch.arange(6), 2.0
    tau = tempnet_dro.exact_tau(logits, rho, Range(1e-3, 1e3), steps=100)
    p = (logits / tau[:, None]).softmax(1)
    dual = tempnet_dro.robust_loss(logits, tau, rho, labels)
    assert torch.allclose(tempnet_dro.primal_value(logits, p, labels), dual, rtol=0, atol=1e-9)
    for sharpness in (0.3, 1.0, 3.0):
        q = (sharpness * torch.randn(6, 40, generator=generator("oracle q"), dtype=torch.float64)).softmax(1)
        inside = (q * (40 * q).log()).sum(1) <= rho
        assert (tempnet_dro.primal_value(logits, q, labels) <= dual + 1e-9)[inside].all()


@suite.oracle
def the_best_temperature_levels_the_entropy() -> None:
    """entropy(softmax(h / tau*)) = log V - rho, by both bisections, Numba's to the accuracy of its exponential."""
    logits = _logits()
    tau = tempnet_dro.exact_tau(logits, rho_for(2.5, 40), Range(1e-3, 1e3), steps=100)
    assert torch.allclose(tempnet_dro.entropy(logits, tau), torch.tensor(2.5, dtype=torch.float64), atol=1e-9)
    found = np.empty(6, np.float32)
    tempnet_dro_numba.exact_tau(logits.float().numpy(), 2.5, 0.01, 50.0, 40, found)
    assert np.allclose(found, tau.numpy(), rtol=1e-3)


@suite.oracle
def the_slope_is_rho_minus_kl_whatever_the_label() -> None:
    """dF/dtau against autograd, and second differences of F that are not negative."""
    logits, rho = _logits(), 1.7
    for label in (0, 39):
        tau = torch.linspace(0.2, 3.0, 6, dtype=torch.float64).requires_grad_()
        labels = torch.full((6,), label)
        tempnet_dro.robust_loss(logits, tau, rho, labels).sum().backward()
        p = (logits / tau.detach()[:, None]).softmax(1)
        assert torch.allclose(tau.grad, rho - (p * (40 * p).log()).sum(1), atol=1e-10)
        assert torch.allclose(tau.grad, tempnet_dro.slope(logits, tau.detach(), rho), atol=1e-10)
        grid = torch.linspace(0.1, 4, 50, dtype=torch.float64)
        losses = tempnet_dro.robust_loss(logits[:1].expand(50, -1), grid, rho, labels[:1].expand(50))
        assert (losses.diff().diff() > -1e-9).all()


@suite.oracle
def contrastive_gradients_are_those_of_the_loss() -> None:
    """With gamma 1 the surrogate's gradients are those of tau log mean exp(d / tau) + tau rho, by autograd."""
    similarity = torch.rand(5, 5, generator=generator("oracle s"), dtype=torch.float64).requires_grad_()
    tau = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], dtype=torch.float64, requires_grad=True)
    found = contrast.GlobalLoss(5, rho=1.3, gamma=1.0)(similarity, torch.arange(5), tau)
    mine = torch.autograd.grad(found.loss, similarity)[0]
    scaled = ((similarity - similarity.diagonal()[:, None]) / tau[:, None]).masked_fill(torch.eye(5).bool(), -torch.inf)
    loss = (tau * (torch.logsumexp(scaled, 1) - math.log(4) + 1.3)).sum()
    exact = torch.autograd.grad(loss, (similarity, tau))
    assert torch.allclose(mine, exact[0] / 5, atol=1e-6)
    assert torch.allclose(found.tau.double(), exact[1], atol=1e-5)


@suite.oracle
def the_network_stays_in_range_and_ignores_shifts() -> None:
    """tau(h + c) = tau(h), and at the ends of its output the network reaches the ends of the range."""
    logits, net = 3 * _logits().float(), TempNet(40, 0)
    net.eval()
    tau = net(logits)
    assert torch.allclose(net(logits + 7.0), tau, atol=1e-5)
    assert ((tau > net.allowed.low) & (tau < net.allowed.high)).all()
    with torch.no_grad():
        for bias, end in ((50.0, net.allowed.high), (-50.0, net.allowed.low)):
            net.last.bias.fill_(bias)
            assert torch.allclose(net(logits), torch.tensor(end))


def _logits() -> Tensor:
    return 2 * torch.randn(6, 40, generator=generator("oracle"), dtype=torch.float64)
