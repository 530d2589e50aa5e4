"""One refresh of a subspace, by every method under one signature: choose P for G and project G on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch

from reference.kernels.project import cost, truth
from reference.kernels.project.bases import gram_basis, power_basis, range_finder, svd_basis
from reference.kernels.project.dct import By, dct_basis, dct_select
from reference.kernels.project.eager import Side, project, small_side


@dataclass(frozen=True)
class Refreshed:
    """The projected gradient R and its basis: a matrix, or indices of columns of the fixed basis of ``by``."""

    R: torch.Tensor
    side: Side
    basis: torch.Tensor
    by: By | None = None

    def columns(self, G: np.ndarray) -> np.ndarray:
        """P in float64 for the gradient it was chosen for."""
        if self.by is None:
            return self.basis.double().cpu().numpy()
        length = G.shape[0] if self.side == "left" else G.shape[1]
        return dct_basis(length, self.by, torch.float64).numpy()[:, self.basis.cpu().numpy()]


@dataclass(frozen=True)
class Refresh:
    """A method: ``run(G, rank, table)`` refreshes, ``flops(m, n, rank)`` is its cost.

    ``table`` is the stored DCT matrix of G's smaller side, made before; only the DCT by GEMM reads it. ``best`` says
    what the method promises to maximise: the captured energy, the l1 norm of the kept columns, or neither exactly.
    """

    run: Callable[[torch.Tensor, int, torch.Tensor], Refreshed]
    flops: Callable[[int, int, int], float]
    best: Literal["energy", "l1", "neither"]


def _of(basis: Callable[[torch.Tensor, int, Side], torch.Tensor]) -> Callable[..., Refreshed]:
    def run(G: torch.Tensor, rank: int, table: torch.Tensor) -> Refreshed:
        side = small_side(*G.shape)
        P = basis(G, rank, side)
        return Refreshed(project(G, P, side), side, P)

    return run


def _dct(by: By) -> Callable[..., Refreshed]:
    def run(G: torch.Tensor, rank: int, table: torch.Tensor) -> Refreshed:
        side = small_side(*G.shape)
        R, columns = dct_select(G, rank, side, "l1", by, table if by == "matmul" else None)
        return Refreshed(R, side, columns, by)

    return run


REFRESHES: Mapping[str, Refresh] = MappingProxyType({
    "svd": Refresh(_of(svd_basis), lambda m, n, r: cost.svd_flops(m, n) + 2.0 * m * n * r, "energy"),
    "gram": Refresh(_of(gram_basis), cost.gram_flops, "energy"),
    "range_finder": Refresh(_of(range_finder), cost.range_finder_flops, "neither"),
    "qr_power": Refresh(_of(power_basis), cost.power_flops, "neither"),
    "dct_matmul": Refresh(_dct("matmul"), lambda m, n, r: cost.dct_matmul_flops(m, n), "l1"),
    "dct_fft": Refresh(_dct("fft"), lambda m, n, r: cost.dct_fft_flops(m, n), "l1"),
})


def refresh_error(refreshed: Refreshed, G: np.ndarray, best: Literal["energy", "l1", "neither"]) -> float:
    """How far a refresh is from its promises, for G in float64: the largest of three faults.

    |P^T P - I| entrywise; |R - project(G, P)|_F / |G|_F; and the relative shortfall of what ``best`` names, against
    the optimum computed in float64. NaN in R or P gives NaN.
    """
    P, R = refreshed.columns(G), refreshed.R.double().cpu().numpy()
    skew = float(np.abs(P.T @ P - np.eye(P.shape[1])).max())
    exact = P.T @ G if refreshed.side == "left" else G @ P
    if R.shape != exact.shape:
        return float("inf")
    stray = float(np.linalg.norm(R - exact) / np.linalg.norm(G))
    rank, missing = P.shape[1], 0.0
    if best == "energy":
        missing = 1.0 - truth.captured_energy(G, P, refreshed.side) / truth.best_energy(G, rank)
    elif best == "l1":
        assert refreshed.by is not None
        S = np.abs(truth.dct_rows(G.T if refreshed.side == "left" else G, refreshed.by)).sum(axis=0)
        missing = 1.0 - float(S[refreshed.basis.cpu().numpy()].sum() / np.sort(S)[-rank:].sum())
    faults = np.array([skew, stray, missing])
    return float("nan") if np.isnan(faults).any() else float(faults.max())


def gradient_like(n: int, columns: int, random: np.random.Generator) -> torch.Tensor:
    """An n x columns float32 matrix with a spectrum that falls like a gradient's, plus noise."""
    inner = max(2, min(n, columns) // 8)
    weights = (1.0 + np.arange(inner)) ** -0.5
    low = (random.standard_normal((n, inner)) * weights) @ random.standard_normal((inner, columns))
    return torch.from_numpy((low + random.standard_normal((n, columns))).astype(np.float32))
