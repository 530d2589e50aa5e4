"""The formats in plain torch: any device, no fusion, the readable version.

Operations and their order are those of the fused backends, each rounded to float32 by itself, so that codes and scales
agree bit for bit. Everything is flat; results go into the tensors that are passed.
"""

from __future__ import annotations

import torch

from reference.kernels.quantize.formats.books import NF4_MIDPOINTS, NF4_SMALLEST, NF4_VALUES, NF4_ZERO, LogBook
from reference.kernels.quantize.formats.grid import SMALLEST_SCALE, Grid, Layout
from reference.kernels.quantize.formats.packing import pack_codes, unpack_codes

Tensor = torch.Tensor


def quantize_nf4(x: Tensor, block: int, codes: Tensor, scale: Tensor) -> None:
    """Fill ``codes`` (packed) and ``scale`` (float32[blocks]) from ``x``."""
    rows = torch.nn.functional.pad(x.float(), (0, -x.numel() % block)).view(-1, block)
    # NaN is the largest of all for amax, so one NaN makes its block's scale NaN.
    scale.copy_(rows.abs().amax(1))
    inverse = 1 / scale.clamp(min=NF4_SMALLEST)
    midpoints = torch.tensor(NF4_MIDPOINTS, device=x.device)
    # bucketize counts the midpoints strictly below each value.
    found = torch.bucketize(rows * inverse[:, None], midpoints)
    found = torch.where(torch.isfinite(scale)[:, None], found, NF4_ZERO)
    codes.copy_(pack_codes(found.reshape(-1)[: x.numel()].byte(), 4, fill=NF4_ZERO))


def dequantize_nf4(codes: Tensor, scale: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` with value[code] * scale."""
    values = torch.tensor(NF4_VALUES, device=out.device)[unpack_codes(codes, 4, out.numel()).long()]
    out.copy_(values * scale.repeat_interleave(block)[: out.numel()])


def quantize_uniform(
    x: Tensor, noise: Tensor | None, layout: Layout, grid: Grid, given: bool, codes: Tensor, scale: Tensor,
    zero: Tensor | None,
) -> None:
    """Fill ``codes`` (seen as bytes), and ``scale`` and ``zero`` unless they are ``given``."""
    values = x.float()
    if not given:
        fit_uniform(*extremes(values, layout), grid, scale, zero)
    index = scale_index(layout, x.device)
    value = values * (1 / scale)[index]
    if noise is None:
        value = value.round()
    else:
        whole = value.floor()
        value = whole + (noise < value - whole)
    if zero is not None:
        value = value + zero.float()[index]
    value = value.clamp(grid.low, grid.high).nan_to_num(nan=grid.low)
    whole = value.to(torch.int16).bitwise_and(2**grid.bits - 1 if grid.each > 1 else 255).byte()
    codes.copy_(whole if grid.each == 1 else pack_codes(whole, grid.bits))


def dequantize_uniform(
    codes: Tensor, scale: Tensor, zero: Tensor | None, layout: Layout, grid: Grid, out: Tensor
) -> None:
    """Fill ``out`` with (code - zero) * scale."""
    whole = (codes if grid.each == 1 else unpack_codes(codes, grid.bits, out.numel())).float()
    index = scale_index(layout, out.device)
    if zero is not None:
        whole = whole - zero.float()[index]
    else:
        turn = 2 ** (grid.bits if grid.each > 1 else 8)
        whole = torch.where(whole >= turn / 2, whole - turn, whole)
    out.copy_(whole * scale[index])


def extremes(values: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
    """(smallest, largest) entry of each scale's runs, float32[period]; NaN where there is one."""
    rows = values.view(-1, layout.length)
    missing = -layout.length % layout.group
    low, high = (
        torch.nn.functional.pad(rows, (0, missing), value=filler).view(-1, layout.group)
        if missing else rows.view(-1, layout.group) for filler in (float("inf"), float("-inf"))
    )
    ends = low.amin(1).view(-1, layout.period).amin(0), high.amax(1).view(-1, layout.period).amax(0)
    return ends[0].float(), ends[1].float()


def fit_uniform(low: Tensor, high: Tensor, grid: Grid, scale: Tensor, zero: Tensor | None) -> None:
    """Scales and zero points of runs that span low..high; NaN and 0 where an end is not finite."""
    finite = torch.isfinite(low) & torch.isfinite(high)
    low, high = low.clamp(max=0), high.clamp(min=0)
    raw = torch.maximum(-low, high) / grid.high if zero is None else high / grid.high - low / grid.high
    scale.copy_(torch.where(finite, raw.clamp(min=SMALLEST_SCALE), torch.nan))
    if zero is not None:
        place = (-low * (1 / scale)).round().clamp(grid.low, grid.high)
        zero.copy_(torch.where(finite, place, 0))


def scale_index(layout: Layout, device: torch.device) -> Tensor:
    """int64[entries]: the scale of each entry."""
    entry = torch.arange(layout.entries, device=device)
    run = entry // layout.length * layout.runs_per_row + entry % layout.length // layout.group
    return run % layout.period


def quantize_log(x: Tensor, book: LogBook, bits: int, each: int, codes: Tensor) -> None:
    """Fill ``codes`` with the number of thresholds above each entry."""
    ascending = torch.from_numpy(book.thresholds[-2::-1].copy()).to(x.device)
    # right=True counts the thresholds at or below each value, all of them for NaN.
    found = (book.levels - torch.bucketize(x.float(), ascending, right=True)).byte()
    codes.copy_(found if each == 1 else pack_codes(found, bits))


def dequantize_log(codes: Tensor, table: Tensor, bits: int, each: int, out: Tensor) -> None:
    """Fill ``out`` with table[code]."""
    out.copy_(table[(codes if each == 1 else unpack_codes(codes, bits, out.numel())).long()])


def mean_magnitude(x: Tensor) -> float:
    """mean |x|, summed in float64."""
    return float(torch.linalg.vector_norm(x, 1, dtype=torch.float64)) / x.numel()


def quantize_ternary(x: Tensor, threshold: float, mask: Tensor, sign: Tensor) -> tuple[int, float]:
    """Fill the planes; (entries kept, sum of their magnitudes)."""
    magnitude = x.float().abs()
    keep = (magnitude >= threshold) & (magnitude > 0)
    mask.copy_(pack_codes(keep.byte(), 1))
    sign.copy_(pack_codes((keep & (x < 0)).byte(), 1))
    return int(keep.sum()), float(torch.where(keep, magnitude, 0).sum(dtype=torch.float64))


def dequantize_ternary(mask: Tensor, sign: Tensor, scale: float, out: Tensor) -> None:
    """Fill ``out`` with scale * (mask - 2 * sign)."""
    keep, negative = (unpack_codes(plane, 1, out.numel()).float() for plane in (mask, sign))
    out.copy_((keep - 2 * negative) * scale)
