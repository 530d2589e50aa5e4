"""Exact tests for paired data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from harness.judge.stats.bootstrap import rng_for

_EXACT_UP_TO = 16
_DRAWS = 100_000


def sign_flip_p(differences: npt.ArrayLike) -> float:
    """Two-sided p of "the paired differences are symmetric about 0", by the mean under all 2^n sign flips.

    Exact for n <= 16, so p is never below 2 / 2^n (five seeds: 0.0625); above, 100,000 fixed draws, the data
    included, which keeps the test valid. 1 for no data; NaN when a difference is.
    """
    data = np.sort(np.asarray(differences, float))
    n = len(data)
    if n == 0:
        return 1.0
    if not np.isfinite(data).all():
        return float("nan")
    if n <= _EXACT_UP_TO:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        signs = rng_for(n).choice(np.array([-1.0, 1.0]), (_DRAWS, n))
        signs[0] = 1.0
    sums = np.abs(signs @ data)
    tolerance = 1e-9 * np.abs(data).sum()  # equal sums may differ in their last bits
    return float(np.mean(sums >= abs(data.sum()) - tolerance))
