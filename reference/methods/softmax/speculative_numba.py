"""`speculative.verify` for the CPU: one row of each distribution is read per prompt, and none is written."""

from __future__ import annotations

import numpy as np

from reference.kernels.jit import kernel

_BLOCK = 512


@kernel(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _mass(p, q, begin, end):
    """Sum of (p - q)_+ over [begin, end) in float32; blocks are short enough for that."""
    total = np.float32(0.0)
    for index in range(begin, end):
        total += max(p[index] - q[index], np.float32(0.0))
    return total


@kernel(fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")
def _sum(p, begin, end):
    total = np.float32(0.0)
    for index in range(begin, end):
        total += p[index]
    return total


@kernel(error_model="numpy")
def _invert(p, q, bonus, uniform, sums):
    """The first index at which the cumulated mass exceeds ``uniform`` times the whole; p's own where p = q."""
    size, total = len(p), 0.0
    for block in range(len(sums)):
        begin, end = block * _BLOCK, min((block + 1) * _BLOCK, size)
        sums[block] = _sum(p, begin, end) if bonus else _mass(p, q, begin, end)
        total += sums[block]
    if total <= 0.0 and not bonus:
        return _invert_plain(p, uniform)
    wanted, passed, block = uniform * total, 0.0, 0
    while block < len(sums) - 1 and passed + sums[block] <= wanted:
        passed += sums[block]
        block += 1
    last = 0
    for index in range(block * _BLOCK, size):
        part = p[index] if bonus else p[index] - q[index]
        if part > 0.0:
            passed += part
            last = index
        if passed > wanted:
            return index
    return last


@kernel(error_model="numpy")
def _invert_plain(p, uniform):
    total, last = 0.0, 0
    for index in range(len(p)):
        total += p[index]
    wanted, passed = uniform * total, 0.0
    for index in range(len(p)):
        if p[index] > 0.0:
            passed += p[index]
            last = index
        if passed > wanted:
            return index
    return last


@kernel(error_model="numpy")
def verify(p, q, drafts, accept, resample, accepted, following, sums):
    """As `speculative.verify` on float32 arrays, written into `accepted` and `following`, int64 [batch].

    `sums` float64 [ceil(V / 512)] is scratch. The sums of the residual are taken block by block, so that the search
    for the character reads one block again and not the row.
    """
    gamma = drafts.shape[1]
    for row in range(len(drafts)):
        count = 0
        while count < gamma:
            token = drafts[row, count]
            if accept[row, count] * q[row, count, token] >= p[row, count, token]:
                break
            count += 1
        accepted[row] = count
        bonus = count == gamma
        following[row] = _invert(p[row, count], q[row, min(count, gamma - 1)], bonus, resample[row], sums)


def scratch(vocabulary: int) -> np.ndarray:
    """The `sums` of :func:`verify`."""
    return np.zeros(-(-vocabulary // _BLOCK))
