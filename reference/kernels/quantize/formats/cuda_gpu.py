"""NF4 and uniform codes by the kernels of ``formats.cu``; the other formats have none (see ``support.kernels``)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from reference.kernels import driver
from reference.kernels.quantize.formats.books import NF4_MIDPOINTS, NF4_VALUES
from reference.kernels.quantize.formats.grid import Grid, Layout
from reference.kernels.quantize.formats.support import SOURCE

Tensor = torch.Tensor

# As in formats.cu: a thread holds EACH entries.
THREADS, EACH = 512, 8
_SUFFIXES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def quantize_nf4(x: Tensor, block: int, codes: Tensor, scale: Tensor) -> None:
    """Fill ``codes`` (packed) and ``scale`` (float32[blocks]) from ``x``."""
    n, midpoints = np.int64(x.numel()), _table(NF4_MIDPOINTS, x.device)
    _launch("nf4_quantize", x, (x, midpoints, codes, scale, n, _log2(block), _aligned(x, codes)))


def dequantize_nf4(codes: Tensor, scale: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` with value[code] * scale."""
    n, values = np.int64(out.numel()), _table(NF4_VALUES, out.device)
    _launch("nf4_dequantize", out, (codes, scale, values, out, n, _log2(block), _aligned(out, codes)))


def quantize_uniform(
    x: Tensor, noise: Tensor | None, layout: Layout, grid: Grid, given: bool, codes: Tensor, scale: Tensor,
    zero: Tensor | None,
) -> None:
    """Fill ``codes`` (seen as bytes), ``scale`` and ``zero``, of groups of 32, 64, ... 4096 that fill their rows."""
    assert noise is None and not given  # the caller has asked for another backend
    zeros, symmetric = (scale, 1) if zero is None else (zero, 0)  # a pointer is needed even where none is used
    arguments = (
        x, codes, scale, zeros, np.int64(x.numel()), _log2(layout.group), np.int32(grid.bits), np.int32(symmetric),
        np.float32(grid.low), np.float32(grid.high), _aligned(x, codes),
    )
    _launch("groups_quantize", x, arguments)


def dequantize_uniform(
    codes: Tensor, scale: Tensor, zero: Tensor | None, layout: Layout, grid: Grid, out: Tensor
) -> None:
    """Fill ``out`` with (code - zero) * scale; any layout."""
    zeros, symmetric = (scale, 1) if zero is None else (zero, 0)
    numbers = (out.numel(), layout.length, layout.group, layout.runs_per_row, layout.period)
    arguments = (
        codes, scale, zeros, out, *map(np.int64, numbers), np.int32(8 // grid.each), np.int32(symmetric),
        _aligned(out, codes),
    )
    _launch("uniform_dequantize", out, arguments)


def _launch(name: str, values: Tensor, arguments: tuple[driver.Argument, ...]) -> None:
    kernel = driver.kernel(SOURCE, f"{name}_{_SUFFIXES[values.dtype]}", values.device)
    kernel.launch(-(-values.numel() // (THREADS * EACH)), THREADS, arguments)


def _aligned(values: Tensor, codes: Tensor) -> np.int32:
    """Whether threads may read and write 16 bytes of ``values`` and 4 bytes of ``codes`` at once."""
    return np.int32(values.data_ptr() % 16 == 0 and codes.data_ptr() % 4 == 0)


def _log2(size: int) -> np.int32:
    return np.int32(size.bit_length() - 1)


@cache
def _table(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32, device=device)
