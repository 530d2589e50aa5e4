"""The Triton backend: launches of ``triton_kernels``; block sizes are plain functions of the shape and the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from reference.kernels import target
from reference.kernels.project import plan
from reference.kernels.project import triton_kernels as kernels
from reference.kernels.project.eager import Norm
from reference.kernels.project.sketch import KINDS, Sketch

ENTRIES = 1024  # of an elementwise program
ROWS, COLUMNS = 8, 128  # of a tile of column sums


def adam_moments(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, N: torch.Tensor, betas: tuple[float, float], eps: float
) -> None:
    """Adam's moments of R and its direction N, which may be R, in one pass."""
    n = R.numel()
    if n:
        with _current(R):
            kernels.adam_moments[(-(-n // ENTRIES),)](
                R, M, V, N, n, betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], eps, BLOCK=ENTRIES
            )


def polynomial(A: torch.Tensor, S: torch.Tensor, a: float, b: float, c: float) -> None:
    """S <- a I + b A + c S for square matrices, in one pass."""
    n = S.shape[0]
    with _current(S):
        kernels.polynomial[(n,)](A, S, n, a, b, c, BLOCK=plan.power_of_two(n, 64, ENTRIES))


def column_norms(S: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    """out <- the norms of S's columns, summed in float64, S read once."""
    rows, n = S.shape
    across, squares = -(-n // COLUMNS), norm == "l2"
    parts = plan.parts(rows, across, ROWS, plan.multiprocessors(S.device))
    sums = _scratch(S.device, 8 * parts * n).view(torch.float64)
    with _current(S):
        kernels.column_sums[(across, parts)](
            S, sums, rows, n, -(-rows // parts), SQUARES=squares, ROWS=ROWS, COLUMNS=COLUMNS
        )
        kernels.finish_norms[(across,)](sums, out, parts, n, SQUARES=squares, BLOCK=COLUMNS)


def gather_columns(S: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> None:
    """out <- S[:, columns] for int32 ``columns``."""
    rows, rank = out.shape
    if out.numel():
        block = plan.power_of_two(rank, 32, ENTRIES)
        with _current(S):
            kernels.gather_columns[(rows, -(-rank // block))](S, columns, out, S.shape[1], rank, BLOCK=block)


def fill_random(out: torch.Tensor, row: int, column: int, sketch: Sketch, scale: float) -> None:
    """out <- the block of the random matrix that starts at (row, column)."""
    rows, n = out.shape
    quads = plan.power_of_two(-(-n // 4), 8, 256)
    with _current(out):
        kernels.random_block[(rows, -(-n // (4 * quads)))](
            out, n, row, column // 4, sketch.step, sketch.seed, scale, KIND=KINDS.index(sketch.kind), QUADS=quads,
            num_warps=1 if quads <= 32 else 4,
        )


def _scratch(device: torch.device, size_bytes: int) -> torch.Tensor:
    if device.type == "cuda":
        return target.workspace(device, size_bytes)[: size_bytes // 8 * 8]
    return torch.empty(size_bytes, dtype=torch.uint8)  # the interpreter


def _current(x: torch.Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
