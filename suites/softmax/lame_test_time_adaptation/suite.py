"""LAME, parameter-free test-time adaptation (CVPR 2022): streams of shifted glyphs, and what a batch costs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy import optimize

from harness.declare.suite import Point, Problem, Suite
from reference.methods.adaptation.memory import second_call_bytes
from reference.methods.softmax import lame_test_time_adaptation as lame
from reference.methods.softmax import lame_test_time_adaptation_streams as streams_of
from suites.softmax.lame_test_time_adaptation.accuracy import METHODS, SIDE, accuracies, classifier, largest_loss
from suites.softmax.lame_test_time_adaptation.speed import batch_problem, refine_problem

Metrics = dict[str, float]
Tensor = torch.Tensor

suite = Suite(__file__)
suite.estimate("largest_loss")(largest_loss)


@suite.trial("streams")
def streams(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One scenario, one configuration."""
    return {"accuracy": accuracies(suite, arm, point, seed, [tuned])[0]}


@suite.trial("transfer")
def transfer(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """The same with the configuration of other streams."""
    return {"accuracy": accuracies(suite, arm, point, seed, [tuned])[0]}


@suite.trial("upper_bound")
def upper_bound(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The best of all configurations on this very stream."""
    grid = suite.card.experiments["streams"].tune.grid[arm]
    configurations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return {"accuracy": max(accuracies(suite, arm, point, seed, configurations))}


@suite.trial("memory")
def memory(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The second batch of a stream, when an optimizer already has its state."""
    model = streams_of.residual_net(0, len(streams_of.CLASSES), point["width"])
    x = torch.randn((streams_of.BATCH, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    allocated, by_lame = (second_call_bytes(METHODS[name](model), x) for name in (arm, "lame"))
    return {"allocated_bytes": allocated, "over_lame": allocated / by_lame}


@suite.speed("batch")
def batch(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Batches of a noisy stream with bursts."""
    model = classifier(suite, point["steps"], 0, point["width"])
    config = {"images": 256, "prior": "balanced", "side": SIDE, "seed": 0}
    x, y, _ = suite.prepare("pool", config, streams_of.pool)
    x, _ = streams_of.stream(x, y, streams_of.Scenario("noise", "bursts", "balanced"), 0)
    return batch_problem(model, x, {name: METHODS[name] for name in suite.card.experiments["batch"].arms})


@suite.speed("refine")
def refine(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Neighbours and ten steps."""
    return refine_problem(point["n"], point["classes"])


def example(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and features of 40 images and 6 classes, float64."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((40, 6), generator=random, dtype=torch.float64)
    return logits.softmax(1), torch.randn((40, 5), generator=random, dtype=torch.float64)


@suite.oracle
def objective_falls_where_the_affinity_is_positive() -> None:
    """KL - 1/2 pairwise never rises for symmetric positive semi-definite W; with the whole pairwise term it does."""
    rises = 0
    for seed in range(30):
        Q, features = example(seed)
        for kind in ("rbf", "linear"):
            W = lame.affinity(features, kind) * (1 + seed % 5)
            Z = [lame.refine(Q, W, 0.0, steps).probabilities for steps in range(12)]
            values = torch.stack([lame.objective(z, Q, W) for z in Z])
            assert (values.diff() <= 1e-9 * values.abs().max()).all(), (kind, seed, values)
            whole = values - 0.5 * torch.stack([(z * (W @ z)).sum() for z in Z])
            rises += int((whole.diff() > 1e-6).any())
    assert rises > 0


@suite.oracle
def ends_at_a_fixed_point() -> None:
    """Z = softmax(log Q + W Z), the neighbours' sum taken by a matrix written out here; Q itself where W is 0."""
    for seed in range(5):
        Q, features = example(seed)
        f = features / features.norm(dim=1, keepdim=True)
        gaps = (f[:, None] - f[None]).norm(dim=2) + 10 * torch.eye(40)
        W = (gaps <= gaps.kthvalue(5, dim=1, keepdim=True).values).double()
        assert torch.equal(W, lame.affinity(features, "knn", 5))
        Z = lame.refine(Q, lame.neighbours(f, 5), 0.0, 400).probabilities
        again = Q * torch.exp(W @ Z)
        assert (Z - again / again.sum(1, keepdim=True)).abs().max() < 1e-6, seed
        assert (lame.refine(Q, torch.zeros_like(W)).probabilities - Q).abs().max() < 1e-8, seed


@suite.oracle
def two_images_reach_the_minimum_scipy_finds() -> None:
    """Two images, two classes, one weight: the objective as a function of two probabilities, minimised by scipy."""
    Q = torch.tensor([[0.8, 0.2], [0.4, 0.6]], dtype=torch.float64)
    w = 0.9

    def value(p: np.ndarray) -> float:
        z = np.stack([p, 1 - p], axis=1)
        return float((z * np.log(z / Q.numpy())).sum() - w * (z[0] * z[1]).sum())

    found = optimize.minimize(value, [0.5, 0.5], bounds=[(1e-9, 1 - 1e-9)] * 2, tol=1e-14)
    W = torch.tensor([[0.0, w], [w, 0.0]], dtype=torch.float64)
    Z = lame.refine(Q, W, 0.0, 500).probabilities
    assert np.abs(Z[:, 0].numpy() - found.x).max() < 1e-5, (Z, found.x)
