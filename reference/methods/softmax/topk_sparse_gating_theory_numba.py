"""Numba kernels for the mixtures of :mod:`topk_sparse_gating_theory`: one pass over the data for a step of EM.

Parameters are one array theta [k, 2 D + 1] with D = d + 1 and z = (1, x): columns 0..D-1 are the gate (b0, b1), the
next D the expert (b, a), the last log sigma. For each sample only the K selected experts are evaluated.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from reference.kernels.jit import kernel

_OPTIONS = {"error_model": "numpy", "nogil": True}
_inline = njit(inline="always", **_OPTIONS)
_LOG_2PI = math.log(2 * math.pi)


@_inline
def _line(theta, i, first, z):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(len(z)):
        total += theta[i, first + j] * z[j]
    return total


@_inline
def _select(theta, z, chosen, value):  # type: ignore[no-untyped-def]
    """The K experts of largest b1 . x into ``chosen``, sorted by it; b0 does not count. Of equals the first."""
    for i in range(len(theta)):
        v = _line(theta, i, 0, z) - theta[i, 0]
        place = min(i, len(chosen))
        while place > 0 and value[place - 1] < v:
            if place < len(chosen):
                chosen[place], value[place] = chosen[place - 1], value[place - 1]
            place -= 1
        if place < len(chosen):
            chosen[place], value[place] = i, v


@_inline
def _posterior(theta, precision, z, y, chosen, value, prior, after, residual):  # type: ignore[no-untyped-def]
    """Selection, gate weights, responsibilities and scaled residuals of one sample; its log density.

    ``precision`` is 1 / sigma of every expert.
    """
    width, most = len(z), len(chosen)
    _select(theta, z, chosen, value)
    top, peak = -np.inf, -np.inf
    for s in range(most):
        i = chosen[s]
        value[s] += theta[i, 0]
        top = max(top, value[s])
        residual[s] = (y - _line(theta, i, width, z)) * precision[i]
        after[s] = value[s] - 0.5 * residual[s] * residual[s] - theta[i, 2 * width]
        peak = max(peak, after[s])
    gate_sum, sum_ = 0.0, 0.0
    for s in range(most):
        prior[s], after[s] = math.exp(value[s] - top), math.exp(after[s] - peak)
        gate_sum += prior[s]
        sum_ += after[s]
    for s in range(most):
        prior[s] /= gate_sum
        after[s] /= sum_
    return peak + math.log(sum_) - top - math.log(gate_sum) - 0.5 * _LOG_2PI


@kernel(**_OPTIONS)
def sweep(theta, x, y, selected, moments, gradient, curvature):  # type: ignore[no-untyped-def]
    """E-step and all sums that the M-step needs; returns the log likelihood at ``theta``.

    moments [k, D + 1, D + 1]: sum of r u u^T with u = (z, y). gradient [k, D]: sum of (r - pi) z. curvature
    [k, D, k, D]: sum of (pi_i [i = j] - pi_i pi_j) z z^T, minus the Hessian of the gates' expected log likelihood.
    """
    width = x.shape[1] + 1
    chosen, value = np.empty(selected, np.int64), np.empty(selected)
    prior, after, residual = np.empty(selected), np.empty(selected), np.empty(selected)
    u, precision = np.ones(width + 1), np.exp(-theta[:, 2 * width])
    moments[:], gradient[:], curvature[:] = 0.0, 0.0, 0.0
    total = 0.0
    for n in range(len(x)):
        u[1:width], u[width] = x[n], y[n]
        z = u[:width]
        total += _posterior(theta, precision, z, y[n], chosen, value, prior, after, residual)
        for s in range(selected):
            i = chosen[s]
            for p in range(width + 1):
                for q in range(p + 1):
                    moments[i, p, q] += after[s] * u[p] * u[q]
            for p in range(width):
                gradient[i, p] += (after[s] - prior[s]) * z[p]
            for t in range(s + 1):
                weight = prior[s] * ((1.0 if t == s else 0.0) - prior[t])
                for p in range(width):
                    for q in range(width):
                        curvature[i, p, chosen[t], q] += weight * z[p] * z[q]
                        if t < s:
                            curvature[chosen[t], p, i, q] += weight * z[p] * z[q]
    for p in range(width + 1):
        for q in range(p):
            moments[:, q, p] = moments[:, p, q]
    return total


@kernel(**_OPTIONS)
def scores(theta, x, y, selected, found):  # type: ignore[no-untyped-def]
    """Gradient of each sample's log density in theta, row by row, into ``found`` [n, k (2D + 1)].

    Returns the sum of the log densities. The selection is taken as fixed.
    """
    width = x.shape[1] + 1
    row = 2 * width + 1
    chosen, value = np.empty(selected, np.int64), np.empty(selected)
    prior, after, residual = np.empty(selected), np.empty(selected), np.empty(selected)
    z, precision = np.ones(width), np.exp(-theta[:, 2 * width])
    found[:] = 0.0
    total = 0.0
    for n in range(len(x)):
        z[1:] = x[n]
        total += _posterior(theta, precision, z, y[n], chosen, value, prior, after, residual)
        for s in range(selected):
            first = chosen[s] * row
            slope = after[s] * residual[s] * precision[chosen[s]]
            for p in range(width):
                found[n, first + p] = (after[s] - prior[s]) * z[p]
                found[n, first + width + p] = slope * z[p]
            found[n, first + 2 * width] = after[s] * (residual[s] * residual[s] - 1.0)
    return total


@kernel(**_OPTIONS)
def sparse_moments(theta, x, y, selected, moments):  # type: ignore[no-untyped-def]
    """The experts' part of :func:`sweep` alone: selection in O(k), densities of K experts, sums for K experts."""
    width = x.shape[1] + 1
    chosen, value = np.empty(selected, np.int64), np.empty(selected)
    prior, after, residual = np.empty(selected), np.empty(selected), np.empty(selected)
    u, precision = np.ones(width + 1), np.exp(-theta[:, 2 * width])
    moments[:] = 0.0
    total = 0.0
    for n in range(len(x)):
        u[1:width], u[width] = x[n], y[n]
        total += _posterior(theta, precision, u[:width], y[n], chosen, value, prior, after, residual)
        for s in range(selected):
            for p in range(width + 1):
                for q in range(width + 1):
                    moments[chosen[s], p, q] += after[s] * u[p] * u[q]
    return total


@kernel(**_OPTIONS)
def dense_moments(theta, x, y, selected, moments):  # type: ignore[no-untyped-def]
    """The same sums in O(n k): densities and sums of all k experts, most of them with weight zero."""
    width, k = x.shape[1] + 1, len(theta)
    chosen, value = np.empty(selected, np.int64), np.empty(selected)
    logit, after, active = np.empty(k), np.empty(k), np.empty(k)
    u, precision = np.ones(width + 1), np.exp(-theta[:, 2 * width])
    moments[:] = 0.0
    total = 0.0
    for n in range(len(x)):
        u[1:width], u[width] = x[n], y[n]
        z = u[:width]
        _select(theta, z, chosen, value)
        active[:] = 0.0
        top = -np.inf
        for s in range(selected):
            active[chosen[s]] = 1.0
            top = max(top, value[s] + theta[chosen[s], 0])
        gate_sum, sum_ = 0.0, 0.0
        for i in range(k):
            residual = (y[n] - _line(theta, i, width, z)) * precision[i]
            logit[i] = active[i] * math.exp(min(_line(theta, i, 0, z) - top, 0.0))
            after[i] = logit[i] * math.exp(-0.5 * residual * residual) * precision[i]
            gate_sum += logit[i]
            sum_ += after[i]
        total += math.log(sum_) - math.log(gate_sum) - 0.5 * _LOG_2PI
        for i in range(k):
            for p in range(width + 1):
                for q in range(width + 1):
                    moments[i, p, q] += after[i] / sum_ * u[p] * u[q]
    return total
