"""The linear gradient system in which GaLore's Lemma 3.3 holds (arXiv 2403.03507): G_t = mean_i(A_i - B_i W_t C_i)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Trajectory:
    """Stable rank of G along gradient descent, and the lemma's bound, at the same times (steps, real numbers)."""

    times: np.ndarray
    stable_rank: np.ndarray
    bound: np.ndarray
    settled: int

    def worst_ratio(self) -> float:
        """max of stable rank / bound; the lemma says at most 1."""
        return float((self.stable_rank / self.bound).max())

    def worst_rise(self) -> float:
        """How far the stable rank climbs above its running minimum once settled, relatively; 0 if it only falls."""
        tail = self.stable_rank[self.settled :]
        return float((tail / np.minimum.accumulate(tail) - 1.0).max())


@dataclass(frozen=True)
class System:
    """A_i (m x n), and positive semi-definite B_i (m x m), C_i (n x n), stacked on axis 0."""

    A: np.ndarray
    B: np.ndarray
    C: np.ndarray

    @classmethod
    def random(cls, m: int, n: int, terms: int, seed: int, freedom: float = 2.0) -> System:
        """Gaussian A; Wishart B and C with ``freedom`` times as many degrees of freedom as rows.

        The closer ``freedom`` is to 1, the worse conditioned the system.
        """
        random = np.random.default_rng(seed)
        k, j = round(freedom * m), round(freedom * n)
        X, Y = random.standard_normal((terms, m, k)), random.standard_normal((terms, n, j))
        A = random.standard_normal((terms, m, n))
        return cls(A, X @ X.transpose(0, 2, 1) / k, Y @ Y.transpose(0, 2, 1) / j)

    def gradient(self, W: np.ndarray) -> np.ndarray:
        """G at the weights W; gradient descent is W <- W + eta G."""
        return (self.A - self.B @ W @ self.C).mean(axis=0)

    def operator(self) -> np.ndarray:
        """S with vec(mean_i B_i W C_i) = S vec(W), columns stacked: the mean of C_i (x) B_i."""
        return np.mean([np.kron(C, B) for B, C in zip(self.B, self.C, strict=True)], axis=0)

    def trajectory(self, W: np.ndarray, points: int = 400, until: float = 1e-6) -> Trajectory:
        """Along W <- W + G / l_max, until the energy outside the slowest mode has fallen by ``until`` against it.

        vec(G_t) = (I - eta S)^t vec(G_0) is evaluated in the eigenbasis of S, so thousands of steps cost one
        decomposition and nothing is lost to cancellation. ``settled`` is the first point at which the slowest mode
        holds half of |G|_F^2. Raises ValueError where S is singular: the lemma's two eigenvalues are then not apart.
        """
        G = self.gradient(W)
        m, n = G.shape
        values, vectors = np.linalg.eigh(self.operator())
        if values[0] <= 1e-12 * values[-1]:
            raise ValueError("the mean of C (x) B is singular")
        start = vectors.T @ G.flatten("F")
        # log of the decay per step relative to the slowest mode; the fastest mode is gone after one step
        decay = np.log1p(-values[:-1] / values[-1])
        decay = np.append(decay - decay[0], -np.inf)
        times = np.linspace(0.0, np.log(until) / (2.0 * decay[1]), points)
        with np.errstate(invalid="ignore"):
            factors = np.exp(times[:, None] * decay)
        factors[0] = 1.0
        modes = factors * start
        spectra = np.linalg.svd((modes @ vectors.T).reshape(points, n, m), compute_uv=False) ** 2
        slow = np.linalg.svd((vectors[:, 0] * start[0]).reshape(n, m), compute_uv=False) ** 2
        share = modes[:, 0] ** 2 / (modes**2).sum(axis=1)
        excess = factors[:, 1] ** 2 * (start[1:] ** 2).sum() / slow[0]
        return Trajectory(times, spectra.sum(axis=1) / spectra[:, 0], slow.sum() / slow[0] + excess,
                          int(np.argmax(share >= 0.5)))
