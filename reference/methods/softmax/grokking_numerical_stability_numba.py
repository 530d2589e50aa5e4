"""StableMax cross entropy and its gradient in one kernel: two passes over each row and no array of the map's values."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from reference.kernels.jit import kernel

Floats = NDArray[np.float32] | NDArray[np.float64]


def stablemax_loss_and_gradient(logits: Floats, labels: NDArray[np.int64], losses: Floats, gradient: Floats) -> None:
    """Losses [n] of the rows of ``logits`` [n, classes], and the gradient of their mean [n, classes].

    With T = sum_k s(x_k): loss = ln T - ln s(x_y), and d loss / d x_k = s'(x_k) / T - [k = y] s'(x_y) / s(x_y), where
    s' is 1 for x >= 0 and s^2 below. Computed in the dtype of the arrays, float32 or float64.
    """
    _rows(logits, labels, losses, gradient)


@kernel(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _rows(logits, labels, losses, gradient):
    rows, classes = logits.shape
    one = logits.dtype.type(1)
    for i in range(rows):
        x, out = logits[i], gradient[i]
        total = logits.dtype.type(0)
        for k in range(classes):
            below = one / (one + abs(x[k]))
            total += x[k] + one if x[k] >= 0 else below
        scale = one / (total * logits.dtype.type(rows))
        for k in range(classes):
            below = one / (one + abs(x[k]))
            out[k] = scale if x[k] >= 0 else scale * below * below
        own = x[labels[i]]
        mapped = own + one if own >= 0 else one / (one - own)
        slope = one if own >= 0 else mapped * mapped
        losses[i] = math.log(total) - math.log(mapped)
        out[labels[i]] -= slope / (mapped * logits.dtype.type(rows))
