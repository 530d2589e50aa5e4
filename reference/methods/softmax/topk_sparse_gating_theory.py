"""Gaussian mixtures of experts with top-K sparse softmax gates, and the distances of arXiv 2309.13850.

With v_i = b1_i . x, the gate keeps the K experts of largest v_i; the bias b0_i has no part in the selection:

    p(y | x) = sum_{i in S(x)} softmax_{S(x)}(b1_i . x + b0_i) Normal(y; a_i . x + b_i, sigma_i^2),  S(x) = top K of v

so x-space is cut into regions with a fixed set of experts. Gates are the same after a translation of all b1 and of all
b0; the paper pins the last expert's at 0. Statements on rates are those of the paper's abstract and of related work.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Mixture:
    """k experts in d dimensions, ``selected`` of them active: b1 and a are [k, d]; b0, b and sigma [k]."""

    b1: Floats
    b0: Floats
    a: Floats
    b: Floats
    sigma: Floats
    selected: int

    def __post_init__(self) -> None:
        k, d = self.b1.shape
        shapes = [np.shape(item) for item in (self.b0, self.a, self.b, self.sigma)]
        if shapes != [(k,), (k, d), (k,), (k,)]:
            raise ValueError(f"b0, a, b and sigma of {k} experts in {d} dimensions have the shapes {shapes}")
        if not 1 <= self.selected <= k:
            raise ValueError(f"selected must lie in 1..{k}, not {self.selected}")

    @property
    def experts(self) -> int:
        """How many there are."""
        return len(self.b0)

    def rows(self, order: list[int] | Integers) -> Mixture:
        """The experts at these places, in this order; one may be taken more than once."""
        return replace(self, **{name: getattr(self, name)[order] for name in ("b1", "b0", "a", "b", "sigma")})

    def moved(self, b1: Floats | float, b0: float) -> Mixture:
        """The same gates, written with all b1 and b0 translated."""
        return replace(self, b1=self.b1 + b1, b0=self.b0 + b0)


def truth(dimensions: int = 1) -> Mixture:
    """Three well separated experts, two selected; in one dimension the second is active on both sides of 0."""
    if dimensions == 1:
        b1, a = np.array([[-4.0], [-2.0], [0.0]]), np.array([[1.5], [-1.0], [1.0]])
        b0, b = np.array([0.0, 0.8, 0.0]), np.array([-2.0, 0.0, 2.0])
    elif dimensions == 2:
        b1, a = np.array([[2.0, 1.0], [-2.0, 1.0], [0.0, 0.0]]), np.array([[1.0, 0.5], [-1.0, 0.5], [0.5, -1.0]])
        b0, b = np.array([0.3, -0.3, 0.0]), np.array([-2.5, 0.0, 2.5])
    else:
        raise ValueError(f"there is a truth in 1 and in 2 dimensions, not in {dimensions}")
    return Mixture(b1, b0, a, b, np.array([0.3, 0.4, 0.25]), selected=2)


def selection(mixture: Mixture, x: Floats) -> NDArray[np.bool_]:
    """Which experts are active at each x [n, d]: [n, k]. Of equal v the first are taken."""
    order = np.argsort(-(x @ mixture.b1.T), axis=1, kind="stable")
    chosen = np.zeros((len(x), mixture.experts), bool)
    np.put_along_axis(chosen, order[:, : mixture.selected], True, axis=1)
    return chosen


def gates(mixture: Mixture, x: Floats) -> Floats:
    """The weights of the experts at each x [n, d]: [n, k], zero outside the selection."""
    logits = np.where(selection(mixture, x), x @ mixture.b1.T + mixture.b0, -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def expert_densities(mixture: Mixture, x: Floats, y: Floats) -> Floats:
    """Normal(y; a_i . x + b_i, sigma_i^2) for y [n, m], m values at each x: [n, m, k]."""
    mean = x @ mixture.a.T + mixture.b
    scaled = (y[..., None] - mean[:, None]) / mixture.sigma
    return np.exp(-(scaled**2) / 2) / (mixture.sigma * math.sqrt(2 * math.pi))


def density(mixture: Mixture, x: Floats, y: Floats) -> Floats:
    """p(y | x) for y [n, m], m values at each x [n, d]: [n, m]."""
    return np.einsum("nmk,nk->nm", expert_densities(mixture, x, y), gates(mixture, x))


def log_likelihood(mixture: Mixture, x: Floats, y: Floats) -> float:
    """Sum of log p(y | x) over pairs x [n, d], y [n]."""
    return float(np.log(density(mixture, x, y[:, None])).sum())


def sample(mixture: Mixture, n: int, random: np.random.Generator) -> tuple[Floats, Floats]:
    """x uniform in [-1, 1]^d [n, d], and y given x [n]."""
    x = random.uniform(-1, 1, (n, mixture.b1.shape[1]))
    edges = np.cumsum(gates(mixture, x), axis=1)
    expert = (random.random((n, 1)) > edges).sum(axis=1).clip(max=mixture.experts - 1)
    mean = np.einsum("nd,nd->n", x, mixture.a[expert]) + mixture.b[expert]
    return x, mean + mixture.sigma[expert] * random.standard_normal(n)


def places(dimensions: int, across: int = 64) -> Floats:
    """Midpoints of a regular grid on [-1, 1]^d, ``across`` in one dimension and its square root squared in two."""
    per_axis = across if dimensions == 1 else 16
    line = (np.arange(per_axis) + 0.5) / per_axis * 2 - 1
    return np.stack(np.meshgrid(*[line] * dimensions, indexing="ij"), axis=-1).reshape(-1, dimensions)


def hellinger(first: Mixture, second: Mixture, reach: float = 6.0, step: float = 0.02) -> float:
    """E_x h(first(. | x), second(. | x)) with h^2 = (1/2) integral (sqrt p - sqrt q)^2 dy, by a grid in x and y."""
    x = places(first.b1.shape[1])
    y = np.broadcast_to(np.arange(-reach, reach + step / 2, step), (len(x), round(2 * reach / step) + 1))
    gap = np.sqrt(density(first, x, y)) - np.sqrt(density(second, x, y))
    return float(np.sqrt((gap**2).sum(axis=1) * step / 2).mean())


def cells(fit: Mixture, true: Mixture, gate_too: bool = True) -> Integers:
    """Which true expert each fitted one is nearest to, in (b1, a, b, sigma), or in the last three alone: [k]."""
    names = ("b1", "a", "b", "sigma") if gate_too else ("a", "b", "sigma")
    near, far = (np.hstack([np.reshape(getattr(item, name), (item.experts, -1)) for name in names])
                 for item in (fit, true))
    return np.linalg.norm(near[:, None] - far[None], axis=-1).argmin(axis=1)


def pinned(fit: Mixture, true: Mixture) -> Mixture:
    """``fit`` translated: in the cell of the last true expert, sum exp(b0) and the mean of b1 are that expert's.

    The mean is weighted by exp(b0). Where the cell is empty, the fitted expert nearest to it stands for it.
    """
    last = true.experts - 1
    owned = np.flatnonzero(cells(fit, true, gate_too=False) == last)
    if len(owned) == 0:
        owned = np.array([_distances(fit, true, last, gate_too=False).argmin()])
    mass = np.exp(fit.b0[owned] - fit.b0[owned].max())
    center = (mass[:, None] * fit.b1[owned]).sum(axis=0) / mass.sum()
    return fit.moved(true.b1[last] - center, true.b0[last] - float(fit.b0[owned].max() + np.log(mass.sum())))


def _distances(fit: Mixture, true: Mixture, j: int, gate_too: bool = True) -> Floats:
    """|db1| + |da| + |db| + |dsigma| of every fitted expert to the true expert j: [k]."""
    found = np.abs(fit.a - true.a[j]).sum(1) + np.abs(fit.b - true.b[j]) + np.abs(fit.sigma - true.sigma[j])
    return found + np.abs(fit.b1 - true.b1[j]).sum(1) if gate_too else found


def voronoi_loss(fit: Mixture, true: Mixture) -> float:
    """D1 of the paper: the largest, over the sets of experts that the truth selects somewhere, of

        sum_j sum_{i in cell j} exp(b0_i) (|db1_ij| + |da_ij| + |db_ij| + |dsigma_ij|) + |sum exp(b0_i) - exp(b0*_j)|.
    """
    fit = pinned(fit, true)
    owner, mass = cells(fit, true), np.exp(fit.b0)
    terms = np.array([
        (mass * _distances(fit, true, j))[owner == j].sum() + abs(mass[owner == j].sum() - math.exp(true.b0[j]))
        for j in range(true.experts)
    ])
    return float(max(terms[list(chosen)].sum() for chosen in selected_sets(true)))


def selected_sets(true: Mixture) -> list[tuple[int, ...]]:
    """The sets of experts that are selected somewhere on the grid of :func:`places`."""
    chosen = selection(true, places(true.b1.shape[1]))
    return [subset for subset in itertools.combinations(range(true.experts), true.selected)
            if (chosen[:, list(subset)].all(axis=1)).any()]


@dataclass(frozen=True)
class CellErrors:
    """|db1| + |db| inside a fit: of the largest cell's worst member, of the other true experts' nearest; and a share.

    ``least_share`` is the smallest exp(b0) in the largest cell over the cell's sum.
    """

    largest: float
    others: float
    least_share: float


def cell_errors(fit: Mixture, true: Mixture) -> CellErrors:
    """Errors without weights, as a look at the fitted parameters would show them. Needs two true experts at least."""
    fit = pinned(fit, true)
    owner = cells(fit, true)
    error = np.abs(fit.b1[:, None] - true.b1).sum(-1) + np.abs(fit.b[:, None] - true.b)
    largest = int(np.bincount(owner, minlength=true.experts).argmax())
    members = np.flatnonzero(owner == largest)
    mass = np.exp(fit.b0[members] - fit.b0[members].max())
    others = [error[_distances(fit, true, j).argmin(), j] for j in range(true.experts) if j != largest]
    return CellErrors(float(error[members, largest].max()), float(np.mean(others)), float(mass.min() / mass.sum()))


def split_middle(true: Mixture, delta: float = 0.5) -> Mixture:
    """The one-dimensional truth with four experts and still only two selected: the very same density.

    The middle expert becomes two, one for each half-line: slopes s2 - delta and s2 + delta, the outer slopes moved
    along so that the differences inside each half stay as they were.
    """
    found = true.rows([0, 1, 1, 2])
    shift = np.array([[-delta], [-delta], [delta], [delta]])
    return replace(found, b1=found.b1 + shift)


def never_selected(true: Mixture) -> Mixture:
    """The truth with an extra expert that top-1 gating never selects: its slope is the mean of the others' slopes.

    max_i b1_i . x >= mean_i b1_i . x, so with K = 1 the density is that of ``true``, whatever the extra expert is.
    """
    return Mixture(
        np.vstack([true.b1, true.b1.mean(axis=0)]), np.append(true.b0, 3.0), np.vstack([true.a, 0 * true.a[0]]),
        np.append(true.b, 9.0), np.append(true.sigma, 1.0), true.selected,
    )
