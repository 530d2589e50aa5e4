"""LAME, parameter-free test-time adaptation (CVPR 2022): streams of shifted glyphs, and what a batch costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import optimize

from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from harness.judge.stats.holm import first_step_level
from harness.judge.stats.intervals import t_interval
from reference.methods.adaptation.label_spreading import LabelSpreading
from reference.methods.adaptation.memory import peak_allocated_bytes
from reference.methods.adaptation.online import ADAPTERS, accuracy_on
from reference.methods.softmax import lame_test_time_adaptation as lame
from reference.methods.softmax import lame_test_time_adaptation_streams as streams_of
from reference.methods.softmax.lame_test_time_adaptation_numba import refine_steps
from suites.softmax.lame_test_time_adaptation.speed import batch_problem, refine_problem

if TYPE_CHECKING:
    import pandas as pd

Metrics = dict[str, float]
Tensor = torch.Tensor

suite = Suite(__file__)

SIDE = 32
WIDTH = 16
METHODS: dict[str, Callable[..., Callable[[Tensor], Tensor]]] = {
    **ADAPTERS, "lame": lame.LAME, "label_spreading": LabelSpreading,
}  # fmt: skip


def classifier(steps: int, seed: int, width: int = WIDTH) -> torch.nn.Module:
    """The source model of a seed, trained once."""
    config = {"steps": steps, "width": width, "side": SIDE, "seed": seed_for("init", seed)}
    return suite.prepare("classifier", config, streams_of.classifier)


def accuracies(arm: str, point: Point, seed: int, configurations: list[Mapping[str, Any]]) -> list[float]:
    """Mean accuracy of each configuration of a method over the scenarios of a point; each stream begins anew."""
    model, data_seed = classifier(point["steps"], seed), seed_for("data", seed)
    sums = [0.0] * len(configurations)
    scenarios = streams_of.scenarios(point["corruption"], point["order"], point["prior"])
    for scenario in scenarios:
        config = {"images": point["images"], "prior": scenario.prior, "side": SIDE, "seed": data_seed}
        x, y, digest = suite.prepare("pool", config, streams_of.pool)
        suite.uses_data(f"glyphs_{scenario.prior}", digest)
        x, y = streams_of.stream(x, y, scenario, data_seed)
        for index, values in enumerate(configurations):
            sums[index] += accuracy_on(METHODS[arm](model, **values), x, y, streams_of.BATCH)
    return [total / len(scenarios) for total in sums]


@suite.trial("streams")
def streams(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One scenario, one configuration."""
    return {"accuracy": accuracies(arm, point, seed, [tuned])[0]}


@suite.trial("transfer")
def transfer(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """The same with the configuration of other streams."""
    return {"accuracy": accuracies(arm, point, seed, [tuned])[0]}


@suite.trial("upper_bound")
def upper_bound(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The best of all configurations on this very stream."""
    grid = suite.card.experiments["streams"].tune.grid[arm]
    configurations = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
    return {"accuracy": max(accuracies(arm, point, seed, configurations))}


@suite.trial("memory")
def memory(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The second batch of a stream, when an optimizer already has its state."""

    def peak(name: str) -> int:
        adapter = METHODS[name](streams_of.residual_net(0, len(streams_of.CLASSES), point["width"]))
        x = torch.randn((streams_of.BATCH, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
        adapter(x)
        return peak_allocated_bytes(lambda: adapter(x))

    allocated = peak(arm)
    return {"allocated_bytes": allocated, "over_lame": allocated / peak("lame")}


@suite.speed("batch")
def batch(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Batches of a noisy stream with bursts."""
    model = classifier(point["steps"], 0, point["width"])
    config = {"images": 256, "prior": "balanced", "side": SIDE, "seed": 0}
    x, y, _ = suite.prepare("pool", config, streams_of.pool)
    x, _ = streams_of.stream(x, y, streams_of.Scenario("noise", "bursts", "balanced"), 0)
    return batch_problem(model, x, {name: METHODS[name] for name in suite.card.experiments["batch"].arms})


@suite.speed("refine")
def refine(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Neighbours and ten steps."""
    return refine_problem(point["n"], point["classes"])


@suite.estimate("largest_loss")
def largest_loss(records: pd.DataFrame, level: float, of: list[str], to: str) -> Estimate:
    """The lowest mean difference to arm `to`, over arms and scenarios; every interval at the simultaneous level."""
    differences = {}
    for place, rows in records.groupby(["corruption", "order", "prior"]):
        table = rows.pivot(index="seed", columns="arm", values="accuracy")
        differences |= {(arm, *place): (table[arm] - table[to]).to_numpy() for arm in of}
    each = first_step_level(len(differences), 1 - level)
    bounds = [t_interval(values, each) for values in differences.values()]
    worst = min(differences, key=lambda name: differences[name].mean())
    return Estimate(
        differences[worst].mean(), min(low for low, _ in bounds), min(high for _, high in bounds),
        n=records["seed"].nunique(), level=level,
        method=f"t intervals over seeds, simultaneous over {len(bounds)}; lowest is {' '.join(worst)}",
    )


# --- oracles ---


def example(n: int = 40, classes: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities and features of float64."""
    random = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn((n, classes), generator=random, dtype=torch.float64)
    return logits.softmax(1), torch.randn((n, 5), generator=random, dtype=torch.float64)


@suite.oracle
def without_affinity_nothing_changes() -> None:
    """W = 0 gives Q back."""
    Q, _ = example()
    assert (lame.refine(Q, torch.zeros(40, 40, dtype=Q.dtype)).probabilities - Q).abs().max() < 1e-8


@suite.oracle
def objective_falls_where_the_affinity_is_positive() -> None:
    """KL - 1/2 pairwise never rises for symmetric positive semi-definite W; with the whole pairwise term it does."""
    rises = 0
    for seed in range(30):
        Q, features = example(seed=seed)
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
    """Z = softmax(log Q + W Z), the neighbours' sum taken by a matrix written out here."""
    for seed in range(5):
        Q, features = example(seed=seed)
        f = features / features.norm(dim=1, keepdim=True)
        gaps = (f[:, None] - f[None]).norm(dim=2) + 10 * torch.eye(40)
        W = (gaps <= gaps.kthvalue(5, dim=1, keepdim=True).values).double()
        assert torch.equal(W, lame.affinity(features, "knn", 5))
        Z = lame.refine(Q, lame.neighbours(f, 5), 0.0, 400).probabilities
        again = Q * torch.exp(W @ Z)
        assert (Z - again / again.sum(1, keepdim=True)).abs().max() < 1e-6, seed


@suite.oracle
def order_in_the_batch_does_not_matter() -> None:
    """A permuted batch gives the permuted result, for every kind of affinity."""
    Q, features = example()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    for kind in ("knn", "rbf", "linear"):
        Z = lame.refine(Q, lame.affinity(features, kind)).probabilities
        permuted = lame.refine(Q[order], lame.affinity(features[order], kind)).probabilities
        assert (Z[order] - permuted).abs().max() < 1e-9, kind


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


@suite.oracle
def compiled_steps_are_the_steps() -> None:
    """Numba on lists, torch on lists and torch on the matrix, after ten steps."""
    Q, features = example(60, 17)
    lists = lame.neighbours(features / features.norm(dim=1, keepdim=True), 5)
    exact = lame.refine(Q, lame.affinity(features), 0.0, 10).probabilities
    assert (lame.refine(Q, lists, 0.0, 10).probabilities - exact).abs().max() < 1e-12
    compiled = refine_steps(Q.float().numpy(), lists.numpy(), 10)
    assert np.abs(compiled - exact.numpy()).max() < 1e-5
