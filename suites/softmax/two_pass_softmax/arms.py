"""The competitors: whole softmaxes on a batch of rows, and single passes over one vector beside memory streams."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from scipy import special

from harness.declare.suite import Arm, Problem
from reference.kernels.softmax import ALGORITHMS, cost, numba_cpu, truth

Array = np.ndarray
BOUND = 1000.0  # inputs are U(-BOUND, BOUND)
# In units of 2^-24. A term and the sum are each within 2.7, normalising and the last product cost 1 each; inputs near
# the maximum of a row, the only ones that count here, lose nothing when it is subtracted.
TOLERANCE = 8.0
# torch adds the terms of a row up in float32, vector by vector: its error grows with the row (255 units at 2^25).
TORCH_TOLERANCE_GROWTH = 2.0**-16
_ALIGNMENT = 64


def torch_tolerance(n: int) -> float:
    """How far torch's softmax of a row of ``n`` may be off."""
    return TOLERANCE + TORCH_TOLERANCE_GROWTH * n


def aligned(shape: tuple[int, ...]) -> Array:
    """An unwritten float32 array that begins at a cache line."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + size].view(np.float32).reshape(shape)


def draw(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """U(-BOUND, BOUND) in float32."""
    x = aligned(shape)
    rng.random(dtype=np.float32, out=x)
    x *= 2.0 * BOUND
    x -= BOUND
    return x


def written(shape: tuple[int, ...]) -> Array:
    """A buffer whose pages exist."""
    y = aligned(shape)
    y.fill(0.0)
    return y


@dataclass(frozen=True)
class Tensors:
    """The input and the buffer as torch sees them: the same memory, made once, so that torch converts nothing."""

    x: torch.Tensor
    y: torch.Tensor


def softmax_problem(rows: int, n: int, threads: int) -> Problem:
    """Softmax of (rows, n). Buffers are the result and :class:`Tensors` of input and result.

    Denormals are flushed in every arm, as in the paper's benchmark: torch would otherwise spend its time there.
    """
    torch.set_flush_denormal(True)

    def buffers(x: Array) -> tuple[Array, Tensors]:
        y = written((rows, n))
        return y, Tensors(torch.from_numpy(x), torch.from_numpy(y))

    def arm(run: Callable[..., Any], model: cost.Cost, **details: Any) -> Arm:
        return Arm(run, model.bytes_moved(rows * n), model.flops_done(rows * n), outputs=lambda y, _: y, **details)

    def kernel(name: str) -> Arm:
        bound = numba_cpu.bind(name, rows, n, threads)
        return arm(lambda x, y, _: bound(x, y), cost.ALGORITHMS[name],
                   workspace_bytes=cost.workspace_bytes(rows, n, algorithm=name, threads=threads))

    return Problem(
        inputs=lambda rng: (draw(rng, (rows, n)),),
        buffers=buffers,
        truth=truth.softmax,
        error=truth.error_units,
        arms={
            **{name: kernel(name) for name in ALGORITHMS},
            "torch": arm(_torch, cost.ALGORITHMS["three_pass_reload"], tolerance=torch_tolerance(n)),
            "scipy": arm(lambda x, _, __: special.softmax(x, axis=-1), cost.SCIPY),
        },
        input_bytes=4 * rows * n,
        tolerance=TOLERANCE,
    )


def _torch(_: Array, __: Array, tensors: Tensors) -> None:
    torch.softmax(tensors.x, dim=-1, out=tensors.y)


@dataclass(frozen=True)
class Facts:
    """What earlier passes would have found out about a vector."""

    maximum: float
    total: float  # sum(e^(x - maximum))

    @classmethod
    def of(cls, x: Array) -> Facts:
        """By the float64 definition, so that no pass is checked with what another computed."""
        maximum = float(x.max())
        return cls(maximum, math.exp(truth.log_sum_exp(x) - maximum))

    def extended(self) -> tuple[float, float]:
        """(m, e) with m * 2^e = sum(e^x), e near the maximum's exponent."""
        e = float(round(self.maximum / math.log(2.0)))
        return self.total * math.exp(self.maximum - e * math.log(2.0)), e


@dataclass(frozen=True)
class Terms:
    """A pass wrote ``values``; times ``scale`` they are the softmax."""

    values: Array
    scale: float = 1.0


@dataclass(frozen=True)
class Total:
    """A pass found ln(sum(e^x))."""

    log: float


@dataclass(frozen=True)
class Largest:
    """A pass found the maximum."""

    value: float


@dataclass(frozen=True)
class Known:
    """The float64 truth that any pass is held against."""

    softmax: Array
    log_sum: float
    maximum: float

    @classmethod
    def of(cls, x: Array) -> Known:
        softmax, maximum = truth.softmax(x), float(x.max())
        return cls(softmax, maximum - math.log(softmax.max()), maximum)


def pass_error(found: Terms | Total | Largest, known: Known) -> float:
    """The distance in units of 2^-24; infinite for a maximum that is not the largest element."""
    if isinstance(found, Terms):
        return truth.error_units(found.values, known.softmax, found.scale)
    if isinstance(found, Total):
        return abs(math.expm1(found.log - known.log_sum)) / truth.UNIT
    return 0.0 if found.value == known.maximum else math.inf


def passes_problem(n: int, threads: int) -> Problem:
    """Every pass alone over vectors of ``n``; an input is the vector and the :class:`Facts` a pass may need."""

    def inputs(rng: np.random.Generator) -> tuple[Array, Facts]:
        x = draw(rng, (n,))
        return x, Facts.of(x)

    return Problem(
        inputs=inputs,
        buffers=lambda *_: (written((n,)),),
        truth=lambda x, _: Known.of(x),
        error=pass_error,
        arms={**_reading_arms(n, threads), **_storing_arms(n, threads), **_streams(n, threads)},
        input_bytes=4 * n,
        tolerance=TOLERANCE,
    )


def _arm(name: str, n: int, run: Callable[..., None], **details: Any) -> Arm:
    return Arm(run, cost.PASSES[name].bytes_moved(n), cost.PASSES[name].flops_done(n), **details)


def _reading_arms(n: int, threads: int) -> Mapping[str, Arm]:
    """Passes that leave one partial result per thread."""

    def room(*_: Any) -> tuple[Array, Array]:
        return numba_cpu.partials(numba_cpu.chunks_of(n, threads))

    def plain(name: str) -> Callable[..., None]:
        return lambda x, _, sums, exponents: numba_cpu.run_pass(name, x, x, sums, exponents)

    def sum_exp(x: Array, facts: Facts, sums: Array, exponents: Array) -> None:
        # Where the sum is relative to goes with it, as in the online form.
        exponents.fill(facts.maximum)
        numba_cpu.run_pass("sum_exp", x, x, sums, exponents, shift=facts.maximum)

    return {
        "accumulate": _arm("accumulate", n, plain("accumulate"), buffers=room,
                           outputs=lambda sums, exponents: Total(numba_cpu.log_sum(*numba_cpu.merge(sums, exponents)))),
        "max": _arm("max", n, plain("max"), buffers=room,
                    outputs=lambda _, exponents: Largest(float(exponents.max()))),
        "sum_exp": _arm("sum_exp", n, sum_exp, buffers=room,
                        outputs=lambda sums, exponents: Total(math.log(sums.sum()) + float(exponents[0]))),
    }


def _storing_arms(n: int, threads: int) -> Mapping[str, Arm]:
    """Passes that write a vector."""
    sums, exponents = numba_cpu.partials(numba_cpu.chunks_of(n, threads))

    def store(x: Array, facts: Facts, y: Array) -> None:
        r, r_low, k = numba_cpu.normaliser(*facts.extended())
        numba_cpu.run_pass("store", x, y, sums, exponents, r=r, r_low=r_low, k=k)

    def store_shifted(x: Array, facts: Facts, y: Array) -> None:
        r, r_low, k = numba_cpu.normaliser(facts.total)
        numba_cpu.run_pass("store_shifted", x, y, sums, exponents, shift=facts.maximum, r=r, r_low=r_low, k=k)

    def sum_store_exp(x: Array, facts: Facts, y: Array) -> None:
        numba_cpu.run_pass("sum_store_exp", x, y, sums, exponents, shift=facts.maximum)

    def scale(_: Array, facts: Facts, y: Array) -> None:
        numba_cpu.run_pass("scale", y, y, sums, exponents, total=facts.total)

    def terms(x: Array, facts: Facts) -> tuple[Array]:
        y = written((n,))
        sum_store_exp(x, facts, y)
        return (y,)

    return {
        "store": _arm("store", n, store, outputs=Terms),
        "store_shifted": _arm("store_shifted", n, store_shifted, outputs=Terms),
        "sum_store_exp": _arm("sum_store_exp", n, sum_store_exp, outputs=lambda y: Terms(y, 1.0 / float(sums.sum()))),
        "scale": _arm("scale", n, scale, buffers=terms, outputs=Terms, in_place=True),
    }


def _streams(n: int, threads: int) -> Mapping[str, Arm]:
    """The yardsticks; tests check what they compute."""
    sums, exponents = numba_cpu.partials(numba_cpu.chunks_of(n, threads))

    def run(name: str, x: Array, _: Facts, y: Array) -> None:
        numba_cpu.run_pass(name, x, y, sums, exponents)

    return {name: _arm(name, n, partial(run, name), checked=False)
            for name in ("stream_read", "stream_copy", "stream_scale")}
