"""SVD-free low-rank Adam by DCT column selection (arXiv 2505.17967): captured energy, training, speed and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy import fft

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.kernels import project as kernels
from reference.methods.projection import llama
from reference.methods.projection.dct import DCTAdamW, LDAdamW
from reference.methods.projection.energy import captured, smooth_low_rank
from reference.methods.projection.galore import GaLoreAdamW
from reference.methods.projection.pretraining import (
    Setting,
    pretrain,
    projected_groups,
    record_gradients,
    training_metrics,
)
from reference.methods.state import state_bytes
from reference.testbeds import char_lm
from reference.testbeds.seeding import generator
from suites.projection.svd_free_dct_projection.speed import rank_of, refresh_problem, select_problem, transform_problem

Metrics = dict[str, Any]

suite = Suite(__file__)

CHECKPOINTS = 10
# a quarter of the width
RANKS = {"LM-M": 32, "60M": 128, "1B": 512, "7B": 1024}


@suite.trial("energy")
def energy(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Captured share of every recorded gradient; the recording is prepared once per seed."""
    config = {name: point[name] for name in ("size", "steps", "lr")} | {"seed": seed}
    recorded = suite.prepare("gradients", config, gradients_of)
    shares = [
        captured(G, arm, max(1, round(point["fraction"] * min(G.shape))), point["norm"], generator(seed, step, name))
        for step, layers in recorded.items() for name, G in layers.items()
    ]
    return {"captured": float(np.mean(shares)), "lowest": float(np.min(shares))}


@suite.trial("training")
def training(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """One arm from scratch."""
    setting = Setting(point["size"], point["steps"], seed_for("data", seed), seed_for("init", seed))
    model, rank = setting.model(), point["rank"]
    if arm.startswith("galore"):
        projector = arm.removeprefix("galore_")
        groups = projected_groups(model, rank=rank, update_proj_gap=point["gap"], projector=projector)
        optimizer: torch.optim.Optimizer = GaLoreAdamW(groups, lr=tuned["lr"])
    else:
        optimizer_class = DCTAdamW if arm == "dct_adamw" else LDAdamW
        optimizer = optimizer_class(projected_groups(model, rank=rank), lr=tuned["lr"])
    history = pretrain(setting, model, optimizer)
    suite.uses_data("CODE", history.data_digest)
    return training_metrics(history, optimizer)


@suite.trial("memory")
def memory(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The projected matrices alone; error feedback, which both can have, is off."""
    model, rank = point["model"], RANKS[point["model"]]
    if model == "LM-M":
        shapes = [(p.shape[0], p.shape[1]) for _, p in char_lm.parameter_roles(
            char_lm.make("M", 0).named_parameters()).linears]
        parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in shapes]
    else:
        shapes = list(llama.LLAMA[model].matrices())
        parameters = llama.meta_parameters(iter(shapes), torch.bfloat16)
    group = {"params": parameters, "rank": rank}
    optimizer: GaLoreAdamW = DCTAdamW([group], error_feedback=None) if arm == "dct" else GaLoreAdamW([group])
    if model == "LM-M":
        for index, p in enumerate(parameters):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(index))
        optimizer.step()
    else:
        optimizer.allocate()
    itemsize = parameters[0].element_size()
    stored = sum(llama.galore_bytes(shape, rank, itemsize) for shape in shapes)
    formula = llama.dct_bytes(shapes, rank, itemsize) if arm == "dct" else stored
    counted = state_bytes(optimizer)
    return {"state_bytes": counted, "formula_gap": abs(counted - formula), "of_galore": counted / stored}


@suite.speed("refresh")
def refresh(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """SVD, power iteration and DCT selection at a share of the columns."""
    rank = round(point["fraction"] * point["n"])
    methods = ("svd", "qr_power", "dct_matmul", "dct_fft")
    return refresh_problem(point["n"], {name: (name, rank) for name in methods}, device)


@suite.speed("gpu_refresh")
def gpu_refresh(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """SVD and DCT selection on a CUDA device."""
    rank = rank_of(point)
    return refresh_problem(point["n"], {name: (name, rank) for name in ("dct_matmul", "dct_fft", "svd")}, device)


@suite.speed("refresh_rank")
def refresh_rank(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The methods without an SVD, at ranks 16-fold apart."""
    n, ranks = point["n"], {"32nd": point["n"] // 32, "8th": point["n"] // 8, "half": point["n"] // 2}
    methods = ("dct_matmul", "dct_fft", "qr_power")
    arms = {f"{name}_{share}": (name, rank) for name in methods for share, rank in ranks.items()}
    return refresh_problem(n, arms, device)


@suite.speed("transform")
def transform(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The transform alone, two ways."""
    return transform_problem(point["n"])


@suite.speed("gpu_select")
def gpu_select(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Norms, choice and copy, once the gradient is transformed."""
    return select_problem(point["n"], rank_of(point), device)


@suite.oracle
def matrix_is_orthonormal_and_scipys() -> None:
    """Q Q^T = I, Q is the DCT-II of the identity, A Q the DCT-III of the rows."""
    for n in (7, 64, 128):
        Q = kernels.dct_matrix(n)
        assert (Q @ Q.mT - torch.eye(n)).abs().max() < 1e-6
        assert np.abs(Q.numpy() - fft.dct(np.eye(n), type=2, norm="ortho", axis=0)).max() < 1e-6
        A = np.random.default_rng(n).standard_normal((9, n)).astype(np.float32)
        S = kernels.dct_project(torch.from_numpy(A), "matmul").numpy()
        assert np.abs(S - fft.dct(A.astype(np.float64), type=3, norm="ortho", axis=1)).max() < 1e-5


@suite.oracle
def makhoul_equals_the_product_with_the_transpose() -> None:
    """FFT path against A Q^T, odd sizes included."""
    for n in (1, 2, 3, 17, 100, 255):
        A = torch.randn(5, n, generator=torch.Generator().manual_seed(n))
        assert (kernels.dct_project(A, "fft") - A @ kernels.dct_matrix(n).mT).abs().max() < 1e-5


@suite.oracle
def selection_by_l2_contracts() -> None:
    """|G - G P P^T|^2 <= (1 - r/n) |G|^2 for the r columns of largest l2 norm."""
    for by in ("matmul", "fft"):
        for seed in range(20):
            G = torch.randn(30, 24, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            a, columns = kernels.dct_select(G, 6, "right", "l2", by)
            P = kernels.dct_basis(24, by, torch.float64)[:, columns.long()]
            residual = G - kernels.back_project(a, P, "right")
            assert residual.square().sum() <= (1 - 6 / 24) * G.square().sum() * (1 + 1e-12)


@suite.oracle
def error_feedback_loses_nothing() -> None:
    """Sum of what was sent plus the kept residual equals the sum of the gradients."""
    p = torch.nn.Parameter(torch.zeros(20, 12, dtype=torch.float64))
    optimizer = DCTAdamW([{"params": [p], "rank": 3}], lr=0.01)
    sent, total, kept = torch.zeros_like(p), torch.zeros_like(p), torch.zeros_like(p)
    for seed in range(12):
        G = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        p.grad = G.clone()
        optimizer.step()
        subspace = optimizer.state[p]["subspace"]
        sent = sent + subspace.back(subspace.project(G + kept))
        total, kept = total + G, optimizer.state[p]["error"].load().clone()
    assert (sent + kept - total).abs().max() < 1e-10


@suite.oracle
def dct_wins_on_smooth_columns_and_ties_on_shuffled_ones() -> None:
    """Low rank plus noise: smooth right factors suit the DCT; shuffled, it is no better than a random basis."""
    gaps = []
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        smooth = smooth_low_rank(128, 64, 8, 0.3, random)
        shuffled = smooth[:, torch.randperm(64, generator=random)]
        gaps.append([captured(G, "dct", 16, "l2", random) - captured(G, "random_orthogonal", 16, "l2", random)
                     for G in (smooth, shuffled)])
    on_smooth, on_shuffled = np.mean(gaps, axis=0)
    assert on_smooth > 0.2, on_smooth
    assert abs(on_shuffled) < 0.05, on_shuffled


def gradients_of(config: Mapping[str, Any]) -> dict[int, dict[str, torch.Tensor]]:
    """Gradients at ten evenly spaced steps, the last one included."""
    steps = config["steps"]
    setting = Setting(config["size"], steps, seed_for("data", config["seed"]), seed_for("init", config["seed"]))
    at = [round((index + 1) * steps / CHECKPOINTS) - 1 for index in range(CHECKPOINTS)]
    return record_gradients(setting, config["lr"], at)
