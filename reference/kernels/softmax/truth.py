"""The float64 truth of softmax and the distance from it, in units of the last place."""

from __future__ import annotations

import math

import numpy as np

UNIT = 2.0**-24  # half the spacing of float32 above 1
SMALLEST = 2.0**-100  # outputs below are held to an absolute bound
_SLICE = 2**16
_LOWEST = -700.0
_SMALLEST_EXP = math.exp(_LOWEST)


def softmax(x: np.ndarray) -> np.ndarray:
    """float64 softmax over the last axis, relative to the maximum.

    -inf gives 0; a row of nothing but -inf gives NaN, and so does one with NaN or +inf. Below e^-700 it is 0.
    """
    result = np.empty(x.shape, np.float64)
    with np.errstate(invalid="ignore"):
        largest = np.max(x, axis=-1, keepdims=True, initial=-np.inf).astype(np.float64)
        for start in range(0, x.shape[-1], _SLICE):
            part = result[..., start : start + _SLICE]
            np.subtract(x[..., start : start + _SLICE], largest, out=part)
            # Denormal results cost exp a hundredfold; they are raised here and zeroed afterwards.
            np.exp(np.maximum(part, _LOWEST, out=part), out=part)
            part *= part > _SMALLEST_EXP
        result /= result.sum(axis=-1, keepdims=True)
    return result


def log_sum_exp(x: np.ndarray) -> float:
    """ln(sum(e^x)) of a vector in float64."""
    largest = float(x.max())
    total = 0.0
    for start in range(0, x.size, _SLICE):
        part = x[start : start + _SLICE] - np.float64(largest)
        total += float(np.exp(np.maximum(part, _LOWEST, out=part), out=part).sum())
    return largest + math.log(total)


def error_units(outputs: np.ndarray, expected: np.ndarray, scale: float = 1.0) -> float:
    """The largest |scale*output / expected - 1| / 2^-24 over expected values above 2^-100.

    Infinite when shapes differ, NaN stand elsewhere than expected, or an output whose expected value is smaller than
    2^-100 is negative or above 2^-99.
    """
    got, want = np.asarray(outputs).reshape(-1), np.asarray(expected).reshape(-1)
    if got.shape != want.shape or np.shape(outputs) != np.shape(expected):
        return math.inf
    worst = 0.0
    for start in range(0, got.size, _SLICE):
        cut = slice(start, start + _SLICE)
        worst = max(worst, _worst(got[cut], want[cut], scale))
    return worst


def _worst(got: np.ndarray, want: np.ndarray, scale: float) -> float:
    missing = want != want  # noqa: PLR0124  NaN
    if missing.any():
        if not np.array_equal(missing, np.isnan(got)):
            return math.inf
        got, want = got[~missing], want[~missing]
    large = want > SMALLEST
    # NaN and negative numbers fail the first comparison.
    if not (got >= 0.0).all() or not ((got <= 2.0 * SMALLEST / scale) | large).all():
        return math.inf
    relative = np.abs(got[large] * np.float64(scale) / want[large] - 1.0)
    return float(np.max(relative, initial=0.0)) / UNIT
