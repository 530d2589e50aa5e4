"""The root of dynamic logits fusion for the CPU, by bisection that takes square roots where others take exponentials.

At alpha = low + h the weights are p exp(low D) exp(h D). Halving h takes the square root of exp(h D), and moving low up
multiplies it in: after one exponential each further step costs a product, two sums and a square root per character.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from reference.kernels.jit import kernel
from reference.methods.softmax.dynamic_logits_fusion import CAP

ITERATIONS = 24
TOLERANCE = 1e-7  # nats, relative to the target where that is above one
# exp(D) and all its powers stay finite in float32; shifts further from their mean than this are cut.
LARGEST_SHIFT = np.float32(40.0)
_BLOCK = 1024
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@kernel(fastmath=_FAST, error_model="numpy")
def _weights(log_p, shift, centre, weight, power):
    """p and exp(D - centre); the centre moves no KL, and keeps the powers near one."""
    for index in range(len(log_p)):
        moved = min(max(shift[index] - centre, -LARGEST_SHIFT), LARGEST_SHIFT)
        weight[index] = np.exp(log_p[index])
        power[index] = np.exp(moved)


@kernel(fastmath=_FAST, error_model="numpy")
def _mean(log_p, shift):
    total = 0.0
    for index in range(len(log_p)):
        total += np.exp(log_p[index]) * shift[index]
    return total


@kernel(fastmath=_FAST, error_model="numpy")
def _block_sums(weight, power, shift, centre, begin, end):
    mass, moment = np.float32(0.0), np.float32(0.0)
    for index in range(begin, end):
        moved = min(max(shift[index] - centre, -LARGEST_SHIFT), LARGEST_SHIFT)
        here = weight[index] * power[index]
        mass += here
        moment += here * moved
    return mass, moment


@kernel(error_model="numpy")
def _divergence(weight, power, shift, centre, alpha):
    """alpha E_alpha[D] - log Z_alpha with weights p exp(alpha D) = weight * power; blocks add up in float64."""
    mass, moment = 0.0, 0.0
    for begin in range(0, len(weight), _BLOCK):
        part = _block_sums(weight, power, shift, centre, begin, min(begin + _BLOCK, len(weight)))
        mass += part[0]
        moment += part[1]
    return alpha * moment / mass - np.log(mass)


@kernel(fastmath=_FAST, error_model="numpy")
def _multiply(weight, power):
    for index in range(len(weight)):
        weight[index] *= power[index]


@kernel(fastmath=_FAST, error_model="numpy")
def _root(power):
    for index in range(len(power)):
        power[index] = np.sqrt(power[index])


@kernel(error_model="numpy")
def _solve(log_p, shift, target, cap, iterations, weight, power):
    if target <= 0.0:
        return 0.0
    centre = np.float32(_mean(log_p, shift))
    scaled = np.float32(cap / 2.0)
    _weights(log_p, shift, centre, weight, power)
    if scaled != np.float32(1.0):
        for index in range(len(power)):
            power[index] = power[index] ** scaled
    low, half = 0.0, cap / 2.0
    _multiply(weight, power)
    if _divergence(weight, power, shift, centre, cap) < target:
        return cap
    for index in range(len(weight)):
        weight[index] = np.exp(log_p[index])
    for _ in range(iterations):
        found = _divergence(weight, power, shift, centre, low + half)
        if abs(found - target) <= TOLERANCE * max(1.0, target):
            return low + half
        if found < target:
            _multiply(weight, power)
            low += half
        half /= 2.0
        _root(power)
    return low + half


@kernel(error_model="numpy")
def _solve_rows(log_large, shifts, targets, cap, iterations, weight, power, out):
    rows = len(log_large)
    for row in range(len(shifts)):
        out[row] = _solve(log_large[row % rows], shifts[row], targets[row], cap, iterations, weight, power)


def alphas(
    log_large: NDArray[np.float32],
    shifts: NDArray[np.float32],
    targets: NDArray[np.float32],
    cap: float = CAP,
    iterations: int = ITERATIONS,
) -> NDArray[np.float64]:
    """The root for each row of `shifts` [rows, V], float64 [rows]; row i belongs to `log_large[i % len(log_large)]`.

    So `shifts` may hold several experts' rows, one expert after the other. All arrays are float32 and contiguous; a
    root beyond `cap` gives the cap, a target of 0 gives 0.
    """
    size = log_large.shape[1]
    out = np.empty(len(shifts))
    _solve_rows(log_large, shifts, targets, float(cap), iterations, np.empty(size, np.float32),
                np.empty(size, np.float32), out)
    return out
