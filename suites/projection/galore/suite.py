"""GaLore (arXiv 2403.03507): state bytes, pretraining, subspace switching, the low-rank lemma, speed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from harness.judge.stats.intervals import wilson
from reference.kernels import project as kernels
from reference.methods.projection.galore import GaLoreAdamW, step_during_backward
from reference.methods.projection.gradient_system import System
from reference.methods.projection.lowrank_baselines import factorise, lora_from_scratch
from reference.methods.projection.pretraining import (
    Setting,
    linear_names,
    pretrain,
    projected_groups,
    stable_rank,
    training_metrics,
)
from reference.testbeds import char_lm
from reference.testbeds.seeding import generator
from suites.projection.galore.bytes import account, peak_gradient_bytes
from suites.projection.galore.speed import ALPHA, refresh_problem, step_problem

if TYPE_CHECKING:
    import pandas as pd

Metrics = dict[str, Any]

suite = Suite(__file__)

# arm of the switching experiment -> (projector, refresh gap)
SWITCHING: dict[str, tuple[str, int | None]] = {
    "svd_t1": ("svd", 1),
    "svd_t10": ("svd", 10),
    "svd_t50": ("svd", 50),
    "svd_never": ("svd", None),
    "random_t50": ("random", 50),
}


@suite.trial("state")
def state(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """State bytes by walking and by formula."""
    return account(arm, point["model"])


@suite.trial("live_gradients")
def live_gradients(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Largest number of gradient bytes alive at once, with one step after the pass or a step per layer inside it."""
    setting = setting_of({"size": "M", "steps": 1}, seed)
    model = setting.model()
    optimizer = GaLoreAdamW(projected_groups(model, rank=point["rank"]))
    peak = peak_gradient_bytes(
        model, next(iter(setting.batches())), lambda: step_during_backward(optimizer) if arm == "per_layer" else []
    )
    return {"peak_gradient_bytes": peak, "all_gradient_bytes": sum(p.nbytes for p in model.parameters())}


@suite.trial("pretraining")
def pretraining(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One arm from scratch; all but ``adamw_one_rate`` move the matrices, or their factors, at ALPHA times the rate."""
    setting, lr = setting_of(point, seed), tuned["lr"]
    model, rank = setting.model(), point["rank"]
    names = linear_names(model)
    if arm == "galore":
        groups = projected_groups(model, rank=rank, update_proj_gap=point["gap"], scale=ALPHA)
        return trained(setting, model, GaLoreAdamW(groups, lr=lr))
    if arm == "lora":
        lora_from_scratch(model, names, rank, generator("lora", seed_for("init", seed)))
    elif arm == "factorised":
        factorise(model, names, rank)
    slow = [p for name in names for p in model.get_submodule(name).parameters() if p.ndim == 2]
    chosen = {id(p) for p in slow}
    fast = [p for p in model.parameters() if id(p) not in chosen]
    rate = lr if arm == "adamw_one_rate" else ALPHA * lr
    optimizer = torch.optim.AdamW([{"params": slow, "lr": rate}, {"params": fast}], lr=lr, weight_decay=0.0)
    return trained(setting, model, optimizer)


@suite.trial("switching")
def switching(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """GaLore with one way of renewing the subspace."""
    setting = setting_of(point, seed)
    model = setting.model()
    projector, gap = SWITCHING[arm]
    groups = projected_groups(model, rank=point["rank"], projector=projector, update_proj_gap=gap)
    return trained(setting, model, GaLoreAdamW(groups, lr=tuned["lr"], seed=seed_for("projector", seed)))


@suite.trial("lemma")
def lemma(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Many random systems, each from its own start."""
    rows, columns = point["rows"], point["columns"]
    paths = []
    for index in range(point["systems"]):
        system = System.random(rows, columns, point["terms"], seed_for("system", seed, index), point["freedom"])
        W = np.random.default_rng(seed_for("weights", seed, index)).standard_normal((rows, columns))
        paths.append(system.trajectory(W))
    return {
        "worst_ratio": [path.worst_ratio() for path in paths],
        "worst_rise": [path.worst_rise() for path in paths],
        "first": float(np.mean([path.stable_rank[0] for path in paths])),
        "last": float(np.mean([path.stable_rank[-1] for path in paths])),
        "stable_rank": paths[0].stable_rank[::10].tolist(),
    }


@suite.trial("gradients")
def gradients(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Stable ranks of the attention and MLP gradients, averaged over the matrices."""
    setting = setting_of(point, seed)
    model = setting.model()
    names = [f"{name}.weight" for name in linear_names(model)]
    ranks: list[float] = []

    def measure(step: int, found: dict[str, torch.Tensor]) -> None:
        if step % point["every"] == 0:
            ranks.append(float(np.mean([stable_rank(found[name]) for name in names])))

    pretrain(setting, model, torch.optim.AdamW(model.parameters(), lr=point["lr"], weight_decay=0.0), measure)
    stretches = [float(part.mean()) for part in np.array_split(np.array(ranks), min(10, len(ranks)))]
    return {"first": ranks[0], "last": stretches[-1], "stable_rank": stretches}


@suite.speed("step_time")
def step_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One step with a fixed basis on the CPU."""
    return step_problem(point["shape"], device, ("eager", "numba", "compile"))


@suite.speed("gpu_step_time")
def gpu_step_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The same on a CUDA device."""
    return step_problem(point["shape"], device, ("cuda", "triton", "eager", "compile"))


@suite.speed("refresh_time")
def refresh_time(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Three ways to a new subspace."""
    return refresh_problem(point["shape"])


@suite.estimate("largest")
def largest(records: pd.DataFrame, level: float, metric: str) -> Estimate:
    """The largest value of ``metric`` over the systems: a statement about these systems, so without an interval."""
    values = np.concatenate([np.asarray(row, float) for row in records[metric]])
    worst = float(values.max()) if np.isfinite(values).all() else float("nan")
    return Estimate(worst, worst, worst, len(values), level, unit="system", method="largest value over the systems")


@suite.estimate("share_at_most")
def share_at_most(records: pd.DataFrame, level: float, metric: str, limit: float) -> Estimate:
    """Share of the systems, which are independent, with ``metric`` at most ``limit``; Wilson interval."""
    values = np.concatenate([np.asarray(row, float) for row in records[metric]])
    count = int((values <= limit).sum())
    low, high = wilson(count, len(values), level)
    return Estimate(count / len(values), low, high, len(values), level, "system", "Wilson interval over systems")


@suite.oracle
def full_rank_every_step_is_adam_of_the_rotated_gradient() -> None:
    """r = min(m, n), T = 1: one step equals U AdamStep(U^T G)."""
    G = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    U = kernels.svd_basis(G, 12, "left")
    p = torch.nn.Parameter(torch.zeros_like(G))
    optimizer = GaLoreAdamW([{"params": [p], "rank": 12, "update_proj_gap": 1, "scale": 1.0}], lr=0.01, eps=1e-12)
    q = torch.nn.Parameter(torch.zeros_like(G))
    adam = torch.optim.AdamW([q], lr=0.01, eps=1e-12, weight_decay=0.0)
    p.grad, q.grad = G, U.mT @ G
    optimizer.step()
    adam.step()
    assert (p - U @ q).abs().max() < 1e-8


@suite.oracle
def sgd_on_a_rank_r_gradient_loses_nothing() -> None:
    """Projecting and projecting back a rank-r gradient with its own basis gives the gradient."""
    random = torch.Generator().manual_seed(1)
    G = torch.randn(40, 6, generator=random) @ torch.randn(6, 20, generator=random)
    for side in ("left", "right"):
        P = kernels.svd_basis(G, 6, side)
        assert (kernels.back_project(kernels.project(G, P, side), P, side) - G).norm() < 1e-5 * G.norm()


@suite.oracle
def transposed_problems_give_transposed_weights() -> None:
    """Left projection of G and right projection of its transpose take the same steps, with one subspace."""
    random = torch.Generator().manual_seed(2)
    p, q = (torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((10, 24), (24, 10)))
    group = {"rank": 4, "update_proj_gap": None}
    optimizers = [GaLoreAdamW([{"params": [item], "proj_type": side, **group}], lr=0.01)
                  for item, side in ((p, "left"), (q, "right"))]
    for _ in range(10):
        G = torch.randn(10, 24, generator=random, dtype=torch.float64)
        p.grad, q.grad = G, G.mT
        for optimizer in optimizers:
            optimizer.step()
    assert (p - q.mT).abs().max() < 1e-9


@suite.oracle
def trajectory_equals_plain_gradient_descent() -> None:
    """The closed form of the gradient system against stepping through it."""
    system = System.random(5, 6, 3, 1)
    W = np.random.default_rng(0).standard_normal((5, 6))
    path = system.trajectory(W, points=50, until=1e-1)
    eta = 1.0 / np.linalg.eigvalsh(system.operator())[-1]
    seen = []
    for _ in range(int(path.times[-1]) + 1):
        G = system.gradient(W)
        spectrum = np.linalg.svd(G, compute_uv=False) ** 2
        seen.append(spectrum.sum() / spectrum[0])
        W = W + eta * G
    later = path.times > 20
    stepped = np.interp(path.times[later], np.arange(len(seen)), seen)
    assert later.sum() > 10
    assert np.abs(stepped - path.stable_rank[later]).max() < 5e-3


def setting_of(point: Point, seed: int) -> Setting:
    """What all arms of a cell share."""
    return Setting(point["size"], point["steps"], seed_for("data", seed), seed_for("init", seed))


def trained(setting: Setting, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Metrics:
    """Train and report."""
    history = pretrain(setting, model, optimizer)
    suite.uses_data("CODE", history.data_digest)
    return training_metrics(history, optimizer) | {"trainable": char_lm.parameter_count(model)}
