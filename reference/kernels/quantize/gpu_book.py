"""What a GPU kernel knows of a map: one array of 32-bit words, small enough for shared memory.

Float32 numbers become integers in the same order (the bits of x, those of -x inverted). The centre, where no midpoint
lies, is cut out, so that the rest splits into bins of 2^16 neighbours with at most one midpoint each. A word of a bin
then tells the nearest code by one addition::

    s = k - clamp(k, below, above) + (k >> 31) + (first << 16)         k: the ordered integer of x, whose zero is +0
    code = (bins[s >> 16] + (s & 0xffff)) >> 16

because the word holds the code at the bin's lower end in its upper half, and in its lower half what makes the sum
carry just above the midpoint. A map that has no such table (two midpoints in a bin, or one at zero) has no bins: its
midpoints are searched by halving.

Layout: 256 codes (float32), 256 midpoints (float32, the last is +inf), the header ``below, above, first, bins, zero``
padded to 8 words, the bins padded to a multiple of 4.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from reference.kernels.quantize.maps import midpoints_below

Array = np.ndarray

MIDPOINTS, HEADER, BINS = 256, 512, 520
BIN_BITS = 16
# Two CUDA blocks with two books each fit into the shared memory of every multiprocessor since sm_80.
MOST_BINS = 8192
# Above this exponent the kernels may divide by a reciprocal; a quotient below it always lies in the centre.
LEAST_ABOVE = (127 - 25) << 23

_ONE = 127 << 23
_BELOW_ZERO = np.float32(-(2.0**-149))


def book(code: Array, keep_sign: bool) -> Array:
    """int32 words of the sorted map ``code`` (float32[256]).

    With ``keep_sign`` the midpoint below the first code of 0 is the number next to zero: then every negative entry gets
    a code below it.
    """
    inner = midpoints_below(code)
    zeros = np.flatnonzero(code == 0)
    if keep_sign and zeros.size and zeros[0] > 0:
        inner[zeros[0] - 1] = _BELOW_ZERO
    header = np.zeros(BINS - HEADER, np.int32)
    header[:4], bins = _bins(ordered(inner))
    header[4] = np.searchsorted(inner, np.float32(0), side="left")
    floats = np.concatenate([code, inner, [np.inf]]).astype(np.float32)
    return np.concatenate([floats.view(np.int32), header, bins])


def ordered(x: Array) -> Array:
    """int64 of float32 numbers, in their order; both zeros are 0."""
    bits = (np.asarray(x, np.float32) + np.float32(0)).view(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int64)


def on_device(code: torch.Tensor, keep_sign: bool) -> torch.Tensor:
    """The words of a map beside it, on its device; kept for maps seen before."""
    return _on_device(code, code._version, keep_sign)


@lru_cache(maxsize=64)
def _on_device(code: torch.Tensor, version: int, keep_sign: bool) -> torch.Tensor:
    return torch.from_numpy(book(code.detach().cpu().numpy(), keep_sign)).to(code.device)


def _bins(keys: Array) -> tuple[tuple[int, int, int, int], Array]:
    """(below, above, first, count) and the words; a count of 0 where the midpoints ``keys`` allow no table."""
    none = (0, 0, 0, 0), np.empty(0, np.int32)
    outer = keys[keys != ordered(_BELOW_ZERO)]
    above = int(min(outer[outer >= 0], default=_ONE)) >> BIN_BITS << BIN_BITS
    # Without a negative midpoint all negative numbers are one bin.
    below = -above if (outer < 0).any() else ~_ONE
    if above < LEAST_ABOVE or ((outer >= below) & (outer < above)).any():
        return none
    places = keys - np.clip(keys, below, above) + (keys >> 63)
    least = ~_ONE - np.clip(~_ONE, below, above) - 1
    first, last = -(least >> BIN_BITS), (_ONE - above) >> BIN_BITS
    count = first + last + 1
    bin_of = (places >> BIN_BITS) + first
    if count > MOST_BINS or np.bincount(bin_of, minlength=count).max() > 1:
        return none
    starts = (np.arange(count) - first) << BIN_BITS
    words = np.searchsorted(places, starts, side="left") << BIN_BITS
    words[bin_of] += 0xFFFF - (places & 0xFFFF)
    padded = np.zeros(-(-count // 4) * 4, np.int32)
    padded[:count] = words
    return (below, above, int(first), int(count)), padded
