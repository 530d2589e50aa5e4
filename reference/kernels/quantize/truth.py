"""The same operations in float64, written independently of the backends: nearest code by comparing with every code."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def quantize(x: Array, code: Array, block: int | None) -> tuple[Array, Array]:
    """(codes, absmax) of flat ``x``: the nearest code to x/absmax per block, ties to the lower code, 0/0 as 0."""
    x, code = np.asarray(x, np.float64).ravel(), np.asarray(code, np.float64)
    codes, absmax = np.empty(x.size, np.uint8), []
    for start in range(0, x.size, block or max(x.size, 1)):
        piece = x[start : start + (block or x.size)]
        largest = np.abs(piece).max()
        scaled = piece / largest if largest > 0 else piece * 0
        codes[start : start + piece.size] = np.abs(scaled[:, None] - code).argmin(1)
        absmax.append(largest)
    return codes, np.array(absmax)


def dequantize(codes: Array, absmax: Array, code: Array, block: int | None) -> Array:
    """float64 values of flat ``codes``."""
    place = np.arange(codes.size) // (block or max(codes.size, 1))
    return np.asarray(code, np.float64)[codes] * np.asarray(absmax, np.float64)[place]


def adam(p: Array, g: Array, m: Array, v: Array, *, lr: float, beta1: float, beta2: float, eps: float,
         weight_decay: float, step: int) -> tuple[Array, Array, Array]:
    """(p, m, v) after one AdamW step from exact states, float64."""
    p, g, m, v = (np.asarray(item, np.float64) for item in (p, g, m, v))
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    m_hat, v_hat = m / (1 - beta1**step), v / (1 - beta2**step)
    return p * (1 - lr * weight_decay) - lr * m_hat / (np.sqrt(v_hat) + eps), m, v


def momentum(p: Array, g: Array, m: Array, *, lr: float, momentum: float, weight_decay: float) -> tuple[Array, Array]:
    """(p, m) after one step of SGD with momentum from an exact state, float64."""
    p, g, m = (np.asarray(item, np.float64) for item in (p, g, m))
    m = momentum * m + g + weight_decay * p
    return p - lr * m, m


def lion(p: Array, g: Array, m: Array, *, lr: float, beta1: float, beta2: float,
         weight_decay: float) -> tuple[Array, Array]:
    """(p, m) after one step of Lion from an exact state, float64."""
    p, g, m = (np.asarray(item, np.float64) for item in (p, g, m))
    direction = np.sign(m + (1 - beta1) * (g - m))
    return p - lr * (direction + weight_decay * p), m + (1 - beta2) * (g - m)


def relative_error_bound(code: Array) -> float:
    """The largest |dequantised - x| / absmax of a block: half the widest gap, or the distance to -1 or 1."""
    code = np.asarray(code, np.float64)
    ends = [1 - code[-1]] + ([1 + code[0]] if code[0] < 0 else [])
    return max(float(np.diff(code).max()) / 2, *ends, 0.0) if not math.isnan(code.sum()) else math.nan
