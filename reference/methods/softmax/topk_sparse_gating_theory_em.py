"""Maximum likelihood for top-K gated mixtures: EM from many starts, scoring for the best of them.

The likelihood jumps where the selection changes. So a gate's step is taken at the current selection, and kept only if
the likelihood, with the selection it leads to, did not fall; else it is shortened. Nothing but the likelihood judges
between starts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.methods.softmax import topk_sparse_gating_theory_numba as kernels
from reference.methods.softmax.topk_sparse_gating_theory import Mixture

Floats = NDArray[np.float64]

# The compact set in which parameters are sought, as the theory supposes one.
SIGMA_RANGE = (0.05, 2.0)
GATE_LIMIT = 20.0
_SHORTER = (1.0, 0.25, 0.0625, 0.0)
_RIDGE = 1e-6


@dataclass(frozen=True)
class Fit:
    """The best of several starts, and the log likelihood that each of them reached before the finalists were chosen."""

    mixture: Mixture
    log_likelihood: float
    screened: tuple[float, ...]


@dataclass(frozen=True)
class Effort:
    """How long to search: EM steps for every start on the first samples, and of the best starts scoring on all.

    In more than one dimension the borders of the selection are searched as well, by ``climbing_steps`` trials.
    """

    screen_samples: int = 1000
    screen_steps: int = 25
    finalists: int = 3
    em_steps: int = 5
    scoring_steps: int = 40
    climbing_steps: int = 1000


def packed(mixture: Mixture) -> Floats:
    """theta [k, 2 d + 3] as :mod:`topk_sparse_gating_theory_numba` takes it."""
    return np.column_stack([mixture.b0, mixture.b1, mixture.b, mixture.a, np.log(mixture.sigma)])


def unpacked(theta: Floats, selected: int) -> Mixture:
    """The mixture of theta."""
    width = (theta.shape[1] - 1) // 2
    return Mixture(theta[:, 1:width], theta[:, 0], theta[:, width + 1 : 2 * width], theta[:, width],
                   np.exp(theta[:, -1]), selected)


@dataclass
class Sums:
    """What :func:`kernels.sweep` leaves: moments [k, D+1, D+1], gradient [k, D], curvature [k, D, k, D]."""

    moments: Floats
    gradient: Floats
    curvature: Floats

    @classmethod
    def of(cls, theta: Floats, x: Floats, y: Floats, selected: int) -> tuple[float, Sums]:
        """The log likelihood at theta, and the sums."""
        k, width = len(theta), x.shape[1] + 1
        sums = cls(np.empty((k, width + 1, width + 1)), np.empty((k, width)), np.empty((k, width, k, width)))
        return kernels.sweep(theta, x, y, selected, sums.moments, sums.gradient, sums.curvature), sums


def em(
    theta: Floats, x: Floats, y: Floats, selected: int, steps: int, tolerance: float = 1e-6
) -> tuple[Floats, list[float]]:
    """EM from theta, and the log likelihood before each step and at the end; it never falls.

    M-step: weighted least squares for (b, a, sigma), one Newton step for the gates. Ends early once a step gains less
    than ``tolerance``.
    """
    now, sums = Sums.of(theta, x, y, selected)
    path = [now]
    for _ in range(steps):
        fresh = theta.copy()
        update_experts(fresh, sums.moments)
        step = gate_step(sums, len(x))
        width = step.shape[1]
        for scale in _SHORTER:
            fresh[:, :width] = np.clip(theta[:, :width] + scale * step, -GATE_LIMIT, GATE_LIMIT)
            now, trial = Sums.of(fresh, x, y, selected)
            if now >= path[-1]:
                break
        theta, sums = fresh, trial
        path.append(now)
        if path[-1] - path[-2] < tolerance:
            break
    return theta, path


def update_experts(theta: Floats, moments: Floats) -> None:
    """(b, a) of each expert by least squares weighted with its responsibilities, and sigma by the residuals, in place.

    An expert that is responsible for less than one sample stays as it is.
    """
    width = moments.shape[1] - 1
    for i, table in enumerate(moments):
        if table[0, 0] < 1.0:
            continue
        line = np.linalg.solve(table[:width, :width] + _RIDGE * np.eye(width), table[:width, width])
        variance = max((table[width, width] - line @ table[:width, width]) / table[0, 0], 0.0)
        theta[i, width : 2 * width] = line
        theta[i, -1] = math.log(min(max(math.sqrt(variance), SIGMA_RANGE[0]), SIGMA_RANGE[1]))


def gate_step(sums: Sums, samples: int) -> Floats:
    """Newton's step for all (b0, b1) at the current selection [k, D]; zero along translations, which change nothing."""
    k, width = sums.gradient.shape
    matrix = sums.curvature.reshape(k * width, k * width) + _RIDGE * samples * np.eye(k * width)
    return np.linalg.solve(matrix, sums.gradient.reshape(-1)).reshape(k, width)


def scoring(
    theta: Floats, x: Floats, y: Floats, selected: int, steps: int, tolerance: float = 1e-4
) -> tuple[Floats, float]:
    """Damped scoring (F + lambda diag F)^-1 g from theta, F the sum of the scores' outer products; never falls.

    Converges where EM crawls: at fits with more experts than the truth, EM needs thousands of steps. Ends once a step
    promises less than ``tolerance`` in log likelihood.
    """
    low, high = _bounds(theta)
    each = np.empty((len(x), theta.size))
    value = kernels.scores(theta, x, y, selected, each)
    gradient, information, damping = each.sum(0), each.T @ each, 1e-3
    for _ in range(steps):
        step = np.linalg.solve(information + np.diag(damping * np.diag(information) + 1e-8 * len(x)), gradient)
        promised = float(step @ gradient) / 2
        trial = np.clip(theta + step.reshape(theta.shape), low, high)
        reached = kernels.scores(trial, x, y, selected, each)
        if reached > value:
            theta, value, gradient, information = trial, reached, each.sum(0), each.T @ each
            damping = max(damping / 5, 1e-9)
        else:
            damping *= 10
        if promised < tolerance or damping > 1e8:
            break
    return theta, value


def climb(theta: Floats, x: Floats, y: Floats, selected: int, trials: int) -> Floats:
    """Random changes of the gates, of sizes from 1e-4 to 0.1, kept where the likelihood rises.

    Where the selection changes at a border through the samples, the likelihood jumps and its gradient knows nothing of
    it. In one dimension the only border is 0, wherever the gates are.
    """
    random, width = np.random.default_rng(len(x)), x.shape[1] + 1
    value, _ = Sums.of(theta, x, y, selected)
    for _ in range(trials):
        trial = theta.copy()
        row = random.integers(len(theta))
        trial[row, :width] += 10 ** random.uniform(-4, -1) * random.standard_normal(width)
        reached, _ = Sums.of(trial, x, y, selected)
        if reached > value:
            theta, value = trial, reached
    return theta


def _bounds(theta: Floats) -> tuple[Floats, Floats]:
    width = (theta.shape[1] - 1) // 2
    high = np.full_like(theta, np.inf)
    high[:, :width] = GATE_LIMIT
    low = -high
    low[:, -1], high[:, -1] = np.log(SIGMA_RANGE)
    return low, high


def fit(x: Floats, y: Floats, starts: Sequence[Mixture], effort: Effort = Effort()) -> Fit:
    """The maximum likelihood fit to x [n, d], y [n] among those reached from ``starts``, which select equally many.

    Every start is improved by EM on the first samples; the ones with the highest likelihood there go on with all.
    """
    selected = starts[0].selected
    few = slice(0, effort.screen_samples)
    screened = [em(packed(start), x[few], y[few], selected, effort.screen_steps) for start in starts]
    order = sorted(range(len(starts)), key=lambda index: -screened[index][1][-1])
    found = []
    for index in order[: effort.finalists]:
        theta, _ = em(screened[index][0], x, y, selected, effort.em_steps)
        theta, value = scoring(theta, x, y, selected, effort.scoring_steps)
        if x.shape[1] > 1:
            theta = climb(theta, x, y, selected, effort.climbing_steps)
            theta, value = scoring(theta, x, y, selected, effort.scoring_steps)
        found.append((theta, value))
    theta, value = max(found, key=lambda item: item[1])
    return Fit(unpacked(theta, selected), value, tuple(path[-1] for _, path in screened))


def random_starts(
    x: Floats, y: Floats, experts: int, selected: int, count: int, random: np.random.Generator
) -> list[Mixture]:
    """Experts through random samples with random slopes, gates with random slopes and equal weights."""
    d = x.shape[1]
    found = []
    for _ in range(count):
        at = random.choice(len(x), experts, replace=False)
        a = random.normal(0, 1, (experts, d))
        found.append(Mixture(random.normal(0, 2, (experts, d)), np.zeros(experts), a, y[at] - (a * x[at]).sum(1),
                             np.full(experts, 0.5 * y.std()), selected))
    return found


def near_truth(
    true: Mixture, experts: int, selected: int, random: np.random.Generator, noise: float = 0.1
) -> list[Mixture]:
    """The truth with noise on every parameter; with one expert too many, one such start for each expert doubled."""
    if experts == true.experts:
        orders = [list(range(experts))]
    elif experts == true.experts + 1:
        orders = [sorted([*range(true.experts), extra]) for extra in range(true.experts)]
    else:
        raise ValueError(f"there are starts near the truth for {true.experts} experts or one more, not for {experts}")
    found = []
    for order in orders:
        share = np.log([order.count(i) for i in order])
        start = true.rows(order)
        k, d = start.b1.shape
        found.append(Mixture(
            start.b1 + random.normal(0, noise, (k, d)), start.b0 - share + random.normal(0, noise, k),
            start.a + random.normal(0, noise, (k, d)), start.b + random.normal(0, noise, k),
            start.sigma * np.exp(random.normal(0, noise, k)), selected,
        ))
    return found
