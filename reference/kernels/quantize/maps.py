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


def _bin_ends() -> tuple[Array, Array]:
    """The smallest and the largest magnitude of every bin."""
    keys = np.arange(LOWEST_KEY, HIGHEST_KEY + 1, dtype=np.int64)
    smallest = np.concatenate([[0], keys << MANTISSA_SHIFT]).astype(np.int32).view(np.float32)
    largest = np.nextafter(np.append(smallest[1:], np.float32(np.inf)), np.float32(0)).astype(np.float32)
    return smallest, largest
