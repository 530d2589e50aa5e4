"""The same operations in float64 NumPy, written from the equations and sharing no code with the backends."""

from __future__ import annotations

import numpy as np
from scipy import fft


def lowrank_adam_step(
    W: np.ndarray,
    G: np.ndarray,
    P: np.ndarray,
    M: np.ndarray,
    V: np.ndarray,
    *,
    side: str,
    step: int,
    lr: float,
    alpha: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(W, M, V) after one step of GaLore-Adam; the arguments are left as they are."""
    W, G, P, M, V = (np.asarray(item, dtype=np.float64) for item in (W, G, P, M, V))
    R = P.T @ G if side == "left" else G @ P
    M = betas[0] * M + (1 - betas[0]) * R
    V = betas[1] * V + (1 - betas[1]) * R**2
    rate = lr * np.sqrt(1 - betas[1] ** step) / (1 - betas[0] ** step)
    N = M / (np.sqrt(V) + eps)
    W = W - rate * alpha * (P @ N if side == "left" else N @ P.T)
    return W * (1 - lr * weight_decay), M, V


def dct_rows(A: np.ndarray, by: str) -> np.ndarray:
    """A Q (``matmul``: DCT-III of the rows) or A Q^T (``fft``: DCT-II), by SciPy."""
    kind = 3 if by == "matmul" else 2
    return np.asarray(fft.dct(np.asarray(A, dtype=np.float64), type=kind, norm="ortho", axis=1))


def captured_energy(G: np.ndarray, P: np.ndarray, side: str) -> float:
    """|project(G)|^2 / |G|^2, in [0, 1] for orthonormal P."""
    G, P = np.asarray(G, dtype=np.float64), np.asarray(P, dtype=np.float64)
    R = P.T @ G if side == "left" else G @ P
    return float((R**2).sum() / (G**2).sum())


def best_energy(G: np.ndarray, rank: int) -> float:
    """The largest captured energy of any rank-``rank`` subspace, from the singular values."""
    energies = np.linalg.svd(np.asarray(G, dtype=np.float64), compute_uv=False) ** 2
    return float(energies[:rank].sum() / energies.sum())
