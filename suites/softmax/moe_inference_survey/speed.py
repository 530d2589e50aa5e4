"""The speed experiments: one layer dispatched in several ways, and in steps of several lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Point, Problem, SkipArm
from reference.methods.softmax import moe_dispatch
from reference.methods.softmax.moe_dispatch import Experts

Tensor = torch.Tensor

STEPS = (1, 4, 16, 64, 256)
TOP_K, DECODED_EXPERTS = 2, 16
_TOLERANCE = 1e-5


def experts_of(count: int, width: int, hidden: int, rng: np.random.Generator, device: str) -> Experts:
    """Matrices whose outputs have about the size of their inputs."""
    up = rng.standard_normal((count, width, hidden), dtype=np.float32) / math.sqrt(width)
    down = rng.standard_normal((count, hidden, width), dtype=np.float32) / math.sqrt(hidden)
    return Experts(torch.from_numpy(up).to(device), torch.from_numpy(down).to(device))


def dispatch(point: Point, rng: np.random.Generator, device: str, width: int = 256, hidden: int = 128) -> Problem:
    """One layer in several ways; an input is x, its routes and the smallest capacity that drops nothing."""
    tokens, count, skew = point["tokens"], point["experts"], point["skew"]
    experts = experts_of(count, width, hidden, rng, device)

    def inputs(random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, int]:
        x = torch.from_numpy(random.standard_normal((tokens, width), dtype=np.float32))
        chosen, gates = moe_dispatch.zipf_routes(tokens, count, TOP_K, skew, random)
        return x.to(device), chosen.to(device), gates.to(device), moe_dispatch.largest_load(chosen, count)

    # padded rows depend on the draw of the routes: their number for one draw stands for all
    buffer_rows = count * inputs(np.random.default_rng(0))[3]
    calls = tokens * TOP_K

    def arm(function: Callable[..., Tensor], rows: int) -> Arm:
        moved = count * experts.expert_bytes + 4.0 * width * (2 * tokens + 2 * rows)
        return Arm(lambda x, chosen, gates, capacity: function(x, experts, chosen, gates), moved,
                   flops=2.0 * rows * 2 * width * hidden)

    def in_buffers(x: Tensor, chosen: Tensor, gates: Tensor, capacity: int) -> Tensor:
        return moe_dispatch.padded(x, experts, chosen, gates, capacity)

    arms: dict[str, Arm | SkipArm] = {
        "masked": arm(moe_dispatch.masked, tokens * count),
        "looped": arm(moe_dispatch.looped, calls),
        "padded": Arm(in_buffers, arm(moe_dispatch.looped, buffer_rows).bytes_moved,
                      flops=2.0 * buffer_rows * 2 * width * hidden),
        "grouped": arm(moe_dispatch.grouped, calls),
    }
    if device == "cpu":
        arms["grouped_numba"] = arm(moe_dispatch.grouped_numba, calls)
        arms["grouped_mm"] = (arm(moe_dispatch.grouped_mm, calls) if hasattr(torch.nn.functional, "grouped_mm")
                              else SkipArm("this torch has no grouped_mm"))
    truth_experts = Experts(experts.up.cpu(), experts.down.cpu())
    return Problem(
        inputs=inputs,
        buffers=lambda *_: (),
        truth=lambda x, chosen, gates, _: moe_dispatch.exact(x, truth_experts, chosen, gates),
        arms=arms,
        input_bytes=4 * tokens * width,
        tolerance=_TOLERANCE,
    )


def decode(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """As many tokens as the longest step has, with even routes, in steps of each length; d is half of ``hidden``."""
    hidden, count, tokens = point["hidden"], DECODED_EXPERTS, max(STEPS)
    width = hidden // 2
    experts = experts_of(count, width, hidden, rng, "cpu")

    def inputs(random: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.from_numpy(random.standard_normal((tokens, width), dtype=np.float32))
        return (x, *moe_dispatch.zipf_routes(tokens, count, TOP_K, 0.0, random))

    def arm(step: int) -> Arm:
        touched = tokens / step * moe_dispatch.expected_distinct(step, TOP_K, count)

        def run(x: Tensor, chosen: Tensor, gates: Tensor) -> Any:
            return moe_dispatch.in_steps(x, experts, chosen, gates, step)

        return Arm(run, touched * experts.expert_bytes + 8.0 * tokens * width,
                   flops=2.0 * tokens * TOP_K * 2 * width * hidden)

    return Problem(
        inputs=inputs,
        buffers=lambda *_: (),
        truth=lambda x, chosen, gates: moe_dispatch.exact(x, experts, chosen, gates),
        arms={f"b{step}": arm(step) for step in STEPS},
        input_bytes=4 * tokens * width,
        tolerance=_TOLERANCE,
    )
