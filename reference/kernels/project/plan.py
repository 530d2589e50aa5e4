"""Sizes of GPU launches, as plain functions of shape and device."""

from __future__ import annotations

import torch

from reference.kernels import target

_INTERPRETED = 4  # multiprocessors where kernels are interpreted: enough to split work into several parts
_WAVES = 8  # blocks a multiprocessor, so that the last ones to finish matter little


def power_of_two(wanted: int, least: int, most: int) -> int:
    """The smallest power of two that holds ``wanted``, within bounds that are powers of two themselves."""
    return min(most, max(least, 1 << max(0, wanted - 1).bit_length()))


def parts(rows: int, across: int, least_rows: int, multiprocessors: int) -> int:
    """In how many parts ``rows`` are summed, when each part is ``across`` blocks wide."""
    wanted = -(-_WAVES * multiprocessors // across)
    most = max(1, rows // (4 * least_rows))
    count = min(wanted, most)
    each = -(-rows // count)
    return max(1, -(-rows // max(1, each)))  # no part is empty


def multiprocessors(device: torch.device) -> int:
    """Of ``device``."""
    return target.width(device).multiprocessors if device.type == "cuda" else _INTERPRETED
