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


def log_sum_exp(x: np.ndarray) -> np.ndarray:
    """ln(sum(e^x)) over the last axis in float64.

    NaN where a row holds NaN, else inf where it holds inf, else -inf where all of it is -inf or it is empty.
    """
    largest, total = _sums(x)
    with np.errstate(divide="ignore"):
        found = largest + np.log(total)
    return np.where(np.isinf(largest) & ~np.isnan(largest), largest, found)[..., 0]


def log_softmax(x: np.ndarray) -> np.ndarray:
    """x - ln(sum(e^x)) over the last axis in float64; -inf stays, rows are NaN where softmax is."""
    largest, total = _sums(x)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x - largest) - np.log(np.where(np.isinf(largest), np.nan, total))


def _sums(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(m, sum(e^(x - m))) with m the largest element, both (..., 1)."""
    largest = np.max(x, axis=-1, keepdims=True, initial=-np.inf).astype(np.float64)
    total = np.zeros(largest.shape)
    with np.errstate(invalid="ignore"):
        for start in range(0, x.shape[-1], _SLICE):
            part = x[..., start : start + _SLICE] - largest
            np.exp(np.maximum(part, _LOWEST, out=part), out=part)
            part *= part > _SMALLEST_EXP
            total += part.sum(axis=-1, keepdims=True)
    return largest, total


def spacing(values: np.ndarray, type_: str) -> np.ndarray:
    """The distance of neighbouring numbers of a 16-bit type around ``values``; 0 for float32.

    An error of half of it is what rounding to that type costs; float32 results have no such allowance.
    """
    if type_ == "float32":
        return np.zeros_like(values)
    bits, smallest = {"float16": (11, -13), "bfloat16": (8, -125)}[type_]
    exponents = np.maximum(np.frexp(np.where(np.isfinite(values), values, 0.0))[1], smallest)
    return np.ldexp(1.0, exponents - bits)


def error_units(
    outputs: np.ndarray, expected: np.ndarray, scale: float = 1.0, allowance: float | np.ndarray = 0.0
) -> float:
    """The largest |scale*output / expected - 1| / 2^-24 over expected values above 2^-100.

    ``allowance`` is taken off |scale*output - expected| first. Infinite when shapes differ, NaN stand elsewhere than
    expected, or an output whose expected value is smaller than 2^-100 is negative or above 2^-99 (or the allowance).
    """
    got, want = np.asarray(outputs).reshape(-1), np.asarray(expected).reshape(-1)
    allowed = np.broadcast_to(allowance, np.shape(expected)).reshape(-1)
    if got.shape != want.shape or np.shape(outputs) != np.shape(expected):
        return math.inf
    worst = 0.0
    for start in range(0, got.size, _SLICE):
        cut = slice(start, start + _SLICE)
        worst = max(worst, _worst(got[cut], want[cut], scale, allowed[cut]))
    return worst


def _worst(got: np.ndarray, want: np.ndarray, scale: float, allowed: np.ndarray) -> float:
    missing = np.isnan(want)
    if missing.any():
        if not np.array_equal(missing, np.isnan(got)):
            return math.inf
        got, want, allowed = got[~missing], want[~missing], allowed[~missing]
    large = want > SMALLEST
    # NaN and negative numbers fail the first comparison.
    if not (got >= 0.0).all() or not ((got <= 2.0 * SMALLEST / scale + allowed) | large).all():
        return math.inf
    relative = np.maximum(np.abs(got[large] * np.float64(scale) - want[large]) - allowed[large], 0.0) / want[large]
    return float(np.max(relative, initial=0.0)) / UNIT


def log_error_units(outputs: np.ndarray, expected: np.ndarray, allowance: float | np.ndarray = 0.0) -> float:
    """The largest (|output - expected| - allowance) / (2^-24 * max(1, |expected|)).

    Infinite when shapes differ, or where an infinity or NaN is not what is expected.
    """
    got, want = np.asarray(outputs, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(want)
    if got.shape != want.shape or not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        return math.inf
    error = np.abs(got[finite] - want[finite]) - np.broadcast_to(allowance, want.shape)[finite]
    worst = float(np.max(np.maximum(error, 0.0) / np.maximum(1.0, np.abs(want[finite])), initial=0.0))
    return math.inf if math.isnan(worst) else worst / UNIT
