"""The timed problem: one E-step with the experts' sums, evaluating the selected experts or all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from harness.declare.suite import Arm, Problem
from reference.methods.softmax import topk_sparse_gating_theory_numba as kernels
from reference.methods.softmax.topk_sparse_gating_theory import Mixture, expert_densities, gates, sample
from reference.methods.softmax.topk_sparse_gating_theory_em import packed, unpacked

SELECTED, DIMENSIONS = 2, 4
Array = np.ndarray


def em_problem(n: int, k: int) -> Problem:
    """Inputs are theta [k, 11], x [n, 4] and y [n]; the result is the moments [k, 6, 6] and the log likelihood [1]."""

    def inputs(random: np.random.Generator) -> tuple[Array, Array, Array]:
        mixture = Mixture(random.normal(0, 1, (k, DIMENSIONS)), random.normal(0, 0.5, k),
                          random.normal(0, 1, (k, DIMENSIONS)), random.normal(0, 1, k), np.full(k, 0.5), SELECTED)
        return (packed(mixture), *sample(mixture, n, random))

    size = 8 * (n * (DIMENSIONS + 1) + k * (2 * DIMENSIONS + 3))
    return Problem(
        inputs=inputs,
        buffers=lambda *_: (np.empty((k, DIMENSIONS + 2, DIMENSIONS + 2)), np.empty(1)),
        truth=_truth,
        arms={
            "sparse_numba": _arm(_with(kernels.sparse_moments), n, k, SELECTED),
            "dense_numba": _arm(_with(kernels.dense_moments), n, k, k),
            "sparse_numpy": _arm(_sparse_numpy, n, k, SELECTED),
            "dense_numpy": _arm(_dense_numpy, n, k, k),
        },
        input_bytes=size,
        tolerance=1e-8,
    )


def _arm(run: Callable[..., Any], n: int, k: int, evaluated: int) -> Arm:
    """Cost: k gate values, then the density and the 6 x 6 moments of the evaluated experts, for each sample."""
    flops = n * (2 * k * DIMENSIONS + evaluated * (2 * DIMENSIONS + 20 + 2 * (DIMENSIONS + 2) ** 2))
    return Arm(run, bytes_moved=8.0 * n * (DIMENSIONS + 1), flops=float(flops))


def _truth(theta: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """By the plain definitions of density and gates."""
    mixture = unpacked(theta, SELECTED)
    joint = gates(mixture, x) * expert_densities(mixture, x, y[:, None])[:, 0]
    total = joint.sum(axis=1, keepdims=True)
    u = np.column_stack([np.ones(len(x)), x, y])
    return np.stack([(u * weight[:, None]).T @ u for weight in (joint / total).T]), np.log(total).sum(keepdims=True)[0]


def _with(kernel: Callable[..., float]) -> Callable[..., None]:
    def run(theta: Array, x: Array, y: Array, moments: Array, value: Array) -> None:
        value[0] = kernel(theta, x, y, SELECTED, moments)

    return run


def _logs(theta: Array, x: Array, y: Array, gate: Array, rows: Array | None) -> tuple[Array, Array]:
    """Responsibilities and log densities from gate values [n, m], of the experts ``rows`` [n, m] or of all."""
    width = DIMENSIONS + 1
    line, log_sigma = theta[:, width : 2 * width], theta[:, -1]
    z = np.column_stack([np.ones(len(x)), x])
    if rows is None:
        mean = z @ line.T
    else:
        mean, log_sigma = np.einsum("nmp,np->nm", line[rows], z), log_sigma[rows]
    each = gate - ((y[:, None] - mean) * np.exp(-log_sigma)) ** 2 / 2 - log_sigma
    top, peak = gate.max(axis=1, keepdims=True), each.max(axis=1, keepdims=True)
    weight = np.exp(each - peak)
    total = weight.sum(axis=1, keepdims=True)
    gate_total = np.exp(gate - top).sum(axis=1, keepdims=True)
    return weight / total, peak + np.log(total) - top - np.log(gate_total) - 0.5 * math.log(2 * math.pi)


def _gate(theta: Array, x: Array) -> tuple[Array, Array]:
    """v + b0 of every expert [n, k], and the selected ones [n, 2]."""
    value = x @ theta[:, 1 : DIMENSIONS + 1].T
    return value + theta[:, 0], np.argpartition(-value, SELECTED - 1, axis=1)[:, :SELECTED]


def _sparse_numpy(theta: Array, x: Array, y: Array, moments: Array, value: Array) -> None:
    gate, chosen = _gate(theta, x)
    after, log_p = _logs(theta, x, y, np.take_along_axis(gate, chosen, 1), chosen)
    u = np.column_stack([np.ones(len(x)), x, y])
    sample_of, expert = np.repeat(np.arange(len(x)), SELECTED), chosen.reshape(-1)
    order = np.argsort(expert, kind="stable")
    edges = np.searchsorted(expert[order], np.arange(len(theta) + 1))
    weighted, rows = after.reshape(-1)[order, None] * u[sample_of[order]], u[sample_of[order]]
    for i, (first, last) in enumerate(pairwise(edges)):
        moments[i] = weighted[first:last].T @ rows[first:last]
    value[0] = log_p.sum()


def _dense_numpy(theta: Array, x: Array, y: Array, moments: Array, value: Array) -> None:
    gate, chosen = _gate(theta, x)
    active = np.zeros(gate.shape, bool)
    np.put_along_axis(active, chosen, True, axis=1)
    after, log_p = _logs(theta, x, y, np.where(active, gate, -np.inf), None)
    u = np.column_stack([np.ones(len(x)), x, y])
    for i in range(len(theta)):
        moments[i] = (after[:, i, None] * u).T @ u
    value[0] = log_p.sum()
