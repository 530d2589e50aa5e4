"""What describes a uniform quantisation: the integers in use, and which entries share a scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference.kernels.quantize.formats.support import codes_per_byte

# A scale is never smaller than the smallest normal number, so that its reciprocal is finite.
SMALLEST_SCALE = 2.0**-126


@dataclass(frozen=True)
class Grid:
    """The codes low..high of ``bits`` bits: signed around 0 when symmetric, else 0..2^bits - 1 around a zero point."""

    bits: int
    symmetric: bool
    narrow: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits must be 2 to 8, found {self.bits!r}")

    @property
    def low(self) -> int:
        """-(2^(bits-1) - 1) when narrow, else -2^(bits-1); 0 when asymmetric."""
        return -self.high - (not self.narrow) if self.symmetric else 0

    @property
    def high(self) -> int:
        """2^(bits-1) - 1, or 2^bits - 1 when asymmetric."""
        return 2 ** (self.bits - self.symmetric) - 1

    @property
    def each(self) -> int:
        """Codes in a byte: 4 of 2 bits, 2 of 4 bits, else 1."""
        return codes_per_byte(self.bits)

    @property
    def code_dtype(self) -> torch.dtype:
        """int8 for signed codes that have a byte each; uint8 for unsigned and for packed ones."""
        return torch.int8 if self.symmetric and self.each == 1 else torch.uint8


@dataclass(frozen=True)
class Layout:
    """Runs of consecutive entries that share a scale, in a flat tensor.

    A row of ``length`` entries is cut into runs of ``group`` (the last one may be shorter); run number r, counted over
    all rows, uses scale r mod ``period``.
    """

    entries: int
    length: int
    group: int
    period: int
    scale_shape: tuple[int, ...]

    @property
    def runs_per_row(self) -> int:
        """Runs in a row."""
        return -(-self.length // self.group)

    @property
    def runs(self) -> int:
        """Runs in the whole tensor; equal to ``period`` when no two share a scale."""
        return self.entries // self.length * self.runs_per_row

    def aligned(self, each: int) -> bool:
        """Whether every run is a whole ``group`` and starts on a byte of ``each`` codes."""
        return self.length % self.group == 0 and self.group % each == 0


def layout_of(shape: tuple[int, ...], axis: int | None, group: int | None) -> Layout:
    """One scale for the tensor, one for each index along ``axis``, or one for each ``group`` along the last axis.

    The scales have shape (), (shape[axis],) or (*shape[:-1], ceil(shape[-1] / group)). Raises ValueError when both are
    asked for or do not fit the shape.
    """
    n = torch.Size(shape).numel()
    if axis is not None and group is not None:
        raise ValueError(f"scales are per channel (axis) or per group, not both; found axis={axis}, group={group}")
    if group is not None:
        if not isinstance(group, int) or group < 1 or not shape:
            raise ValueError(f"a group is a positive number of entries of the last axis, found {group!r} for {shape}")
        length, groups = max(shape[-1], 1), -(-shape[-1] // group)
        return Layout(n, length, min(group, length), n // length * groups, (*shape[:-1], groups))
    if axis is None:
        return Layout(n, max(n, 1), max(n, 1), 1, ())
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis {axis} does not exist in shape {shape}")
    channels, inner = shape[axis], torch.Size(shape[axis % len(shape) + 1 :]).numel()
    return Layout(n, max(channels * inner, 1), max(inner, 1), max(channels, 1), (channels,))
