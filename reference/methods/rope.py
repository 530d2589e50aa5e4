"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): positions as rotations of queries and keys.

Coordinates i and i + d/2 of a head of width d form a pair, turned at position m by the angle m * theta^(-2i/d). The
product of a turned query and a turned key depends on the distance of their positions alone, and turning keeps norms.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10_000.0


def rotate(x: Tensor, theta: float = THETA, first: int = 0) -> Tensor:
    """[..., time, width] -> the same shape, each row turned to its position ``first``, ``first`` + 1, ...

    Raises ValueError for an odd width.
    """
    cos, sin = rotation(x.shape[-2], x.shape[-1], theta, first)
    cos, sin = cos.to(x), sin.to(x)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


@lru_cache(maxsize=32)
def rotation(time: int, width: int, theta: float = THETA, first: int = 0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of all angles, float32 [time, width / 2]; shared by all callers, so not to be written to."""
    if width % 2:
        raise ValueError(f"a head of odd width {width} does not divide into pairs")
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(first, first + time, dtype=torch.float64)[:, None] * frequencies
    return angles.cos().float(), angles.sin().float()
