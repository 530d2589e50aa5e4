"""Round numbers for axes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def linear_ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten within [low, high]: ``about`` as many, at least two."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    found = _multiples(low, high, step)
    while len(found) < 2:
        step /= 2
        found = _multiples(low, high, step)
    return found


def _multiples(low: float, high: float, step: float) -> list[float]:
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounding to the step's own decimals keeps 0.1 + 0.2 from showing as 0.30000000000000004.
    decimals = max(0, 2 - math.floor(math.log10(step)))
    return [round(index * step, min(decimals, 300)) for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive values: decades, or 1-2-5 steps where there are few decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    span = math.log10(high / low)
    steps: Sequence[float] = (1,) if span > 2.5 else (1, 2, 5) if span > 0.7 else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    every = max(1, math.ceil(span / 7))
    found = [step * 10.0**power for power in range(first, last + 1, every) for step in steps
             if low <= step * 10.0**power * (1 + 1e-9) and step * 10.0**power <= high * (1 + 1e-9)]
    return found if len(found) > 1 else linear_ticks(low, high, 3)
