"""What a trip through 8 bits does to a tensor, and to the update that is made of it."""

from __future__ import annotations

import torch

from reference.kernels.quantize import dequantize_blockwise, dynamic_map, quantize_blockwise
from suites.quantization.blockwise_8bit_optimizers.arms import BETAS, EPS

Tensor = torch.Tensor


def coded(x: Tensor, code: Tensor, block: int | None) -> Tensor:
    """``x`` after one trip through 8 bits."""
    return dequantize_blockwise(*quantize_blockwise(x, code=code, block=block), code, block=block, shape=x.shape)


def adam_update(m: Tensor, v: Tensor, step: int) -> Tensor:
    """Bias-corrected m/(sqrt(v) + eps), float64."""
    m_hat, v_hat = m.double() / (1 - BETAS[0] ** step), v.double() / (1 - BETAS[1] ** step)
    return m_hat / (v_hat.sqrt() + EPS)


def relative_l1(x: Tensor, chosen: Tensor, block: int | None) -> float:
    """Sum of |coded - x| over sum of |x|, over the chosen entries."""
    error = (coded(x, dynamic_map(True), block) - x).abs()
    return (error[chosen].double().sum() / x[chosen].abs().double().sum()).item()
