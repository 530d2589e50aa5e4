"""The Numba backend: float32 on the CPU, on as many threads as torch uses. The loops are in ``numba_kernels``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from reference.kernels.project import numba_kernels as kernels
from reference.kernels.project.eager import Norm
from reference.kernels.project.sketch import Sketch

# Elements below which a second thread costs more than it brings.
GRAIN = 2**15
KINDS = {"gaussian": kernels.GAUSSIAN, "rademacher": kernels.RADEMACHER, "sparse": kernels.SPARSE}
POWERS = {"l1": kernels.L1, "l2": kernels.L2}

F32 = np.float32


def adam_moments(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, N: torch.Tensor, betas: tuple[float, float], eps: float
) -> None:
    """Adam's moments of R and its direction N, which may be R, in one pass."""
    # 1 - b is rounded after the subtraction: 1 - float32(0.999) would be off by 5e-5
    scalars = [F32(value) for value in (betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], eps)]
    arrays = [_flat(tensor) for tensor in (R, M, V)]
    if N.data_ptr() == R.data_ptr():
        _run(kernels.adam_in_place_part, kernels.adam_in_place_parallel, R.numel(), *arrays, *scalars)
    else:
        _run(kernels.adam_part, kernels.adam_parallel, R.numel(), *arrays, _flat(N), *scalars)


def subtract(W: torch.Tensor, B: torch.Tensor, keep: float, step: float) -> None:
    """W <- keep W - step B in one pass."""
    _run(kernels.subtract_part, kernels.subtract_parallel, W.numel(), _flat(W), _flat(B), F32(keep), F32(step))


def polynomial(A: torch.Tensor, S: torch.Tensor, a: float, b: float, c: float) -> None:
    """S <- a I + b A + c S for square matrices, in one pass."""
    _run(kernels.polynomial_part, kernels.polynomial_parallel, S.numel(), _array(A), _array(S), F32(a), F32(b), F32(c))


def column_norms(S: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    """out <- the norms of S's columns, summed in float64: by rows in one pass, never across the rows."""
    _norms(kernels.column_sums_part, kernels.column_sums_parallel, S.numel(), norm, out, S.shape[1], _array(S))


def row_norms(S: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    """out <- the norms of S's rows, summed in float64."""
    sums = np.empty((1, S.shape[0]), np.float64)
    _run(kernels.row_sums_part, kernels.row_sums_parallel, S.numel(), _array(S), POWERS[norm], sums)
    kernels.finish_norms(1, sums, POWERS[norm], _array(out))


def gather_columns(S: torch.Tensor, columns: torch.Tensor, out: torch.Tensor) -> None:
    """out <- S[:, columns] for int32 ``columns``."""
    _run(kernels.gather_part, kernels.gather_parallel, out.numel(), _array(S), _array(columns), _array(out))


def makhoul_order(A: torch.Tensor, out: torch.Tensor) -> None:
    """out <- each row's even entries, then its odd ones backwards."""
    _run(kernels.makhoul_part, kernels.makhoul_parallel, A.numel(), _array(A), _array(out))


def spectrum_norms(F: torch.Tensor, low: torch.Tensor, high: torch.Tensor, norm: Norm, out: torch.Tensor) -> None:
    """Norms of the DCT's columns from the spectrum F, without the DCT; see ``numba_kernels.spectrum_sums_part``.

    ``out`` holds the norms of the bins, then those of their mirrors.
    """
    part, parallel = kernels.spectrum_sums_part, kernels.spectrum_sums_parallel
    _norms(part, parallel, 2 * F.numel(), norm, out, out.numel(), _reals(F), _array(low), _array(high))


def spectrum_gather(
    F: torch.Tensor, bins: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor, out: torch.Tensor
) -> None:
    """out[:, j] <- cosine[j] Re F[:, bins[j]] + sine[j] Im F[:, bins[j]]."""
    arrays = [_array(tensor) for tensor in (bins, cosine, sine, out)]
    _run(kernels.spectrum_gather_part, kernels.spectrum_gather_parallel, out.numel(), _reals(F), *arrays)


def fill_random(out: torch.Tensor, row: int, column: int, sketch: Sketch, scale: float) -> None:
    """out <- the block of the random matrix that starts at (row, column)."""
    keys = np.uint32(sketch.seed & 0xFFFFFFFF), np.uint32(sketch.seed >> 32)
    _run(
        kernels.random_part, kernels.random_parallel, out.numel(),
        _array(out), row, column, sketch.step, *keys, KINDS[sketch.kind], F32(scale),
    )


def parts_of(elements: int) -> int:
    """How many threads ``elements`` are worth."""
    return max(1, min(torch.get_num_threads(), elements // GRAIN))


def _norms(part: Any, parallel: Any, elements: int, norm: Norm, out: torch.Tensor, length: int, *arrays: Any) -> None:
    parts = parts_of(elements)
    sums = np.empty((parts, length), np.float64)
    _run(part, parallel, elements, *arrays, POWERS[norm], sums)
    kernels.finish_norms(parts, sums, POWERS[norm], _array(out))


def _run(part: Callable[..., None], parallel: Callable[..., None], elements: int, *arguments: Any) -> None:
    parts = parts_of(elements)
    if parts == 1:
        part(0, 1, *arguments)
        return
    threads = torch.get_num_threads()
    parallel(parts, *arguments)
    # Numba resets OpenMP's thread count for the whole process when its threads first start.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _array(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().numpy()
    return array


def _flat(tensor: torch.Tensor) -> np.ndarray:
    return _array(tensor).reshape(-1)


def _reals(F: torch.Tensor) -> np.ndarray:
    return _array(torch.view_as_real(F)).reshape(F.shape[0], -1)
