"""The formats in Triton: how much a program does; the kernels are in ``triton_kernels``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from reference.kernels.quantize.formats import eager, triton_kernels
from reference.kernels.quantize.formats.books import LogBook
from reference.kernels.quantize.formats.grid import Grid, Layout

Tensor = torch.Tensor

TILE = 2048  # entries of a program that holds whole blocks, where a block is not larger
ENTRIES = 2048  # entries of a program elsewhere
GROUPS = tuple(2**power for power in range(3, 13))
INDEX_LIMIT = 2**31 - 2 * ENTRIES


def quantize_nf4(x: Tensor, block: int, codes: Tensor, scale: Tensor) -> None:
    """Fill ``codes`` (packed) and ``scale`` (float32[blocks]) from ``x``."""
    rows = max(1, TILE // block)
    _launch(triton_kernels.nf4_tiles, x, -(-scale.numel() // rows), x, codes, scale, x.numel(), ROWS=rows, BLOCK=block)


def dequantize_nf4(codes: Tensor, scale: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` with value[code] * scale."""
    n, shift, each = out.numel(), block.bit_length() - 1, ENTRIES // 2
    programs = -(-codes.numel() // each)
    _launch(triton_kernels.nf4_values, out, programs, codes, scale, out, n, shift, BYTES=each, WIDE=_wide(n))


def quantize_uniform(
    x: Tensor, noise: Tensor | None, layout: Layout, grid: Grid, given: bool, codes: Tensor, scale: Tensor,
    zero: Tensor | None,
) -> None:
    """Fill ``codes`` (seen as bytes), and ``scale`` and ``zero`` unless they are ``given``.

    Groups of 8, 16, ... 4096 that fill their rows take one pass over ``x``; for other layouts torch finds the ranges.
    """
    n, mask = x.numel(), 2**grid.bits - 1 if grid.each > 1 else 255
    zeros = scale if zero is None else zero  # a pointer is needed even where none is used
    fused = layout.runs == layout.period and layout.group in GROUPS and layout.aligned(grid.each)
    if fused and not given and noise is None:
        rows = max(1, TILE // layout.group)
        _launch(
            triton_kernels.groups_tiles, x, -(-layout.period // rows), x, codes, scale, zeros, n, grid.low, grid.high,
            mask, ROWS=rows, GROUP=layout.group, EACH=grid.each, SYMMETRIC=grid.symmetric,
        )
        return
    if not given:
        eager.fit_uniform(*eager.extremes(x, layout), grid, scale, zero)
    each = ENTRIES // grid.each
    _launch(
        triton_kernels.encode, x, -(-codes.numel() // each), x, scale if noise is None else noise, scale, zeros, codes,
        n, *_numbers(layout), grid.low, grid.high, mask, EACH=grid.each, NOISE=noise is not None,
        SYMMETRIC=grid.symmetric, BYTES=each, WIDE=_wide(n),
    )


def dequantize_uniform(
    codes: Tensor, scale: Tensor, zero: Tensor | None, layout: Layout, grid: Grid, out: Tensor
) -> None:
    """Fill ``out`` with (code - zero) * scale."""
    zeros = scale if zero is None else zero
    _launch(
        triton_kernels.decode, out, _programs(out), codes, scale, zeros, out, out.numel(), *_numbers(layout),
        EACH=grid.each, SYMMETRIC=grid.symmetric, ENTRIES=ENTRIES, WIDE=_wide(out.numel()),
    )


def quantize_log(x: Tensor, book: LogBook, bits: int, each: int, codes: Tensor) -> None:
    """Fill ``codes`` with the number of thresholds above each entry."""
    del bits
    steps, share = book.levels.bit_length(), ENTRIES // each
    thresholds = torch.full((2**steps - 1,), -torch.inf)
    thresholds[: book.levels] = torch.from_numpy(book.thresholds[:-1])
    _launch(
        triton_kernels.log_codes, x, -(-codes.numel() // share), x, thresholds.to(x.device), codes, x.numel(),
        STEPS=steps, EACH=each, BYTES=share, WIDE=_wide(x.numel()),
    )


def dequantize_log(codes: Tensor, table: Tensor, bits: int, each: int, out: Tensor) -> None:
    """Fill ``out`` with table[code]."""
    del bits
    n, constants = out.numel(), {"EACH": each, "ENTRIES": ENTRIES, "WIDE": _wide(out.numel())}
    _launch(triton_kernels.table_values, out, _programs(out), codes, table, out, n, **constants)


def mean_magnitude(x: Tensor) -> float:
    """mean |x|, summed in float64."""
    return eager.mean_magnitude(x)


def quantize_ternary(x: Tensor, threshold: float, mask: Tensor, sign: Tensor) -> tuple[int, float]:
    """Fill the planes; (entries kept, sum of their magnitudes)."""
    share = ENTRIES // 8
    programs = -(-mask.numel() // share)
    counts = torch.empty(programs, dtype=torch.int32, device=x.device)
    totals = torch.empty(programs, dtype=torch.float64, device=x.device)
    _launch(
        triton_kernels.ternary_planes, x, programs, x, mask, sign, counts, totals, x.numel(), threshold, BYTES=share
    )
    return int(counts.sum()), float(totals.sum())


def dequantize_ternary(mask: Tensor, sign: Tensor, scale: float, out: Tensor) -> None:
    """Fill ``out`` with scale * (mask - 2 * sign)."""
    n = out.numel()
    _launch(
        triton_kernels.ternary_values, out, _programs(out), mask, sign, out, n, scale, ENTRIES=ENTRIES, WIDE=_wide(n)
    )


def _launch(kernel: Any, tensor: Tensor, programs: int, *arguments: Any, **constants: Any) -> None:
    """Triton launches on the current device: make it the tensor's."""
    current: AbstractContextManager[Any] = torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
    with current:
        kernel[(programs,)](*arguments, **constants, num_warps=8, enable_fp_fusion=False)


def _programs(out: Tensor) -> int:
    return -(-out.numel() // ENTRIES)


def _wide(n: int) -> bool:
    return n > INDEX_LIMIT


def _numbers(layout: Layout) -> tuple[int, int, int, int]:
    return layout.length, layout.group, layout.runs_per_row, layout.period
