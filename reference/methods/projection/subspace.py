"""The subspace that a gradient is projected on: how it is stored, applied and chosen.

Three kinds, one interface: ``project(G)`` gives the low-rank gradient R, ``subtract(W, N, step, keep)`` takes the step
W <- keep * (W - step * back(N)), ``back(N)`` is the full-size image.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Literal

import torch

from reference.kernels import project as kernels
from reference.kernels.project import Side

ProjType = Literal["std", "reverse_std", "left", "right", "full"]
Projector = Literal["svd", "gram", "range_finder", "random", "dct"]


@dataclass(frozen=True)
class OneSided:
    """A stored P with orthonormal columns on one side."""

    side: Side
    P: torch.Tensor

    def basis(self) -> torch.Tensor:
        """P."""
        return self.P

    def project(self, G: torch.Tensor) -> torch.Tensor:
        """R = P^T G or G P."""
        return kernels.project(G, self.P, self.side)

    def back(self, N: torch.Tensor) -> torch.Tensor:
        """P N or N P^T."""
        return kernels.back_project(N, self.P, self.side)

    def subtract(self, W: torch.Tensor, N: torch.Tensor, step: float, keep: float) -> None:
        """W <- keep * (W - step * back(N)), in place."""
        kernels.update_weight(W, N, self.P, self.side, step, keep)


@dataclass(frozen=True)
class SelectedColumns:
    """Columns of a fixed basis that is shared between parameters; only r int32 indices belong to this one."""

    side: Side
    columns: torch.Tensor
    table: torch.Tensor

    def basis(self) -> torch.Tensor:
        """P = table[:, columns], gathered anew."""
        return self.table.index_select(1, self.columns)

    def project(self, G: torch.Tensor) -> torch.Tensor:
        """R = P^T G or G P."""
        return kernels.project(G, self.basis(), self.side)

    def back(self, N: torch.Tensor) -> torch.Tensor:
        """P N or N P^T."""
        return kernels.back_project(N, self.basis(), self.side)

    def subtract(self, W: torch.Tensor, N: torch.Tensor, step: float, keep: float) -> None:
        """W <- keep * (W - step * back(N)), in place."""
        kernels.update_weight(W, N, self.basis(), self.side, step, keep)


@dataclass(frozen=True)
class TwoSided:
    """``proj_type="full"``: R = U^T G V with U m x r and V n x r."""

    U: torch.Tensor
    V: torch.Tensor

    def project(self, G: torch.Tensor) -> torch.Tensor:
        """R = U^T G V, r x r."""
        return self.U.mT @ G @ self.V

    def back(self, N: torch.Tensor) -> torch.Tensor:
        """U N V^T."""
        return self.U @ N @ self.V.mT

    def subtract(self, W: torch.Tensor, N: torch.Tensor, step: float, keep: float) -> None:
        """W <- keep * (W - step * back(N)), in place."""
        kernels.update_weight(W, self.U @ N, self.V, "right", step, keep)


Subspace = OneSided | SelectedColumns | TwoSided


@dataclass(frozen=True)
class Choice:
    """What a parameter group says about its subspaces.

    ``rank`` is capped by the projected side. ``norm`` and ``by`` belong to the DCT; ``oversample`` and
    ``power_iterations`` to the randomized range finder.
    """

    rank: int
    proj_type: ProjType = "std"
    projector: Projector = "svd"
    norm: Literal["l1", "l2"] = "l1"
    by: Literal["matmul", "fft"] = "matmul"
    oversample: int = 8
    power_iterations: int = 1

    def side(self, m: int, n: int) -> Side:
        """The projected side of an m x n gradient; decided on its shape, never on the low-rank one."""
        if self.proj_type == "full":
            raise ValueError("proj_type 'full' projects both sides")
        if self.proj_type in ("left", "right"):
            return self.proj_type
        small = kernels.small_side(m, n)
        if self.proj_type == "std":
            return small
        return "left" if small == "right" else "right"

    def low_rank_shape(self, m: int, n: int) -> tuple[int, int]:
        """The shape of R, and so of the moments."""
        if self.proj_type == "full":
            rank = min(self.rank, m, n)
            return rank, rank
        # a thin SVD has min(m, n) vectors, also on the larger side
        rank = min(self.rank, m, n)
        return (rank, n) if self.side(m, n) == "left" else (m, rank)


Tables = MutableMapping[tuple[object, ...], torch.Tensor]


def choose(
    G: torch.Tensor, choice: Choice, tables: Tables, generator: torch.Generator | None = None
) -> tuple[Subspace, torch.Tensor]:
    """A subspace for G and the projected gradient R. ``tables`` holds fixed bases and is filled on first use."""
    m, n = G.shape
    rank = min(choice.rank, m, n)
    if choice.proj_type == "full":
        both = TwoSided(_basis(G, rank, "left", choice, generator), _basis(G, rank, "right", choice, generator))
        return both, both.project(G)
    side = choice.side(m, n)
    if choice.projector == "dct":
        table = dct_table(tables, m if side == "left" else n, choice.by, G)
        stored = table if choice.by == "matmul" else None
        R, columns = kernels.dct_select(G, rank, side, choice.norm, choice.by, stored)
        return SelectedColumns(side, columns, table), R
    subspace = OneSided(side, _basis(G, rank, side, choice, generator))
    return subspace, subspace.project(G)


def dct_table(tables: Tables, length: int, by: Literal["matmul", "fft"], like: torch.Tensor) -> torch.Tensor:
    """The DCT basis of one side length, built once for all parameters of that size, dtype and device."""
    key = ("dct", length, by, like.dtype, like.device)
    if key not in tables:
        tables[key] = kernels.dct_basis(length, by, like.dtype, like.device)
    return tables[key]


def _basis(
    G: torch.Tensor, rank: int, side: Side, choice: Choice, generator: torch.Generator | None
) -> torch.Tensor:
    if choice.projector == "svd":
        return kernels.svd_basis(G, rank, side)
    if choice.projector == "gram":
        return kernels.gram_basis(G, rank, side)
    if choice.projector == "random":
        return kernels.random_basis(G, rank, side, generator)
    if choice.projector == "range_finder":
        return kernels.range_finder(G, rank, side, choice.oversample, choice.power_iterations, generator)
    raise ValueError(f"projector {choice.projector!r} has no basis for proj_type {choice.proj_type!r}")
