"""Holm's step-down correction for several comparisons (Holm 1979)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def holm(p_values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Adjusted p values in the order given: rejecting those <= alpha keeps the familywise error at alpha.

    p_(i) -> max over j <= i of min(1, (k - j + 1) p_(j)), whatever the dependence between the tests.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.minimum(1.0, (len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(steps)
    return adjusted


def first_step_level(count: int, alpha: float = 0.05) -> float:
    """The confidence level of Holm's first step: an interval at 1 - alpha / count that excludes a region rejects it.

    One rejection among ``count`` is all that "refuted when any part is" needs, so the first step is the procedure.
    """
    return 1 - alpha / max(1, count)
