"""Uniform integer codes of 2 to 8 bits, symmetric or with a zero point, per tensor, channel or group.

    code = clip(rint(x * (1/s)) + z, low, high)        value = (code - z) * s

x * (1/s) is rounded to float32, rint rounds half to even, and z is 0 when symmetric: torch's fake_quantize arithmetic.
Symmetric: low..high is -127..127 for 8 bits (``narrow``, the default) or -128..127, and s = max|x| / high. Asymmetric:
0..255 for 8 bits, the range of x is widened to hold 0, s = hi/high - lo/high and z = clip(rint(-lo/s), low, high), so
that 0 is exact. Rules at the edges, the same in every backend:

- s is at least 2^-126, which is what all-zero runs get; they come back as zeros;
- a NaN or an infinity makes the s of its run NaN and its codes ``low``: the run comes back as NaN;
- with scales that are given, entries beyond the range take the end of the range, and a NaN takes ``low``;
- 2-bit and 4-bit codes are packed, the first entry in the highest bits of a byte (see ``packing``), signed ones as
  two's complement; other widths take a byte each;
- the last group of a row may be shorter; |value - x| <= s/2 up to rounding where s comes from the data, but a value
  nearer than s/2 to the largest float32 may come back infinite.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference.kernels.quantize.formats.grid import SMALLEST_SCALE, Grid, Layout, layout_of
from reference.kernels.quantize.formats.support import check, code_bytes, flat_input, kernels, result

Tensor = torch.Tensor


@dataclass(frozen=True)
class Uniform:
    """Codes of a tensor of ``shape``: int8 or uint8 of that shape, or packed uint8[ceil(n*bits/8)] for 2 and 4 bits.

    ``scale`` is float32 and ``zero`` uint8 (None when symmetric), both of the shape that :func:`layout_of` gives.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None
    shape: tuple[int, ...]
    grid: Grid
    axis: int | None = None
    group: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zero points."""
        return self.codes.nbytes + self.scale.nbytes + (0 if self.zero is None else self.zero.nbytes)


def quantize_uniform(
    x: Tensor, *, bits: int = 8, symmetric: bool = True, narrow: bool = True, axis: int | None = None,
    group: int | None = None, scale: Tensor | float | None = None, zero: Tensor | int | None = None,
    noise: Tensor | None = None, out: Uniform | None = None, backend: str = "auto",
) -> Uniform:
    """Codes of ``x`` (contiguous float32, float16 or bfloat16) with scales from the data, or with those given.

    One scale for the tensor, for each index of ``axis``, or for each ``group`` of entries along the last axis.
    ``scale`` (a positive number, or float32 of the scales' shape whose entries are trusted to be that; fixed point
    <bits, f> is ``scale=2**-f`` with ``narrow=False``) and, when asymmetric, ``zero`` (an integer or uint8) replace
    what the data would give.
    ``noise`` in [0, 1), float32 of x's shape, rounds stochastically: v goes up when noise < v - floor(v), so that
    ``torch.rand(x.shape, generator=g)`` makes the expected code v itself. ``out``, an earlier result of equal settings,
    is written again. Raises ValueError for what does not fit, BackendMissing where ``backend`` cannot run.
    """
    flat, grid, shape = flat_input("x", x), Grid(bits, symmetric, narrow), tuple(x.shape)
    layout = layout_of(shape, axis, group)
    if out is None:
        out = _empty(shape, grid, layout, axis, group, x.device)
    elif (out.shape, out.grid, out.axis, out.group) != (shape, grid, axis, group):
        raise ValueError(f"out is for {out.shape}, {out.grid}, axis {out.axis}, group {out.group}, "
                         f"not for {shape}, {grid}, axis {axis}, group {group}")
    _check(out, layout, x.device)
    _fill_given(out, scale, zero)
    if noise is not None:
        noise = check("noise", noise, torch.float32, shape, x.device).view(-1)
    if flat.numel():
        work = kernels(backend, x.device, _no_cuda_quantize(layout, grid, scale is not None, noise))
        work.quantize_uniform(flat, noise, layout, grid, scale is not None, *_flat(out))
    return out


def dequantize_uniform(
    packed: Uniform, *, dtype: torch.dtype = torch.float32, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """(code - z) * s, computed in float32 and rounded to ``dtype`` (or to the type of ``out``), of ``packed.shape``."""
    device = packed.codes.device
    layout = layout_of(packed.shape, packed.axis, packed.group)
    _check(packed, layout, device)
    values = result(out, dtype, packed.shape, device)
    if values.numel():
        kernels(backend, device).dequantize_uniform(*_flat(packed), layout, packed.grid, values.view(-1))
    return values


def round_fixed_point(x: Tensor, *, word: int, fraction: int, noise: Tensor | None = None) -> Tensor:
    """``x`` rounded to fixed point <word, fraction>: clip(round(x * 2^f), -2^(w-1), 2^(w-1) - 1) * 2^-f, float32.

    For words too wide for codes, 2 to 32 bits, of which float32 holds 24. Half to even, or stochastic with ``noise``
    as in :func:`quantize_uniform`. NaN stays NaN. Plain torch on any device.
    """
    if not 2 <= word <= 32:
        raise ValueError(f"a word has 2 to 32 bits, found {word}")
    flat_input("x", x)
    scaled = torch.ldexp(x.detach().float(), torch.tensor(fraction, device=x.device))
    if noise is None:
        whole = scaled.round()
    else:
        check("noise", noise, torch.float32, tuple(x.shape), x.device)
        whole = scaled.floor()
        whole += noise < scaled - whole
    limit = 2.0 ** (word - 1)
    return torch.ldexp(whole.clamp(-limit, limit - 1), torch.tensor(-fraction, device=x.device))


def _empty(
    shape: tuple[int, ...], grid: Grid, layout: Layout, axis: int | None, group: int | None, device: torch.device
) -> Uniform:
    codes = torch.empty(_code_shape(shape, grid), dtype=grid.code_dtype, device=device)
    scale = torch.full(layout.scale_shape, SMALLEST_SCALE, device=device)
    zero = None if grid.symmetric else torch.zeros(layout.scale_shape, dtype=torch.uint8, device=device)
    return Uniform(codes, scale, zero, shape, grid, axis, group)


def _code_shape(shape: tuple[int, ...], grid: Grid) -> tuple[int, ...]:
    return shape if grid.each == 1 else (code_bytes(torch.Size(shape).numel(), grid.bits),)


def _fill_given(out: Uniform, scale: Tensor | float | None, zero: Tensor | int | None) -> None:
    grid = out.grid
    if grid.symmetric and zero is not None:
        raise ValueError("symmetric codes have no zero point: leave zero out or pass symmetric=False")
    if not grid.symmetric and (scale is None) != (zero is None):
        raise ValueError("asymmetric scales are given together with their zero points: pass both or neither")
    if scale is None:
        return
    if isinstance(scale, Tensor):
        scale = check("scale", scale, torch.float32, tuple(out.scale.shape), out.scale.device)
    elif not SMALLEST_SCALE <= scale < float("inf"):
        raise ValueError(f"scale must be a positive normal number, found {scale!r}")
    _store(out.scale, scale)
    if out.zero is not None:
        if isinstance(zero, Tensor):
            check("zero", zero, torch.uint8, tuple(out.zero.shape), out.zero.device)
        elif not grid.low <= zero <= grid.high:
            raise ValueError(f"zero must be a code, {grid.low} to {grid.high}, found {zero!r}")
        _store(out.zero, zero)


def _store(place: Tensor, value: Tensor | float) -> None:
    if isinstance(value, Tensor):
        place.copy_(value)
    else:
        place.fill_(value)


def _check(packed: Uniform, layout: Layout, device: torch.device) -> None:
    check("codes", packed.codes, packed.grid.code_dtype, _code_shape(packed.shape, packed.grid), device)
    check("scale", packed.scale, torch.float32, layout.scale_shape, device)
    if (packed.zero is None) != packed.grid.symmetric:
        raise ValueError("symmetric codes have no zero points and asymmetric ones need them")
    if packed.zero is not None:
        check("zero", packed.zero, torch.uint8, layout.scale_shape, device)


def _flat(packed: Uniform) -> tuple[Tensor, Tensor, Tensor | None]:
    zero = None if packed.zero is None else packed.zero.view(-1)
    return packed.codes.view(torch.uint8).view(-1), packed.scale.view(-1), zero


def _no_cuda_quantize(layout: Layout, grid: Grid, given: bool, noise: Tensor | None) -> str | None:
    """``formats.cu`` finds scales for whole groups of a power of two and rounds to nearest."""
    if given or noise is not None:
        return "scales that are given and stochastic rounding"
    fits = layout.runs == layout.period and layout.aligned(grid.each) and layout.group in GROUPS_ON_CUDA
    return None if fits else "scales other than those of groups of 32, 64, ... 4096 that fill their rows"


GROUPS_ON_CUDA = tuple(2**power for power in range(5, 13))
