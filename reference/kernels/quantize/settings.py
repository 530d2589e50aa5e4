"""The scalars of one optimizer step, as the kernels use them: each is a float32 value."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class AdamSettings:
    """p <- decay*p - step_size*m/(sqrt(v) + eps_hat), with both bias corrections folded into step_size and eps_hat."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    decay: float
    step_size: float
    eps_hat: float
    keep_sign: bool

    @classmethod
    @lru_cache(maxsize=32)
    def at_step(cls, step: int, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float,
                keep_sign: bool = False) -> AdamSettings:
        """The settings of step ``step`` = 1, 2, ...: with c1 = 1 - beta1^t and c2 = sqrt(1 - beta2^t),

        step_size = lr*c2/c1, eps_hat = eps*c2 and decay = 1 - lr*weight_decay.
        """
        if step < 1:
            raise ValueError(f"steps count from 1, found {step}")
        c1, c2 = 1 - beta1**step, (1 - beta2**step) ** 0.5
        scalars = (beta1, 1 - beta1, beta2, 1 - beta2, 1 - lr * weight_decay, lr * c2 / c1, eps * c2)
        return cls(*(float(np.float32(value)) for value in scalars), keep_sign=keep_sign)


@dataclass(frozen=True)
class MomentumSettings:
    """m <- momentum*m + (g + weight_decay*p); p <- p - lr*m."""

    lr: float
    momentum: float
    weight_decay: float
    keep_sign: bool

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, lr: float, momentum: float, weight_decay: float, keep_sign: bool = False) -> MomentumSettings:
        """The settings, rounded to float32."""
        return cls(*(float(np.float32(value)) for value in (lr, momentum, weight_decay)), keep_sign=keep_sign)


@dataclass(frozen=True)
class LionSettings:
    """c = beta1*m + (1-beta1)*g; p <- decay*p - lr*sign(c); m <- beta2*m + (1-beta2)*g."""

    beta1: float
    one_minus_beta1: float
    beta2: float
    one_minus_beta2: float
    decay: float
    lr: float
    keep_sign: bool

    @classmethod
    @lru_cache(maxsize=32)
    def of(cls, lr: float, beta1: float, beta2: float, weight_decay: float, keep_sign: bool = False) -> LionSettings:
        """The settings, rounded to float32; decay = 1 - lr*weight_decay."""
        scalars = (beta1, 1 - beta1, beta2, 1 - beta2, 1 - lr * weight_decay, lr)
        return cls(*(float(np.float32(value)) for value in scalars), keep_sign=keep_sign)
