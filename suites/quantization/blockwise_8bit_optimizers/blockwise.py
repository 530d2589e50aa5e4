"""The speed experiments on coding alone: n entries to 8 bits, or back, on any device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem, SkipArm
from reference.kernels.quantize import cost, dequantize_blockwise, dynamic_map, quantize_blockwise
from suites.quantization.blockwise_8bit_optimizers.backends import (
    BLOCK,
    unless_missing,
    unless_not_installed,
    workspace_bytes,
)

Array = np.ndarray
Tensor = torch.Tensor

# In units of a block's scale. An entry whose quotient, rounded to float32, falls on the other side of a midpoint gets
# the neighbouring code, which then is further off by that rounding alone.
CODE_TOLERANCE = 2.0**-23
# bitsandbytes (0.50) finds codes on a CPU by a table that is too coarse near zero: 3.1e-5 was seen, and the codes there
# are as near as 6e-7 to each other. On CUDA it multiplies by the scale's reciprocal, which rounds more often.
PEER_CODE_TOLERANCE = {"cpu": 4e-5, "cuda": 1e-6}
# The product of code and scale, rounded once; in units of 2^-24 of each value.
VALUE_TOLERANCE = 1.001
UNIT = 2.0**-24
CHUNK = 2**10 * BLOCK


def blockwise_problem(op: str, n: int, device: str = "cpu") -> Problem:
    """``op`` (quantize, dequantize) on ``n`` entries in blocks of 256. Buffers are the results, which some arms ignore.

    ``numba``, ``cuda`` and ``triton`` write into them, but on a CPU bitsandbytes can only return new memory, whose
    pages cost time: there ``numba`` returns new memory too, and ``numba_out`` writes.
    """
    return _quantize_problem(n, device) if op == "quantize" else _dequantize_problem(n, device)


def code_error(outputs: tuple[Any, Any], x: Array) -> float:
    """How much further than a neighbour the code of an entry of ``x`` is, in units of the block's float64 scale.

    0 where every code is a nearest one. The relative error of the scales, where that is larger.
    """
    codes, scales = (np.asarray(item) for item in outputs)
    if codes.shape != x.shape or scales.shape != (_blocks(x.size),) or not np.isfinite(scales).all():
        return math.inf
    code, worst = _code(), 0.0
    below, above = np.append(-np.inf, code[:-1]), np.append(code[1:], np.inf)
    for part, blocks in _chunks(x.size):
        true = np.maximum.reduceat(np.abs(x[part]), np.arange(0, x[part].size, BLOCK)).astype(np.float64)
        quotients = x[part] / np.repeat(true, BLOCK)[: x[part].size]
        own, lower, upper = (np.abs(item[codes[part]] - quotients) for item in (code, below, above))
        further = float((own - np.minimum(lower, upper)).max())
        worst = max(worst, further, float(np.abs(scales[blocks] / true - 1).max()))
    return worst


def value_error(values: Any, expected: tuple[Array, Array]) -> float:
    """The largest error of a decoded entry in units of 2^-24 of it; infinite where a zero is none.

    ``expected`` are the codes and scales, decoded here in float64.
    """
    values, (codes, scales) = np.asarray(values), expected
    if values.shape != codes.shape or not np.isfinite(values).all():
        return math.inf
    code, worst = _code(), 0.0
    for part, blocks in _chunks(codes.size):
        want = code[codes[part]] * np.repeat(scales[blocks].astype(np.float64), BLOCK)[: codes[part].size]
        off = np.abs(values[part] - want)
        if not (off[want == 0] == 0).all():
            return math.inf
        worst = max(worst, float(np.max(off[want != 0] / np.abs(want[want != 0]), initial=0.0)))
    return worst / UNIT


def _quantize_problem(n: int, device: str) -> Problem:
    code = dynamic_map(True, device)

    def into(backend: str) -> Any:
        return lambda x, *out: quantize_blockwise(x, code=code, block=BLOCK, out=out, backend=backend)

    def fresh(backend: str) -> Any:
        return lambda x, *_: quantize_blockwise(x, code=code, block=BLOCK, backend=backend)

    def peer(x: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.bitsandbytes.quantize_blockwise(x, code, BLOCK)

    return Problem(
        inputs=lambda rng: (torch.from_numpy(rng.standard_normal(n, dtype=np.float32)).to(device),),
        buffers=lambda x: (torch.empty(n, dtype=torch.uint8, device=device), torch.empty(_blocks(n), device=device)),
        truth=lambda x: x.numpy(),
        error=code_error,
        arms=_arms("quantize", n, device, into, fresh, peer, PEER_CODE_TOLERANCE[torch.device(device).type]),
        input_bytes=4 * n,
        tolerance=CODE_TOLERANCE,
    )


def _dequantize_problem(n: int, device: str) -> Problem:
    code = dynamic_map(True, device)

    def inputs(rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        codes = torch.from_numpy(rng.integers(0, 256, n, dtype=np.uint8))
        scales = torch.from_numpy(rng.uniform(0.5, 1.5, _blocks(n)).astype(np.float32))
        return codes.to(device), scales.to(device)

    def into(backend: str) -> Any:
        return lambda codes, scales, out: dequantize_blockwise(
            codes, scales, code, block=BLOCK, out=out, backend=backend)

    def fresh(backend: str) -> Any:
        return lambda codes, scales, _: dequantize_blockwise(codes, scales, code, block=BLOCK, backend=backend)

    def peer(codes: Tensor, scales: Tensor, _: Tensor) -> Tensor:
        return torch.ops.bitsandbytes.dequantize_blockwise(codes, scales, code, BLOCK, torch.float32)

    return Problem(
        inputs=inputs,
        buffers=lambda *_: (torch.empty(n, device=device),),
        truth=lambda codes, scales: (codes.numpy(), scales.numpy()),
        error=value_error,
        arms=_arms("dequantize", n, device, into, fresh, peer, None),
        input_bytes=n + 4 * _blocks(n),
        tolerance=VALUE_TOLERANCE,
    )


def _arms(
    op: str, n: int, device: str, into: Any, fresh: Any, peer: Any, peer_tolerance: float | None
) -> dict[str, Arm | SkipArm]:
    def arm(run: Any, **details: Any) -> Arm:
        return Arm(run, cost.quantize_bytes(n, BLOCK), float(n), **details)

    def ours(backend: str, run: Any) -> Arm | SkipArm:
        return unless_missing(
            backend, device, lambda: arm(run(backend), workspace_bytes=workspace_bytes(op, n, backend)))

    return {
        "numba": ours("numba", fresh),
        "numba_out": ours("numba", into),
        "eager": ours("eager", fresh),
        "cuda": ours("cuda", into),
        "triton": ours("triton", into),
        "bitsandbytes": unless_not_installed(lambda: arm(peer, tolerance=peer_tolerance)),
        "copy": Arm(
            lambda *given: given[-1].copy_(given[-2]), 8.0 * n, 0.0, checked=False,
            buffers=lambda *_: (torch.zeros(n, device=device), torch.empty(n, device=device)),
        ),
    }


def _chunks(n: int) -> Iterator[tuple[slice, slice]]:
    """Parts of the entries and of their blocks, so that float64 copies stay small."""
    for start in range(0, n, CHUNK):
        yield slice(start, start + CHUNK), slice(start // BLOCK, (start + CHUNK) // BLOCK)


def _code() -> Array:
    return dynamic_map(True).numpy().astype(np.float64)


def _blocks(n: int) -> int:
    return -(-n // BLOCK)
