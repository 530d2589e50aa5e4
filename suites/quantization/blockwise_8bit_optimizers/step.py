"""The speed experiment: one AdamW step on one tensor, 8-bit and 32-bit arms holding the same moments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem, SkipArm
from reference.kernels.backend import default
from reference.kernels.quantize import SOURCE, adam8bit_step, cost, dequantize_blockwise, dynamic_map, truth
from suites.quantization.blockwise_8bit_optimizers.backends import (
    BLOCK,
    unless_missing,
    unless_not_installed,
    workspace_bytes,
)

Tensor = torch.Tensor
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

STEP = 10
HYPER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
# Half the widest gap of the dynamic map, and a little rounding: what coding a moment may cost, in units of its scale.
CODING_ERROR = 0.00705


def step_problem(n: int, device: str = "cpu") -> Problem:
    """One step on ``n`` parameters. Inputs are p, g and both moments coded; 32-bit arms start from these, decoded.

    ``fused_8bit`` is the fastest backend of the device; the arms that name one skip where it is missing.
    """
    return Problem(
        inputs=lambda rng: tuple(tensor.to(device) for tensor in draw(n, rng)),
        buffers=lambda *inputs: (),
        truth=true_step,
        arms={
            "fused_8bit": eight_bit_arm(n, device, default(device, SOURCE)),
            "fused_8bit_cuda": eight_bit_arm(n, device, "cuda"),
            "fused_8bit_triton": eight_bit_arm(n, device, "triton"),
            "eager_8bit": eight_bit_arm(n, device, "eager"),
            "bitsandbytes_8bit": unless_not_installed(lambda: bitsandbytes_arm(n, device)),
            "torch_fused": torch_arm(n, fused=True),
            "torch_foreach": torch_arm(n, foreach=True),
        },
        input_bytes=n * 10,
        tolerance=1e-5,
        error=step_error,
    )


def draw(n: int, rng: np.random.Generator) -> Inputs:
    """Parameters of the size of a step, so that an error in the step shows; second moments far enough from zero."""
    blocks = -(-n // BLOCK)
    return (
        torch.from_numpy(rng.standard_normal(n, dtype=np.float32) * np.float32(HYPER["lr"])),
        torch.from_numpy(rng.standard_normal(n, dtype=np.float32)),
        torch.from_numpy(rng.integers(0, 256, n, dtype=np.uint8)),
        torch.from_numpy(rng.integers(64, 256, n, dtype=np.uint8)),
        torch.from_numpy(rng.uniform(0.5, 1.5, blocks).astype(np.float32)),
        torch.from_numpy(rng.uniform(0.5, 1.5, blocks).astype(np.float32)),
    )


def true_step(p: Tensor, g: Tensor, m_codes: Tensor, v_codes: Tensor, m_scale: Tensor, v_scale: Tensor) -> Any:
    """(p, m, v) after the step, float64."""
    m = truth.dequantize(m_codes.numpy(), m_scale.numpy(), dynamic_map(True).numpy(), BLOCK)
    v = truth.dequantize(v_codes.numpy(), v_scale.numpy(), dynamic_map(False).numpy(), BLOCK)
    return truth.adam(p.numpy(), g.numpy(), m, v, step=STEP, **HYPER)


def step_error(outputs: Any, expected: Any) -> float:
    """The relative error of p, or what the moments are off beyond the coding error, whichever is larger."""
    p, *moments = (np.asarray(item, dtype=np.float64) for item in outputs)
    worst = np.abs(p - expected[0]).max() / np.abs(expected[0]).max()
    for got, want in zip(moments, expected[1:], strict=True):
        starts = np.arange(0, want.size, BLOCK)
        scale = np.repeat(np.maximum.reduceat(np.abs(want), starts), BLOCK)[: want.size]
        worst = max(worst, (np.abs(got - want) / scale).max() - CODING_ERROR)
    return float(worst)


def eight_bit_arm(n: int, device: str, backend: str) -> Arm | SkipArm:
    """This project's step by one of its backends."""

    def run(p0: Tensor, g: Tensor, *rest: Tensor) -> None:
        adam8bit_step(rest[4], g, *rest[5:], step=STEP, block=BLOCK, backend=backend, **HYPER)

    return unless_missing(backend, device, lambda: coded_arm(n, device, run, workspace_bytes("adam", n, backend)))


def bitsandbytes_arm(n: int, device: str) -> Arm:
    """The library's step; on CPU tensors it is made of separate torch operations."""

    def run(p0: Tensor, g: Tensor, *rest: Tensor) -> None:
        peer_step(rest[4], g, *rest[5:], step=STEP)

    return coded_arm(n, device, run)


def peer_step(
    p: Tensor, g: Tensor, m_codes: Tensor, v_codes: Tensor, m_scale: Tensor, v_scale: Tensor, step: int
) -> None:
    """One AdamW step by bitsandbytes' operator, in place."""
    torch.ops.bitsandbytes.optimizer_update_8bit_blockwise(
        "adam", g, p, m_codes, v_codes, HYPER["beta1"], HYPER["beta2"], 0.0, 0.0, HYPER["eps"], step, HYPER["lr"],
        *maps(str(p.device)), m_scale, v_scale, HYPER["weight_decay"], 1.0, False,
    )


def maps(device: str) -> tuple[Tensor, Tensor]:
    """The code books of both moments."""
    return dynamic_map(True, device), dynamic_map(False, device)


def coded_arm(n: int, device: str, run: Callable[..., None], workspace: int | None = None) -> Arm:
    """An arm whose buffers are p and the coded moments."""

    def outputs(p: Tensor, m_codes: Tensor, v_codes: Tensor, m_scale: Tensor, v_scale: Tensor) -> tuple[Tensor, ...]:
        m_map, v_map = maps(device)
        m = dequantize_blockwise(m_codes, m_scale, m_map, block=BLOCK)
        v = dequantize_blockwise(v_codes, v_scale, v_map, block=BLOCK)
        return p, m, v

    return Arm(
        run=run,
        bytes_moved=cost.adam8bit_bytes(n, BLOCK),
        flops=cost.adam8bit_flops(n),
        buffers=lambda p, g, *state: tuple(item.clone() for item in (p, *state)),
        outputs=outputs,
        in_place=True,
        workspace_bytes=workspace,
    )


def torch_arm(n: int, **implementation: bool) -> Arm:
    """torch.optim.AdamW in one of its implementations."""

    def buffers(p: Tensor, g: Tensor, m_codes: Tensor, v_codes: Tensor, m_scale: Tensor, v_scale: Tensor) -> tuple[Any]:
        parameter = torch.nn.Parameter(p.clone())
        optimizer = torch.optim.AdamW(
            [parameter], lr=HYPER["lr"], betas=(HYPER["beta1"], HYPER["beta2"]), eps=HYPER["eps"],
            weight_decay=HYPER["weight_decay"], **implementation,
        )
        m_map, v_map = maps(str(p.device))
        optimizer.state[parameter] = {
            "step": torch.tensor(float(STEP - 1), device=p.device if "fused" in implementation else "cpu"),
            "exp_avg": dequantize_blockwise(m_codes, m_scale, m_map, block=BLOCK),
            "exp_avg_sq": dequantize_blockwise(v_codes, v_scale, v_map, block=BLOCK),
        }
        return (optimizer,)

    def run(p0: Tensor, g: Tensor, *rest: Any) -> None:
        optimizer = rest[4]
        optimizer.param_groups[0]["params"][0].grad = g
        optimizer.step()

    def outputs(optimizer: torch.optim.Optimizer) -> tuple[Tensor, ...]:
        parameter = optimizer.param_groups[0]["params"][0]
        state = optimizer.state[parameter]
        return parameter.detach(), state["exp_avg"], state["exp_avg_sq"]

    return Arm(
        run=run, bytes_moved=cost.adam_fp32_bytes(n), flops=cost.adam_flops(n), buffers=buffers, outputs=outputs,
        in_place=True,
    )
