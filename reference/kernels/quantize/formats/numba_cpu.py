"""The formats on the CPU, on as many threads as torch uses: who does what.

The loops are in ``numba_books`` and ``numba_uniform``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from reference.kernels.quantize.formats import numba_books, numba_uniform
from reference.kernels.quantize.formats.books import LOG_SHIFT, LogBook
from reference.kernels.quantize.formats.grid import Grid, Layout

Array = np.ndarray
Tensor = torch.Tensor

# Below this many entries starting the threads costs more than they save.
PARALLEL_FROM = 2**16
# Up to so many entries a run stays in the nearest caches between the search for its range and its codes.
FUSED_UP_TO = 2**15

_BITS_OF = {torch.float16: torch.int16, torch.bfloat16: torch.uint16}
_NO_FLOATS, _NO_BYTES = np.empty(0, np.float32), np.empty(0, np.uint8)


def quantize_nf4(x: Tensor, block: int, codes: Tensor, scale: Tensor) -> None:
    """Fill ``codes`` (packed) and ``scale`` (float32[blocks]) from ``x``."""
    arguments = (_array(x), block, codes.numpy(), scale.numpy())
    _run(numba_books.nf4_part, numba_books.nf4_parallel, x.numel(), arguments)


def dequantize_nf4(codes: Tensor, scale: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` with value[code] * scale."""
    arguments = (codes.numpy(), scale.numpy(), block, _array(out))
    _run(numba_books.nf4_values_part, numba_books.nf4_values_parallel, out.numel(), arguments)


def quantize_uniform(
    x: Tensor, noise: Tensor | None, layout: Layout, grid: Grid, given: bool, codes: Tensor, scale: Tensor,
    zero: Tensor | None,
) -> None:
    """Fill ``codes`` (seen as bytes), and ``scale`` and ``zero`` unless they are ``given``."""
    array, scales, zeros = _array(x), scale.numpy(), _bytes(zero)
    integers = np.float32(grid.low), np.float32(grid.high), np.int32(2**grid.bits - 1 if grid.each > 1 else 255)
    fused = layout.runs == layout.period and layout.group <= FUSED_UP_TO
    if not given and not fused:
        _find_scales(array, layout, integers, scales, zeros)
    draws = _NO_FLOATS if noise is None else noise.numpy()
    fit = fused and not given
    arguments = (array, draws, _numbers(layout), integers, grid.each, fit, codes.numpy(), scales, zeros)
    _run(numba_uniform.uniform_part, numba_uniform.uniform_parallel, x.numel(), arguments)


def dequantize_uniform(
    codes: Tensor, scale: Tensor, zero: Tensor | None, layout: Layout, grid: Grid, out: Tensor
) -> None:
    """Fill ``out`` with (code - zero) * scale."""
    arguments = (codes.numpy(), scale.numpy(), _bytes(zero), _numbers(layout), grid.each, grid.bits, _array(out))
    _run(numba_uniform.uniform_values_part, numba_uniform.uniform_values_parallel, out.numel(), arguments)


def quantize_log(x: Tensor, book: LogBook, bits: int, each: int, codes: Tensor) -> None:
    """Fill ``codes`` with the number of thresholds above each entry."""
    del bits
    arguments = (_array(x), book.base, book.thresholds, np.int32(LOG_SHIFT), each, codes.numpy())
    _run(numba_books.log_part, numba_books.log_parallel, x.numel(), arguments)


def dequantize_log(codes: Tensor, table: Tensor, bits: int, each: int, out: Tensor) -> None:
    """Fill ``out`` with table[code]."""
    arguments = (codes.numpy(), table.numpy(), each, bits, _array(out))
    _run(numba_books.table_values_part, numba_books.table_values_parallel, out.numel(), arguments)


def mean_magnitude(x: Tensor) -> float:
    """mean |x|, summed in float64."""
    totals = np.empty(_parts(x.numel()), np.float64)
    _run(numba_books.magnitudes_part, numba_books.magnitudes_parallel, x.numel(), (_array(x), totals))
    return float(totals.sum()) / x.numel()


def quantize_ternary(x: Tensor, threshold: float, mask: Tensor, sign: Tensor) -> tuple[int, float]:
    """Fill the planes; (entries kept, sum of their magnitudes)."""
    parts = _parts(x.numel())
    counts, totals = np.empty(parts, np.int64), np.empty(parts, np.float64)
    arguments = (_array(x), np.float32(threshold), mask.numpy(), sign.numpy(), counts, totals)
    _run(numba_books.ternary_part, numba_books.ternary_parallel, x.numel(), arguments)
    return int(counts.sum()), float(totals.sum())


def dequantize_ternary(mask: Tensor, sign: Tensor, scale: float, out: Tensor) -> None:
    """Fill ``out`` with scale * (mask - 2 * sign)."""
    arguments = (mask.numpy(), sign.numpy(), np.float32(scale), _bit_table(), _array(out))
    _run(numba_books.ternary_values_part, numba_books.ternary_values_parallel, out.numel(), arguments)


def _find_scales(array: Array, layout: Layout, integers: tuple[Any, ...], scales: Array, zeros: Array) -> None:
    """Scales whose runs are many or long: every thread finds extremes of its share, then they are joined."""
    parts = _parts(array.size)
    lows, highs = (np.empty((parts, layout.period), np.int32) for _ in range(2))
    arguments = (array, _numbers(layout), lows, highs)
    _run(numba_uniform.extremes_part, numba_uniform.extremes_parallel, array.size, arguments)
    numba_uniform.fit_scales(lows, highs, integers, scales, zeros)


def _parts(n: int) -> int:
    return 1 if n < PARALLEL_FROM else torch.get_num_threads()


def _run(part: Any, parallel: Any, n: int, arguments: tuple[Any, ...]) -> None:
    """Use as many threads as torch does, for tensors that are worth it."""
    parts = _parts(n)
    if parts == 1:
        part(0, 1, *arguments)
        return
    parallel(parts, *arguments)
    # Numba resets OpenMP's thread count for the whole process when its threads first start.
    if torch.get_num_threads() != parts:
        torch.set_num_threads(parts)


def _array(tensor: Tensor) -> Array:
    """Half types as their bits, which is how the kernels tell them apart."""
    return tensor.view(_BITS_OF.get(tensor.dtype, tensor.dtype)).numpy()


def _bytes(tensor: Tensor | None) -> Array:
    return _NO_BYTES if tensor is None else tensor.numpy()


def _numbers(layout: Layout) -> tuple[int, int, int, int]:
    return layout.length, layout.group, layout.runs_per_row, layout.period


@cache
def _bit_table() -> Array:
    """float32[256, 8]: the bits of a byte, the highest first."""
    return np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
