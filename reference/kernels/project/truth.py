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


def adam_moments(
    R: np.ndarray, M: np.ndarray, V: np.ndarray, betas: tuple[float, float], eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(M, V, N) after R was taken in."""
    R, M, V = (np.asarray(item, dtype=np.float64) for item in (R, M, V))
    M = betas[0] * M + (1 - betas[0]) * R
    V = betas[1] * V + (1 - betas[1]) * R**2
    return M, V, M / (np.sqrt(V) + eps)


def column_norms(S: np.ndarray, norm: str) -> np.ndarray:
    """The l1 or l2 norm of each column."""
    S = np.asarray(S, dtype=np.float64)
    return np.abs(S).sum(axis=0) if norm == "l1" else np.sqrt((S * S).sum(axis=0))


def philox(counters: np.ndarray, seed: int) -> np.ndarray:
    """Philox4x32-10 (Salmon et al. 2011, section 3.3) on (..., 4) counters: (..., 4) words in uint64."""
    c = np.asarray(counters, dtype=np.uint64)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for turn in range(10):
        keys = [np.uint64((part + turn * weyl) % 2**32)
                for part, weyl in ((seed % 2**32, 0x9E3779B9), (seed >> 32, 0xBB67AE85))]
        a, b = c[..., 0] * np.uint64(0xD2511F53), c[..., 2] * np.uint64(0xCD9E8D57)
        first, third = (b >> shift) ^ c[..., 1] ^ keys[0], (a >> shift) ^ c[..., 3] ^ keys[1]
        c = np.stack((first, b & low, third, a & low), axis=-1)
    return c


def random_matrix(length: int, rank: int, seed: int, step: int, kind: str) -> np.ndarray:
    """Omega, ``length`` x ``rank``."""
    quads = -(-rank // 4)
    counters = np.zeros((length, quads, 4), np.uint64)
    counters[..., 0], counters[..., 1] = np.arange(length)[:, None], np.arange(quads)[None, :]
    counters[..., 2] = step
    words = philox(counters, seed)
    if kind == "gaussian":
        upper = (words >> np.uint64(8)).astype(np.float64)
        radius = np.sqrt(-2 * np.log((upper[..., 0::2] + 1) / 2**24))
        turns = upper[..., 1::2] / 2**24
        entries = np.stack((radius * _cosine_of_turns(turns), radius * _cosine_of_turns(turns - 0.25)), axis=-1)
    elif kind == "rademacher":
        entries = np.where(words < 2**31, 1.0, -1.0)
    else:
        sixth = -(-(2**32) // 6)
        entries = np.sqrt(3) * ((words < sixth).astype(np.float64) - (words >= 2**32 - sixth))
    return entries.reshape(length, 4 * quads)[:, :rank] / np.sqrt(rank)


def _cosine_of_turns(turns: np.ndarray) -> np.ndarray:
    """cos(2 pi t), with zeros where they are."""
    distance = np.abs(turns - np.round(turns))
    return np.where(distance == 0.25, 0.0, np.cos(2 * np.pi * distance))


def newton_schulz(G: np.ndarray, steps: int, coefficients: tuple[float, float, float], eps: float) -> np.ndarray:
    """U p(...p(S / (|G|_F + eps))) V^T: the iteration on the singular values alone."""
    U, S, Vh = np.linalg.svd(np.asarray(G, dtype=np.float64), full_matrices=False)
    S = S / (np.sqrt((S * S).sum()) + eps)
    for _ in range(steps):
        S = coefficients[0] * S + coefficients[1] * S**3 + coefficients[2] * S**5
    return np.asarray((U * S) @ Vh)


def polar(G: np.ndarray) -> np.ndarray:
    """U V^T: the semi-orthogonal matrix nearest to G."""
    U, _, Vh = np.linalg.svd(np.asarray(G, dtype=np.float64), full_matrices=False)
    return np.asarray(U @ Vh)


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
