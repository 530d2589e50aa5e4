"""Numba fast path of the factored Z-loss on CPUs: one example at a time, every matrix read and written in one pass."""

from __future__ import annotations

import math

import numpy as np

from reference.kernels.jit import kernel

# Sums may be re-ordered so that they vectorise; nothing here relies on NaN or infinity being exact.
_FAST = {"reassoc", "contract", "nsz"}
_SINGULAR = 0.5


@kernel(fastmath=_FAST, boundscheck=False)
def step_one(
    V: np.ndarray, U: np.ndarray, U_inverse: np.ndarray, omega: np.ndarray, Q: np.ndarray, wbar: np.ndarray,
    h: np.ndarray, target: int, sharpness: float, b: float, eta: float, gradient: np.ndarray, scratch: np.ndarray,
) -> float:
    """`z_loss_factored.step` for one example h [d]: returns its loss, writes dL/dh to `gradient`, about 16 d^2 FLOPs.

    `b` is the location on the scale of z, `scratch` [3, d] is overwritten. With t = r - k Q h + (c + k^2 q) h / 2,
    where r = P (u1 wbar + uc w_c) and c = u1^2 D + 2 u1 uc + uc^2, the update of Q is Q' = Q + t h^T + h t^T.
    """
    classes, width = V.shape
    real = V.dtype.type  # a float64 factor would make every float32 loop below a float64 one
    w, Qh, t = scratch[0], scratch[1], scratch[2]
    row = V[target]
    for j in range(width):
        w[j] = omega[j]
        Qh[j] = 0.0
    for i in range(width):
        v_i, h_i = row[i], h[i]
        for j in range(width):
            w[j] += v_i * U[i, j]
            Qh[j] += h_i * Q[i, j]
    s, q, o, square, h_omega = 0.0, 0.0, 0.0, 0.0, 0.0
    for j in range(width):
        s += wbar[j] * h[j]
        q += Qh[j] * h[j]
        o += w[j] * h[j]
        square += h[j] * h[j]
        h_omega += h[j] * omega[j]

    mean = s / classes
    variance = q / classes - mean * mean
    sigma = math.sqrt(variance)
    z = (o - mean) / sigma
    x = sharpness * (b - z)
    loss = (max(x, 0.0) + math.log1p(math.exp(-abs(x)))) / sharpness
    g = -1.0 / (1.0 + math.exp(-x)) if x >= 0 else -math.exp(x) / (1.0 + math.exp(x))
    L_c = g / sigma
    L_s = g * (mean * z / (classes * variance) - 1.0 / (classes * sigma))
    L_q = -g * z / (2.0 * classes * variance)
    if L_q > 0 and 2.0 * eta * L_q * square > _SINGULAR:
        eta = _SINGULAR / (2.0 * L_q * square)
    k, u1, uc = 2.0 * eta * L_q, -eta * L_s, -eta * L_c

    # r = v - k h (h . v) with v = u1 wbar + uc w_c, and h . v = u1 s + uc o
    inner = k * (u1 * s + uc * o)
    half = 0.5 * (u1 * u1 * classes + 2.0 * u1 * uc + uc * uc + k * k * q)
    for j in range(width):
        gradient[j] = 2.0 * L_q * Qh[j] + L_s * wbar[j] + L_c * w[j]
        t[j] = u1 * wbar[j] + uc * w[j] - k * Qh[j] + (half - inner) * h[j]
    for j in range(width):
        omega[j] += h[j] * (u1 - k * h_omega)
        wbar[j] += h[j] * (u1 * classes + uc - k * s)
        w[j] = 0.0  # from here on h^T U^-1
    for i in range(width):
        h_i, t_i, dot = h[i], t[i], real(0.0)
        for j in range(width):
            w[j] += h_i * U_inverse[i, j]
            dot += U[i, j] * h[j]
        factor = real(k * dot)
        for j in range(width):
            U[i, j] -= factor * h[j]
            Q[i, j] += t_i * h[j] + h_i * t[j]
    shrunk = 1.0 - k * square
    # h^T U'^-1 = h^T U^-1 / (1 - k |h|^2)
    for j in range(width):
        row[j] += real(uc / shrunk) * w[j]
    for i in range(width):
        factor = real(k / shrunk * h[i])
        for j in range(width):
            U_inverse[i, j] += factor * w[j]
    return loss


def scratch_for(width: int, dtype: np.dtype) -> np.ndarray:
    """The scratch memory of `step_one`."""
    return np.empty((3, width), dtype)
