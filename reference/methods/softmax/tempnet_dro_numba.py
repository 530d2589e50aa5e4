"""Bisection for the temperature of a given entropy, row by row in compiled loops that stay in the nearest cache."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from reference.kernels.jit import kernel

_LOWEST = np.float32(-80.0)  # e^-80 weighs nothing and is no subnormal
_SQUARINGS = 8
_SCALE = np.float32(1 / 2**_SQUARINGS)
_C2, _C3, _C4, _C5 = (np.float32(1 / math.factorial(n)) for n in (2, 3, 4, 5))
_ONE = np.float32(1.0)

# Sums may be reassociated into lanes: nothing here depends on their order beyond rounding.
_compiled = kernel(fastmath=True, error_model="numpy", nogil=True)


def exact_tau(
    logits: NDArray[np.float32], target_entropy: float, low: float, high: float, steps: int, tau: NDArray[np.float32]
) -> None:
    """``tau[i]`` = the temperature within low..high at which row i of ``logits`` [n, V] has that entropy in nats."""
    _bisect(logits, np.float32(target_entropy), np.float32(low), np.float32(high), steps,
            np.empty(logits.shape[1], np.float32), tau)


@_compiled
def _bisect(logits, target, lowest, highest, steps, shifted, tau):
    """With y = (h - max h) / tau, Z = sum e^y: entropy = log Z - sum y e^y / Z.

    e^y = (e^(y / 256))^256: a polynomial and eight squarings, which compilers turn into vector code; its relative error
    of 2e-5 is that of the entropy.
    """
    rows, words = logits.shape
    for i in range(rows):
        top = logits[i, 0]
        for j in range(words):
            top = max(top, logits[i, j])
        for j in range(words):
            shifted[j] = logits[i, j] - top
        low, high = lowest, highest
        for _ in range(steps):
            middle = np.float32(0.5) * (low + high)
            scale = _ONE / middle
            total, weighted = np.float32(0.0), np.float32(0.0)
            for j in range(words):
                y = max(shifted[j] * scale, _LOWEST)
                t = y * _SCALE
                e = _ONE + t * (_ONE + t * (_C2 + t * (_C3 + t * (_C4 + t * _C5))))
                e *= e
                e *= e
                e *= e
                e *= e
                e *= e
                e *= e
                e *= e
                e *= e
                total += e
                weighted += y * e
            if math.log(total) - weighted / total < target:
                low = middle
            else:
                high = middle
        tau[i] = np.float32(0.5) * (low + high)
