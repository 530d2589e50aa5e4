"""TempNet (arXiv 2404.04575): temperatures by a network and by bisection, in prediction, contrasts and time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import tempnet_dro, tempnet_dro_numba
from reference.methods.softmax import tempnet_dro_contrastive as contrast
from reference.methods.softmax import tempnet_dro_words as wording
from reference.methods.softmax.tempnet_dro import Range, TempNet, rho_for
from reference.testbeds.seeding import generator
from reference.testbeds.training import array_digest
from suites.softmax.tempnet_dro.speed import temperature_problem

Metrics = dict[str, Any]

suite = Suite(__file__)

VOCABULARY, WIDTH, TOP = 2048, 128, 256
PROMPTS, PROMPT, WRITTEN = 64, 8, 24
BATCH = 128


def bed_of(point: Point, seed: int) -> dict[str, Any]:
    """A frozen word model with what it makes of four texts."""
    bed = suite.prepare("bed", {
        "vocabulary": VOCABULARY, "width": WIDTH, "steps": point["lm_steps"], "tokens": point["tokens"],
        "data_seed": seed_for("data", seed), "init_seed": seed_for("init", seed)}, wording.frozen_bed)
    suite.uses_data("words", bed["digest"])
    return bed


@suite.trial("amortisation")
def amortisation(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One TempNet for the radius of the target entropy."""
    bed, rho, top = bed_of(point, seed), rho_for(point["target"], VOCABULARY), TOP if arm == "sorted" else None
    net = wording.amortise(bed, rho, point["steps"], tuned["lr"], seed_for("net", seed), top)
    return wording.amortisation(bed, net, rho)


@suite.trial("prediction")
def prediction(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Temperatures of one arm, for predicting held-out text and for writing."""
    bed, net = bed_of(point, seed), None
    rho = rho_for(tuned["target"], VOCABULARY) if "target" in tuned else None
    if "lr" in tuned:
        net = wording.amortise(bed, rho, point["steps"], tuned["lr"], seed_for("net", seed))
    judge = suite.prepare("judge", {
        "vocabulary": VOCABULARY, "width": 2 * WIDTH, "steps": point["lm_steps"],
        "data_seed": seed_for("judge data"), "init_seed": seed_for("judge")}, wording.judge)
    tau_of = wording.temperatures(arm, bed, rho, net)
    prompts = bed["test"][1][: PROMPTS * wording.CONTEXT].view(-1, wording.CONTEXT)[:, :PROMPT]
    return {**wording.prediction(bed, "test", tau_of),
            "val_nll": wording.prediction(bed, "validation", tau_of)["nll"],
            **wording.writing(bed, judge, tau_of, prompts, WRITTEN, seed_for("writing", seed))}


@suite.trial("contrastive")
def contrastive(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Two nets from scratch; the images of a seed are the same in all arms."""
    images, validation, test = suite.prepare("halves", {
        "classes": point["classes"], "largest": point["largest"], "seed": seed_for("data", seed)}, contrast.halves)
    suite.uses_data("glyphs", array_digest(images, validation, test))
    init = seed_for("init", seed)
    model = contrast.TwoView(contrast.objective_of(arm, len(images), tuned, init), init)
    reached = contrast.fit(model, images, validation, point["steps"], min(BATCH, len(images)), tuned["lr"],
                           seed_for("batches", seed))
    return {"val_recall": reached, "recall": contrast.recall(model, test), **contrast.spread(model, test)}


@suite.speed("speed")
def speed(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The temperatures alone."""
    return temperature_problem(point["rows"], point["vocabulary"])


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
    """dF/dtau against autograd, for two labels."""
    logits, rho = _logits(), 1.7
    for label in (0, 39):
        tau = torch.linspace(0.2, 3.0, 6, dtype=torch.float64).requires_grad_()
        tempnet_dro.robust_loss(logits, tau, rho, torch.full((6,), label)).sum().backward()
        p = (logits / tau.detach()[:, None]).softmax(1)
        assert torch.allclose(tau.grad, rho - (p * (40 * p).log()).sum(1), atol=1e-10)
        assert torch.allclose(tau.grad, tempnet_dro.slope(logits, tau.detach(), rho), atol=1e-10)


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
    logits, net = 3 * _logits().float(), TempNet(40, 0).eval()
    tau = net(logits)
    assert torch.allclose(net(logits + 7.0), tau, atol=1e-5)
    assert ((tau > net.allowed.low) & (tau < net.allowed.high)).all()
    with torch.no_grad():
        for bias, end in ((50.0, net.allowed.high), (-50.0, net.allowed.low)):
            net.last.bias.fill_(bias)
            assert torch.allclose(net(logits), torch.tensor(end))


def _logits() -> Tensor:
    return 2 * torch.randn(6, 40, generator=generator("oracle"), dtype=torch.float64)
