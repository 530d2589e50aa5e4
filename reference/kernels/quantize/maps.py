"""Code books of 256 values in [-1, 1] or [0, 1], and the table that finds the nearest one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

Array = np.ndarray

# The search table splits |x| into octaves down to 2^-24 and each octave into 2^8 bins; everything smaller is one bin.
MANTISSA_SHIFT = 23 - 8
LOWEST_KEY = (127 - 24) << 8
HIGHEST_KEY = 127 << 8
BINS = HIGHEST_KEY - LOWEST_KEY + 2

# The lane table splits |x| into 32 octaves from 2^-31 to 1, each into as many bins as its codes need. Parts begin at:
LOWEST_OCTAVE = 127 - 31
SHIFTS_AT, OFFSETS_AT, BASE_AT, MIDPOINTS_AT, DECODE_AT, LANE_TABLE_BYTES = 0, 128, 256, 768, 1792, 2816


@lru_cache(maxsize=16)
def dynamic_map(signed: bool, device: str = "cpu") -> torch.Tensor:
    """The dynamic map of Dettmers et al. (2110.02861, section 1.3): float32[256], sorted, read-only by convention.

    For i = 0..6 the interval [0.1, 1] is cut into 2^i (signed) or 2^(i+1) (unsigned) equal pieces; the codes are
    10^(i-6) times the pieces' midpoints, with both signs if ``signed``, and exactly 0 and 1. There is no -1: the
    signed map is not symmetric.
    """
    values = [0.0, 1.0]
    for i in range(7):
        edges = torch.linspace(0.1, 1.0, 2 ** (i if signed else i + 1) + 1, dtype=torch.float32)
        codes = 10.0 ** (i - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += codes.tolist() + ((-codes).tolist() if signed else [])
    return torch.tensor(sorted(values), dtype=torch.float32, device=device)


@lru_cache(maxsize=16)
def linear_map(signed: bool, device: str = "cpu") -> torch.Tensor:
    """The uniform 8-bit map, float32[256], sorted: k/255 unsigned; k/127 for |k| <= 127 signed, with 0 held twice."""
    if not signed:
        return (torch.arange(256, dtype=torch.float32) / 255).to(device)
    levels = torch.arange(-127, 128, dtype=torch.float32) / 127
    return torch.cat([levels[:128], levels[127:]]).to(device)


MAPS = {"dynamic": dynamic_map, "linear": linear_map}


@dataclass(frozen=True)
class SearchTable:
    """Finds the nearest code of a sorted map without a search over all of them.

    ``base[bin]`` counts the midpoints below every value of the bin, so the nearest code to x is reached from it by
    at most ``steps`` comparisons with ``midpoints`` (float32[256], the last is +inf). Exact: a midpoint is rounded down
    to float32, so ``x > midpoint`` decides as the real number would, and a tie goes to the lower code.
    """

    base: Array
    midpoints: Array
    steps: int


def search_table(code: torch.Tensor) -> SearchTable:
    """The table of a map; kept for maps seen before."""
    check_map(code)
    return _table(code.detach().cpu().numpy().tobytes())


def check_map(code: torch.Tensor) -> None:
    """Raise ValueError unless ``code`` is a finite, non-decreasing float32[256] within [-1, 1]."""
    _check_once(code, code._version)


@lru_cache(maxsize=32)
def _check_once(code: torch.Tensor, version: int) -> None:
    if code.dtype != torch.float32 or code.shape != (256,):
        raise ValueError(f"a map is float32[256], found {code.dtype} of shape {tuple(code.shape)}")
    if not bool(torch.isfinite(code).all()) or bool((code.diff() < 0).any()) or float(code.abs().max()) > 1:
        raise ValueError("a map is finite, sorted and lies within [-1, 1]")


def midpoints_below(code: Array) -> Array:
    """float32[255]: the largest float32 not above the midpoint of each two neighbours."""
    exact = (code[:-1].astype(np.float64) + code[1:].astype(np.float64)) / 2
    near = exact.astype(np.float32)
    return np.where(near > exact, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


@lru_cache(maxsize=32)
def _table(data: bytes) -> SearchTable:
    inner = midpoints_below(np.frombuffer(data, dtype=np.float32))
    smallest, largest = _bin_ends()
    base = np.searchsorted(inner, np.concatenate([smallest, -largest]), side="left")
    last = np.searchsorted(inner, np.concatenate([largest, -smallest]), side="left")
    midpoints = np.append(inner, np.float32(np.inf)).astype(np.float32)
    return SearchTable(base.astype(np.uint8), midpoints, int((last - base).max()))


@dataclass(frozen=True)
class LaneTable:
    """The search for many entries at a time, by instructions that look bytes up in registers.

    With e the exponent field of max(|x|, 2^-31) and bits its bit pattern, the bin is (bits >> shift[e]) + offset[e];
    ``base[bin]`` counts the midpoints below every value of the bin, and at most one midpoint is within it: the nearest
    code is base[bin], or one more where x > midpoint[base[bin]]. ``data`` is uint8[2816], at an address that is a
    multiple of 64: shift and offset as int32[32] for e mod 32, base as uint8[512], the midpoints and the codes each as
    four tables of 256 bytes, the lowest byte first. A signed map keeps the bins of negative x from 256 on (``signs``);
    for others ``magnitude``, which is taken from the bit pattern, keeps the sign: a negative x is below all octaves.
    """

    data: Array
    magnitude: int
    signs: int


def lane_table(code: torch.Tensor) -> LaneTable | None:
    """The table of a map; None where some bins would have to hold more than one midpoint."""
    check_map(code)
    return _lane_table(code.detach().cpu().numpy().tobytes())


@lru_cache(maxsize=32)
def _lane_table(data: bytes) -> LaneTable | None:
    code = np.frombuffer(data, dtype=np.float32)
    inner, signed = midpoints_below(code), bool(code[0] < 0)
    shifts, offsets, bases, bins = np.zeros(32, np.int32), np.zeros(32, np.int32), [], 0
    for octave in range(LOWEST_OCTAVE, 128):
        bits, base = _octave_bins(inner, octave, signed)
        if bits < 0:
            return None
        shifts[octave % 32] = 23 - bits
        offsets[octave % 32] = bins - (octave << bits)
        bases.append(base)
        bins += 1 << bits
    if bins > (256 if signed else 512):
        return None
    sides = [np.concatenate(side) for side in zip(*bases, strict=True)]
    base = np.concatenate([np.pad(side, (0, 512 // len(sides) - bins)) for side in sides])
    midpoints = np.append(inner, np.float32(np.inf)).astype(np.float32)
    parts = [shifts, offsets, base.astype(np.uint8), _byte_planes(midpoints), _byte_planes(code)]
    return LaneTable(_aligned(np.concatenate([part.view(np.uint8).ravel() for part in parts])),
                     0x7FFFFFFF if signed else -1, 256 if signed else 0)


def _octave_bins(inner: Array, octave: int, signed: bool) -> tuple[int, tuple[Array, ...]]:
    """(mantissa bits, base of the bins of positive and of negative x): the fewest that part the midpoints, or -1."""
    for bits in range(10):
        keys = np.arange(octave << bits, (octave + 1) << bits, dtype=np.int64)
        smallest = (keys << (23 - bits)).astype(np.int32).view(np.float32)
        largest = (((keys + 1) << (23 - bits)) - 1).astype(np.int32).view(np.float32)
        if octave == LOWEST_OCTAVE:
            smallest[0] = 0
        sides = [(smallest, largest), (-largest, -smallest)][: 1 + signed]
        counts = [(np.searchsorted(inner, low), np.searchsorted(inner, high)) for low, high in sides]
        if all((high - low).max() <= 1 for low, high in counts):
            return bits, tuple(low for low, _ in counts)
    return -1, ()


def _byte_planes(values: Array) -> Array:
    """float32[256] as uint8[4, 256], the lowest bytes first."""
    return np.ascontiguousarray(values.astype("<f4").view(np.uint8).reshape(256, 4).T)


def _aligned(data: Array) -> Array:
    room = np.empty(data.size + 63, np.uint8)
    start = -room.ctypes.data % 64
    room[start : start + data.size] = data
    return room[start : start + data.size]


def _bin_ends() -> tuple[Array, Array]:
    """The smallest and the largest magnitude of every bin."""
    keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1, dtype=np.int64)
    smallest = np.concatenate([[0], keys << MANTISSA_SHIFT]).astype(np.int32).view(np.float32)
    largest = np.nextafter(np.append(smallest[1:], np.float32(np.inf)), np.float32(0)).astype(np.float32)
    return smallest, largest
