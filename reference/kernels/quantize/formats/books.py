"""The values of the non-uniform codes, and the thresholds between them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

Array = np.ndarray

# QLoRA, appendix E: the quantiles of N(0, 1) that make both halves equally likely, scaled to [-1, 1]; 0 is exact.
NF4_VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
NF4_ZERO = 7
# What 1/N_b is at least taken of, so that it stays finite.
NF4_SMALLEST = 1e-38

_VALUES = np.array(NF4_VALUES, np.float32)
NF4_MIDPOINTS = tuple(((_VALUES[1:] + _VALUES[:-1]) / np.float32(2)).tolist())

# Smaller positive numbers are subnormal: some processors flush them to zero, so the logarithmic codes do everywhere.
SMALLEST_NORMAL = 2.0**-126
# The search table has a bin for every exponent and the three highest bits of the mantissa.
LOG_SHIFT = 20
FINEST_STEP = Fraction(1, 5)


@dataclass(frozen=True)
class LogBook:
    """Codes of s * 2^(-code*q/r): ``levels`` of them, then one more, ``levels``, for zero.

    ``scale`` is s, a float32 value; NaN stands for a tensor that held one.
    """

    scale: float
    q: int
    r: int
    levels: int

    @cached_property
    def thresholds(self) -> Array:
        """float32[levels + 1], descending: the code is how many of them are above x; the last is -inf.

        Exact: x < thresholds[k] holds when round(-log2(x/s)*r/q) > k, a tie going to the even code.
        """
        edges = [self._edge(k) for k in range(self.levels)]
        return np.array([*edges, -np.inf], np.float32)

    @cached_property
    def base(self) -> Array:
        """uint16[2048]: how many thresholds are above every number of a bin; a number adds at most one more."""
        first = np.arange(2**11, dtype=np.int64) << LOG_SHIFT
        last = (first + (1 << LOG_SHIFT) - 1).astype(np.int32).view(np.float32)
        ascending = self.thresholds[-2::-1]
        above = self.levels - np.searchsorted(ascending, last, side="right")
        return np.where(np.isnan(last), 0, above).astype(np.uint16)

    def values(self, rounded_bits: int | None = None) -> Array:
        """float32[levels + 1]: s * 2^(-code*q/r), and 0; all NaN when s is.

        With ``rounded_bits`` b the fraction's table T[code] = 2^(-((code*q) mod r)/r) is rounded to multiples of
        1/(2^(b+1) - 2) before the shift by floor(code*q/r) (AdaLog, arXiv 2407.12951).
        """
        code = np.arange(self.levels, dtype=np.int64)
        fraction = np.exp2(-(code * self.q % self.r) / self.r)
        if rounded_bits is not None:
            grid = 2 ** (rounded_bits + 1) - 2
            fraction = np.rint(fraction * grid) / grid
        powers = self.scale * np.ldexp(fraction, -(code * self.q // self.r))
        return np.append(powers, 0.0 * self.scale).astype(np.float32)

    def _edge(self, k: int) -> np.float32:
        """The smallest float32 that is not rounded to a code above k."""
        exponent = Fraction(2 * k + 1, 2) * Fraction(self.q, self.r)
        if not np.isfinite(self.scale):
            return np.float32(SMALLEST_NORMAL)
        # Below 2^-300 the edge lies under the smallest normal number for every scale.
        exact = self.scale * 2.0 ** -float(min(exponent, Fraction(300)))
        near = np.float32(min(exact, float(np.finfo(np.float32).max)))
        if exponent.denominator == 1 and float(near) == exact:
            # x on the edge goes to the even one of k and k + 1.
            near = np.nextafter(near, np.float32(np.inf)) if k % 2 else near
        elif float(near) < exact:
            near = np.nextafter(near, np.float32(np.inf))
        return max(near, np.float32(SMALLEST_NORMAL))


@lru_cache(maxsize=256)
def log_book(scale: float, q: int, r: int, levels: int) -> LogBook:
    """The book of a scale and base 2^(q/r); kept for those seen before."""
    if q < 1 or r < 1 or Fraction(q, r) < FINEST_STEP:
        raise ValueError(f"the base 2^(q/r) needs positive integers with q/r >= {FINEST_STEP}, found q={q}, r={r}")
    return LogBook(scale, q, r, levels)
