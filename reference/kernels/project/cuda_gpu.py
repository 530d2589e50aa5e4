"""The CUDA C++ backend: float32 on a CUDA device, by the kernels of ``project.cu``."""

from __future__ import annotations

import numpy as np
import torch

from reference.kernels import driver, target
from reference.kernels.project import dispatch, plan
from reference.kernels.project.eager import Norm
from reference.kernels.project.sketch import Sketch

THREADS = 256
COLUMN_THREADS, ROW_THREADS = 32, 8  # as in project.cu
I32, I64, U32, F32 = np.int32, np.int64, np.uint32, np.float32


def adam_moments(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, N: torch.Tensor, betas: tuple[float, float], eps: float
) -> None:
    """Adam's moments of R and its direction N, which may be R, in one pass."""
    n = R.numel()
    aligned = all(tensor.data_ptr() % 16 == 0 for tensor in (R, M, V, N))
    vectors = n // 4 if aligned else 0
    scalars = [F32(value) for value in (betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], eps)]
    if n:
        grid = _grid(max(vectors, n - 4 * vectors), R.device)
        _kernel("adam_moments", R).launch(grid, THREADS, (R, M, V, N, I64(n), I64(vectors), *scalars))


def polynomial(A: torch.Tensor, S: torch.Tensor, a: float, b: float, c: float) -> None:
    """S <- a I + b A + c S for square matrices, in one pass."""
    n = S.shape[0]
    _kernel("polynomial", S).launch(n, THREADS, (A, S, I32(n), F32(a), F32(b), F32(c)))


def column_norms(S: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    """out <- the norms of S's columns, summed in float64, S read once."""
    rows, n = S.shape
    across = -(-n // COLUMN_THREADS)
    parts = plan.parts(rows, across, ROW_THREADS, plan.multiprocessors(S.device))
    sums = target.workspace(S.device, 8 * parts * n)
    sizes = (I64(rows), I32(n), I64(-(-rows // parts)))
    _kernel(f"column_sums_{norm}", S).launch((across, parts), (COLUMN_THREADS, ROW_THREADS), (S, sums, *sizes))
    _kernel(f"finish_norms_{norm}", S).launch(-(-n // THREADS), THREADS, (sums, out, I32(parts), I32(n)))


def gather_columns(S: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> None:
    """out <- S[:, columns] for int32 ``columns``."""
    rows, rank = out.shape
    if out.numel():
        threads = min(THREADS, -(-rank // 32) * 32)
        _kernel("gather_columns", S).launch(rows, threads, (S, columns, out, I32(S.shape[1]), I32(rank)))


def fill_random(out: torch.Tensor, row: int, column: int, sketch: Sketch, scale: float) -> None:
    """out <- the block of the random matrix that starts at (row, column)."""
    rows, n = out.shape
    place = U32(row), U32(column // 4), U32(sketch.step), U32(sketch.seed & 0xFFFFFFFF), U32(sketch.seed >> 32)
    grid = _grid(rows * -(-n // 4), out.device)
    _kernel(f"random_{sketch.kind}", out).launch(grid, THREADS, (out, I64(rows), I32(n), *place, F32(scale)))


def _grid(items: int, device: torch.device) -> int:
    """Blocks for ``items``, a thread each, or as many as the device keeps busy; threads then take several."""
    return max(1, min(-(-items // THREADS), 32 * plan.multiprocessors(device)))


def _kernel(name: str, x: torch.Tensor) -> driver.Kernel:
    return driver.kernel(dispatch.SOURCE, name, x.device)
