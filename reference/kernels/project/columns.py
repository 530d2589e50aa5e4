"""Norms of a matrix's columns, the choice of the largest, and the columns chosen."""

from __future__ import annotations

import torch

from reference.kernels.project import dispatch
from reference.kernels.project.eager import Norm


def column_norms(
    S: torch.Tensor, norm: Norm = "l1", *, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """The l1 or l2 norm of each column of S (m x n -> n), in one pass over S. Only l2 ranks by energy.

    Sums are formed in float64 and rounded once, to float64 for float64 S and to float32 for all others: no square
    overflows. A NaN makes its column's norm NaN, an infinity infinite; of no rows the norms are 0. A transposed view
    of a contiguous matrix is read by its rows.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f"norm must be l1 or l2, got {norm!r}")
    if out is None:
        dtype = torch.float64 if S.dtype == torch.float64 else torch.float32
        out = torch.empty(S.shape[1], dtype=dtype, device=S.device)
    turned = S.mT.is_contiguous() and not S.is_contiguous()
    module = dispatch.module(backend, S.mT if turned else S)
    if S.numel() == 0:
        out.zero_()
    elif turned and hasattr(module, "row_norms"):
        module.row_norms(S.mT, norm, out)
    else:
        module.column_norms(S.contiguous() if turned else S, norm, out)
    return out


def top(norms: torch.Tensor, rank: int) -> torch.Tensor:
    """Indices (int32, rising) of the ``rank`` largest norms; NaN counts as largest, of equal ones the first is taken.

    Raises ValueError when there are fewer.
    """
    if rank > norms.numel():
        raise ValueError(f"rank must be at most the {norms.numel()} columns there are, got {rank}")
    kept = torch.sort(norms, descending=True, stable=True).indices[:rank]
    return kept.sort().values.to(torch.int32)


def select_top(S: torch.Tensor, rank: int, norm: Norm = "l1", *, backend: str = "auto") -> torch.Tensor:
    """:func:`top` of the :func:`column_norms` of S.

    With ``norm="l2"`` the kept columns hold at least rank/n of |S|_F^2; l1 carries no such guarantee.
    """
    return top(column_norms(S, norm, backend=backend), rank)


def gather_columns(
    S: torch.Tensor, columns: torch.Tensor, *, out: torch.Tensor | None = None, backend: str = "auto"
) -> torch.Tensor:
    """S[:, columns] for int32 ``columns``, each in [0, n)."""
    if out is None:
        out = S.new_empty(S.shape[0], columns.numel())
    dispatch.module(backend, S).gather_columns(S, columns, out)
    return out
