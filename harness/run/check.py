"""Correct before fast: an arm is held against float64 truth on fresh random inputs before and after it is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from harness.declare.suite import Arm, Problem
from harness.run.measure.place import Host, Place

# What an unwritten integer buffer holds: no kernel's natural result, and different from zero.
_INTEGER_POISON = 0xA5


@dataclass(frozen=True)
class Proof:
    """What one comparison found: the error, why the arm is wrong (None where it is right), the time of the calls.

    ``call_ns`` ends when the result is there; on CUDA it may hold half a millisecond of work put before the call.
    """

    error: float
    fault: str | None
    call_ns: int = 0


class InputSet:
    """One draw of the inputs, a copy to see whether an arm altered them, and the truth (computed when asked for)."""

    def __init__(self, problem: Problem, rng: np.random.Generator) -> None:
        self._problem = problem
        self.inputs = tuple(problem.inputs(rng))
        self.copies = tuple(_copy(item) for item in self.inputs)

    @cached_property
    def truth(self) -> Any:
        """The problem's float64 truth for the inputs as they were drawn, which it gets on the host."""
        return self._problem.truth(*map(on_host, self.copies))

    def redraw(self, rng: np.random.Generator) -> None:
        """Overwrite the arrays in place with a fresh draw: a result cached by address is now stale."""
        fresh = tuple(self._problem.inputs(rng))
        for mine, other in zip(self.inputs, fresh, strict=True):
            if _is_array(mine):
                mine[...] = other
        self.inputs = tuple(
            mine if _is_array(mine) else other for mine, other in zip(self.inputs, fresh, strict=True)
        )
        self.copies = tuple(_copy(item) for item in self.inputs)
        self.__dict__.pop("truth", None)

    def restore(self) -> bool:
        """Whether the inputs are as they were drawn; if not they are put back, so that no other arm suffers."""
        intact = all(_same(mine, copy) for mine, copy in zip(self.inputs, self.copies, strict=True))
        if not intact:
            for mine, copy in zip(self.inputs, self.copies, strict=True):
                if _is_array(mine):
                    mine[...] = copy
        return intact


def buffers_of(problem: Problem, arm: Arm, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The buffers an arm writes into, freshly allocated."""
    return tuple((arm.buffers or problem.buffers)(*inputs))


def poison(buffers: Sequence[Any]) -> None:
    """Fill buffers with values that no arm would produce: NaN, or 0xA5 for integers."""
    for buffer in buffers:
        if not _is_array(buffer):
            continue
        floating = buffer.is_floating_point() if hasattr(buffer, "is_floating_point") else buffer.dtype.kind in "fc"
        if floating:
            buffer[...] = float("nan")
        elif str(buffer.dtype).endswith("bool"):
            buffer[...] = True
        else:
            buffer[...] = _INTEGER_POISON if "8" not in str(buffer.dtype) or "u" in str(buffer.dtype) else -91


def prove(
    problem: Problem, arm: Arm, drawn: InputSet, buffers: tuple[Any, ...] | None = None, times: int = 1,
    place: Place | None = None,
) -> Proof:
    """Run ``arm`` on poisoned (or, in place, fresh) buffers and hold the result against the truth.

    With ``times`` above one, the same call is repeated as a timed sample would; an arm that works in place runs once.
    On CUDA the result is taken in the order of the stream that is timed: what another stream wrote before the poison,
    or has not written yet, is not there.
    """
    place = place or Host()
    if arm.in_place or buffers is None:
        buffers, times = buffers_of(problem, arm, drawn.inputs), 1
    place.lead()
    if not arm.in_place:
        poison(buffers)
    begin_ns = time.perf_counter_ns()
    for _ in range(times):
        returned = arm.run(*drawn.inputs, *buffers)
    place.resume()
    outputs = returned if returned is not None else arm.outputs(*buffers) if arm.outputs else buffers
    outputs = on_host(outputs) if arm.checked else None
    place.settle()
    call_ns = time.perf_counter_ns() - begin_ns
    if not drawn.restore():
        return Proof(float("nan"), "altered its inputs", call_ns)
    if not arm.checked:
        return Proof(0.0, None, call_ns)
    measure: Callable[[Any, Any], float] = problem.error or relative_error
    error = float(measure(_unwrap(outputs), _unwrap(drawn.truth)))
    limit = arm.tolerance if arm.tolerance is not None else problem.tolerance
    # A NaN error must fail, hence not "error > limit".
    return Proof(error, None if error <= limit else f"error {error:.3g} exceeds the tolerance {limit:.3g}", call_ns)


def relative_error(outputs: Any, truth: Any) -> float:
    """max |output - truth| / max |truth| over all arrays; infinite where shapes, NaN or infinities differ."""
    worst = 0.0
    pairs = list(zip(_as_tuple(outputs), _as_tuple(truth), strict=False))
    if len(_as_tuple(outputs)) != len(_as_tuple(truth)):
        return float("inf")
    for output, expected in pairs:
        got, want = as_float64(output), as_float64(expected)
        if got.shape != want.shape:
            return float("inf")
        if not want.size:
            continue
        finite = np.isfinite(want)
        if not np.array_equal(got[~finite], want[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
            return float("inf")
        scale = float(np.max(np.abs(want[finite]), initial=0.0)) or 1.0
        worst = max(worst, float(np.max(np.abs(got[finite] - want[finite]), initial=0.0)) / scale)
    return worst


def on_host(value: Any) -> Any:
    """``value`` with every device tensor in it copied to the host; what is there already stays the same object."""
    if isinstance(value, tuple | list):
        moved = tuple(map(on_host, value))
        return value if all(new is old for new, old in zip(moved, value, strict=True)) else moved
    if hasattr(value, "is_cpu") and not value.is_cpu:
        return value.detach().to("cpu")
    return value


def as_float64(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A numpy float64 array of a numpy array, a torch tensor (any device or precision) or a number."""
    if hasattr(value, "detach"):
        value = value.detach().to("cpu").double().numpy()
    return np.asarray(value, dtype=np.float64)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _unwrap(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) and len(value) == 1 else value


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _copy(value: Any) -> Any:
    if hasattr(value, "clone"):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray) else value


def _same(mine: Any, copy: Any) -> bool:
    """Bitwise equality, so that NaN inputs compare equal to themselves."""
    if not _is_array(mine):
        return True
    if hasattr(mine, "detach"):
        import torch

        return bool(torch.equal(mine, copy)) or bool(torch.allclose(mine, copy, rtol=0, atol=0, equal_nan=True))
    return bool(np.array_equal(mine, copy)) or bool(np.array_equal(mine, copy, equal_nan=mine.dtype.kind in "fc"))
