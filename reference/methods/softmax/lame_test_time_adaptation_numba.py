"""LAME's iteration over lists of neighbours as one compiled loop: each row is gathered, exponentiated and normalised
while it is in cache."""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from reference.methods.softmax.lame_test_time_adaptation import FLOOR

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]

_LOG2E = np.float32(math.log2(math.e))
# ln 2 in two parts (Cody & Waite): the first has few bits, so that its multiples are exact
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_TAYLOR = tuple(np.float32(1.0 / math.factorial(power)) for power in range(8))
_LEAST = np.float32(-87.0)
_BIAS, _MANTISSA_BITS = np.int32(127), np.int32(23)


def refine_steps(Q: Floats, neighbours: Indices, steps: int) -> Floats:
    """`steps` times Z <- softmax(log(Q + 1e-10) + W Z) from Z = Q: float32 [n, classes], a new array.

    `neighbours` int64 [n, k] lists the k images of affinity 1 of each row. Runs on one thread.
    """
    log_q = np.log(Q + np.float32(FLOOR))
    before, after = Q.copy(), np.empty_like(Q)
    for _ in range(steps):
        _step(log_q, neighbours, before, after)
        before, after = after, before
    return before


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _step(log_q: Floats, neighbours: Indices, Z: Floats, out: Floats) -> None:
    n, classes = Z.shape
    for i in range(n):
        row = out[i]
        row[:] = log_q[i]
        for j in neighbours[i]:
            for c in range(classes):
                row[c] += Z[j, c]
        largest = _largest(row)
        for c in range(classes):
            row[c] = _exp(row[c] - largest)
        scale = np.float32(1.0) / _total(row)
        for c in range(classes):
            row[c] *= scale


# the order of these two does not matter, so lanes may share the work; in _exp it would spoil the split of ln 2
@numba.njit(cache=True, fastmath={"reassoc", "nnan", "nsz"})
def _largest(row: Floats) -> np.float32:
    largest = row[0]
    for value in row:
        largest = max(largest, value)
    return largest


@numba.njit(cache=True, fastmath={"reassoc", "nsz"})
def _total(row: Floats) -> np.float32:
    total = np.float32(0.0)
    for value in row:
        total += value
    return total


@numba.njit(cache=True, inline="always", fastmath={"contract"})
def _exp(x: np.float32) -> np.float32:
    """e^x for x <= 0 within 2 units of 2^-23; below e^-87, which no float32 sum that holds a 1 notices, e^-87."""
    x = max(x, _LEAST)
    n = np.floor(x * _LOG2E + np.float32(0.5))
    t = x - n * _LN2_HIGH
    t = t - n * _LN2_LOW
    p = _TAYLOR[7]
    p = p * t + _TAYLOR[6]
    p = p * t + _TAYLOR[5]
    p = p * t + _TAYLOR[4]
    p = p * t + _TAYLOR[3]
    p = p * t + _TAYLOR[2]
    p = p * t + _TAYLOR[1]
    p = p * t + _TAYLOR[0]
    return p * np.int32((np.int32(n) + _BIAS) << _MANTISSA_BITS).view(np.float32)
