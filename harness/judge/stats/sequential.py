"""Looking more than once at growing data: how the error rate is shared out over planned looks, and pairs it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from harness.judge.stats.bootstrap import Floats


def shares(looks: Sequence[int], rho: float = 1.5) -> Floats:
    """What part of the error rate each look may spend: (n_k / n_K)^rho - (n_(k-1) / n_K)^rho, so that they sum to 1.

    Kim and DeMets' power family (1987). An interval at 1 - alpha share_k at look k misses the truth at any look with
    probability alpha at most, by the union bound: whatever the dependence between looks, and also where a look comes
    earlier than planned or not at all. Raises ValueError unless the looks are positive and increasing.
    """
    planned = np.asarray(looks, float)
    if len(planned) == 0 or planned[0] < 1 or (np.diff(planned) <= 0).any():
        raise ValueError(f"looks must be positive and increasing, not {list(looks)}")
    return np.diff((planned / planned[-1]) ** rho, prepend=0.0)


def least_pairs(error: float) -> int:
    """The fewest pairs of processes that can show a change with an ``error`` rate: the least n with 2 / 4^n <= error.

    Where a process is fast or slow by the luck of its memory layout, a pair of equal code shows one and the same
    non-zero difference with probability 1/4 at most (for equally spaced levels with probabilities p_i it is the sum of
    p_i p_(i+1)). Then n pairs may agree in a difference, with hardly any spread, with probability 2 / 4^n, whatever
    a t interval says.
    """
    return max(2, math.ceil(math.log(2 / error) / math.log(4) - 1e-9))
