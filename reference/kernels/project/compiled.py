"""``torch.compile`` of the elementwise pass. The first call compiles, which takes many seconds on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch

from reference.kernels.project import eager


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., torch.Tensor]:
    # dynamic=True: one compilation serves every shape
    return torch.compile(eager.adam_direction, dynamic=True)


def adam_direction(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, betas: tuple[float, float], eps: float
) -> torch.Tensor:
    """As :func:`reference.kernels.project.eager.adam_direction`, fused by Inductor."""
    return _compiled()(R, M, V, betas, eps)
