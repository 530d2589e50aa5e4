"""8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861): parity, components, memory, outliers, speed."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from harness.judge.stats.intervals import wilson
from reference.kernels.quantize import MAPS, dynamic_map, quantize_blockwise, truth
from reference.methods.quantization.blockwise8bit import BlockwiseAdam8bit, BlockwiseMomentum8bit
from reference.methods.state import state_bytes
from reference.testbeds import char_lm, digits, nets, text, training
from suites.quantization.blockwise_8bit_optimizers.arms import (
    BETAS,
    EPS,
    MIN_SIZE,
    OPTIONS,
    WEIGHT_DECAY,
    Metrics,
    adam_for,
    eligible,
    lost_share,
    training_metrics,
)
from suites.quantization.blockwise_8bit_optimizers.blockwise import CODE_TOLERANCE, blockwise_problem, code_error
from suites.quantization.blockwise_8bit_optimizers.coding import adam_update, coded, relative_l1
from suites.quantization.blockwise_8bit_optimizers.step import peer_step, step_error, step_problem

if TYPE_CHECKING:
    import pandas as pd

Tensor = torch.Tensor

suite = Suite(__file__)


@suite.trial("parity")
def parity(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """A character model from scratch; every arm uses the learning rate that won for fp32."""
    lr = tuned.get("lr") or suite.tuned.values("parity", "fp32")["lr"]
    return train_char_lm(arm, point, seed, device, lr, stable_embedding=False)[0]


@suite.trial("components")
def components(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """As parity, with one component taken away or two, at a multiple of fp32's learning rate."""
    lr = tuned.get("lr") or suite.tuned.values("components", "fp32")["lr"]
    return train_char_lm(arm, point, seed, device, lr * point["lr_multiple"], point["stable_embedding"])[0]


@suite.trial("momentum")
def momentum(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """SGD with momentum on the digits; the net is widened so that every weight tensor is eligible."""
    lr = tuned.get("lr") or suite.tuned.values("momentum", "fp32")["lr"]
    data = digits.digits(seed_for("data", seed))
    net = nets.conv_net(seed_for("init", seed), min_weight_entries=MIN_SIZE, batch_norm=True).to(device)
    if arm == "fp32":
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    else:
        optimizer = BlockwiseMomentum8bit(net.parameters(), lr=lr, momentum=0.9, **OPTIONS[arm])
    batches = training.array_batches(
        data.train_x, data.train_y, point["batch"], seed_for("batches", seed), (data.val_x, data.val_y)
    )
    history = training.train(net, batches, optimizer, training.warmup_cosine(point["steps"]), point["steps"])
    suite.uses_data("digits", history.data_digest)
    return {
        **training_metrics(history, net, optimizer),
        "val_accuracy": nets.accuracy(net, data.val_x, data.val_y),
        "test_accuracy": nets.accuracy(net, data.test_x, data.test_y),
    }


def train_char_lm(
    arm: str, point: Point, seed: int, device: str, lr: float, stable_embedding: bool,
    after_step: Callable[[int, torch.nn.Module, torch.optim.Optimizer], None] | None = None,
) -> tuple[Metrics, torch.nn.Module]:
    """Train one character model of size S; arms of one seed share initial values and batches."""
    model = char_lm.make("S", seed_for("init", seed), stable_embedding=stable_embedding).to(device)
    optimizer = adam_for(arm, model, lr)
    batches = training.text_batches(
        corpus(point["corpus_bytes"]), point["batch"], model.config.context, seed_for("data", seed),
        validation_windows=128,
    )
    hook = None if after_step is None else lambda step: after_step(step, model, optimizer)
    schedule = training.warmup_cosine(point["steps"])
    history = training.train(model, batches, optimizer, schedule, point["steps"], after_step=hook)
    suite.uses_data("DOC", history.data_digest)
    return {**training_metrics(history, model, optimizer), "lost_v": lost_share(optimizer)}, model


def corpus(size_bytes: int) -> text.Corpus:
    """The DOC corpus, parsed once."""
    return suite.prepare("doc", {"bytes": size_bytes}, lambda config: text.corpus("DOC", config["bytes"]))


# --- on recorded states ---


def recorded_states(point: Point, seed: int) -> list[tuple[Tensor, Tensor, int]]:
    """(m, v, step) of every eligible tensor at a quarter, half and the end of a 32-bit run."""
    return suite.prepare("states", {**point, "seed": seed}, record_states)


def record_states(config: Mapping[str, Any]) -> list[tuple[Tensor, Tensor, int]]:
    """Train in 32 bits and copy Adam's moments on the way."""
    states: list[tuple[Tensor, Tensor, int]] = []
    moments = {config["steps"] // 4, config["steps"] // 2, config["steps"]}

    def copy_moments(step: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        if step + 1 in moments:
            states.extend(
                (optimizer.state[p]["exp_avg"].clone(), optimizer.state[p]["exp_avg_sq"].clone(), step + 1)
                for p in eligible(optimizer)
            )

    train_char_lm("fp32", config, config["seed"], "cpu", config["lr"], False, copy_moments)
    return states


@suite.trial("update_error")
def update_error(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """How far Adam's update moves when its moments are coded, entry by entry, in units of the learning rate."""
    options, errors, lost = OPTIONS[arm], [], 0
    for m, v, step in recorded_states(point, seed):
        coded_m = coded(m, MAPS[options["map"]](True), options["block"])
        coded_v = coded(v, MAPS[options["map"]](False), options["block"])
        lost += int(((coded_v == 0) & (coded_m != 0)).sum())
        errors.append((adam_update(coded_m, coded_v, step) - adam_update(m, v, step)).abs().reshape(-1))
    error = torch.cat(errors)
    return {"mean_error": error.mean().item(), "median_error": error.median().item(), "lost_v": lost / error.numel()}


@suite.trial("outliers")
def outliers(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """The error of the ordinary entries of recorded first moments once a few outliers share their scales."""
    states = recorded_states(point, seed)
    last = max(step for _, _, step in states)
    m = torch.cat([(m / m.std()).reshape(-1) for m, _, step in states if step == last])
    random = np.random.default_rng(seed_for("outliers", seed))
    places = torch.from_numpy(random.choice(m.numel(), max(1, round(m.numel() / 1e5)), replace=False))
    signs = torch.from_numpy(random.choice([-1.0, 1.0], places.numel())).float()
    ordinary = torch.ones(m.numel(), dtype=torch.bool)
    ordinary[places] = False
    spoiled = m.clone()
    spoiled[places] = 1e3 * signs
    return {
        "relative_error": relative_l1(spoiled, ordinary, OPTIONS[arm]["block"]),
        "clean_error": relative_l1(m, ordinary, OPTIONS[arm]["block"]),
    }


@suite.trial("memory")
def memory(arm: str, point: Point, seed: int, device: str) -> Metrics:
    """Bytes reachable from the optimizer after one step, against torch's AdamW on the same model."""
    eligible_bytes, whole_bytes, share, parameters = state_sizes(arm, point)
    reference_eligible, reference_whole, _, _ = state_sizes("fp32", point)
    return {
        "parameters": parameters,
        "eligible": share,
        "eligible_saving": reference_eligible / eligible_bytes,
        "whole_saving": reference_whole / whole_bytes,
    }


def state_sizes(arm: str, point: Point) -> tuple[int, int, float, int]:
    """(state bytes of the eligible tensors, of everything, eligible share of the parameters, parameters)."""
    model = char_lm.make("S", 0, layers=point["layers"], width=point["width"], stable_embedding=True)
    optimizer = adam_for(arm, model, lr=1e-3)
    random = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=random)
    optimizer.step()
    embedding = model.token_embedding.weight
    chosen = [p for p in eligible(optimizer) if p is not embedding]
    parameters = char_lm.parameter_count(model)
    share = sum(p.numel() for p in chosen) / parameters
    return state_bytes(optimizer, chosen), state_bytes(optimizer), share, parameters


@suite.speed("step")
def step(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One AdamW step on n parameters."""
    return step_problem(point["n"], device)


@suite.speed("gpu_step")
def gpu_step(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The same on a CUDA device."""
    return step_problem(point["n"], device)


@suite.speed("blockwise")
def blockwise(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Coding n entries, or decoding them."""
    return blockwise_problem(point["op"], point["n"], device)


@suite.speed("gpu_blockwise")
def gpu_blockwise(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """The same on a CUDA device."""
    return blockwise_problem(point["op"], point["n"], device)


@suite.estimate("failure_gap")
def failure_gap(
    records: pd.DataFrame, level: float, of: str, minus: str, reference: str, beyond: float
) -> Estimate:
    """Share of failed runs of arm ``of`` minus that of ``minus``.

    A run fails when its loss is not finite or above ``beyond`` times that of ``reference`` in the same cell. Newcombe's
    interval from two Wilson intervals; the pairing of the arms is not used, which makes it wider.
    """
    losses = records.pivot(index="cell", columns="arm", values="val_loss")
    failed = {arm: ~np.isfinite(losses[arm]) | (losses[arm] > beyond * losses[reference]) for arm in (of, minus)}
    n = len(losses)
    p, q = (float(failed[arm].mean()) for arm in (of, minus))
    (low_p, high_p), (low_q, high_q) = (wilson(int(failed[arm].sum()), n, level) for arm in (of, minus))
    return Estimate(
        point=p - q, low=p - q - math.hypot(p - low_p, high_q - q), high=p - q + math.hypot(high_p - p, q - low_q),
        n=records["seed"].nunique(), level=level, unit="seed", method=f"Newcombe over {n} pairs of runs",
    )


@suite.oracle
def maps_have_the_published_values() -> None:
    """The spec's figures; with bitsandbytes installed, all 256 values of both maps bit for bit."""
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    for value, fact in ((signed[signed > 0][0], 5.5e-7), (signed[-2], 0.99296875), (signed[0], -0.99296875),
                        (unsigned[unsigned > 0][0], 3.25e-7), (signed[-1], 1.0), (unsigned[0], 0.0)):
        assert math.isclose(value.item(), fact, rel_tol=1e-6), (value.item(), fact)
    if importlib.util.find_spec("bitsandbytes") is not None:
        from bitsandbytes.functional import create_dynamic_map

        assert torch.equal(signed, create_dynamic_map(signed=True))
        assert torch.equal(unsigned, create_dynamic_map(signed=False))


@suite.oracle
def codes_are_the_nearest() -> None:
    """Those of every backend here, and the measure of the speed arms, against comparing with all codes in float64."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal(5001, dtype=np.float32))
    code = dynamic_map(True)
    expected, scales = truth.quantize(x.numpy(), code.numpy(), 256)
    assert code_error((expected, scales), x.numpy()) == 0.0
    for backend in ("numba", "eager"):
        codes, absmax = quantize_blockwise(x, code=code, backend=backend)
        assert np.array_equal(absmax.numpy(), scales), backend
        assert code_error((codes, absmax), x.numpy()) <= CODE_TOLERANCE, backend
        assert np.mean(codes.numpy() != expected) < 1e-3, backend


@suite.oracle
def every_backend_follows_the_equations() -> None:
    """One step against float64, the ragged last block included, and p from the moments before they are coded again."""
    n = 10_001
    problem = step_problem(n)
    inputs = problem.inputs(np.random.default_rng(0))
    for name in ("fused_8bit", "eager_8bit", "torch_fused", "torch_foreach"):
        arm = problem.arms[name]
        buffers = arm.buffers(*inputs)
        arm.run(*inputs, *buffers)
        error = step_error(arm.outputs(*buffers), problem.truth(*inputs))
        assert error <= problem.tolerance, (name, error)


@suite.oracle
def identity_map_is_adamw() -> None:
    """With float32 states in place of codes the optimizer is torch.optim.AdamW to 1e-6, over thirty steps."""
    random = torch.Generator().manual_seed(0)
    gradients = torch.randn((30, 64, 64), generator=random)
    mine, theirs = (torch.nn.Parameter(torch.ones(64, 64)) for _ in range(2))
    settings = {"lr": 1e-2, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    optimizers = (BlockwiseAdam8bit([mine], map="identity", **settings), torch.optim.AdamW([theirs], **settings))
    for g in gradients:
        mine.grad, theirs.grad = g, g
        for optimizer in optimizers:
            optimizer.step()
    assert (mine - theirs).abs().max() <= 1e-6


@suite.oracle
def step_agrees_with_bitsandbytes() -> None:
    """Both codes within one of the library's on 99.9 % of the entries; says nothing where it is not installed.

    Entries below 1e-4 of their scale are left out: for float32 on the CPU the library (0.50) finds codes by a table
    that is too coarse there, and turns an exact 0 into 2e-5.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return
    import bitsandbytes  # noqa: F401  # registers the operator

    arm = step_problem(10_001).arms["fused_8bit"]
    inputs = step_problem(10_001).inputs(np.random.default_rng(1))
    mine, theirs = arm.buffers(*inputs), arm.buffers(*inputs)
    arm.run(*inputs, *mine)
    peer_step(theirs[0], inputs[1], *theirs[1:], step=10)
    assert torch.allclose(mine[0], theirs[0], rtol=0, atol=1e-6)
    for ours, other, code in ((mine[1], theirs[1], dynamic_map(True)), (mine[2], theirs[2], dynamic_map(False))):
        near = (ours.int() - other.int()).abs() <= 1
        assert near[code[ours.long()].abs() >= 1e-4].float().mean() >= 0.999
