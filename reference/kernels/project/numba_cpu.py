"""The elementwise pass between the two GEMMs as one Numba loop: R, M and V are read once, M, V and N written once."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch


@numba.njit(cache=True, fastmath={"contract"}, error_model="numpy")
def _direction(
    R: np.ndarray, M: np.ndarray, V: np.ndarray, N: np.ndarray,
    b1: np.float32, c1: np.float32, b2: np.float32, c2: np.float32, eps: np.float32,
) -> None:
    for i in range(R.size):
        g = R[i]
        m = b1 * M[i] + c1 * g
        v = b2 * V[i] + c2 * g * g
        M[i] = m
        V[i] = v
        N[i] = m / (math.sqrt(v) + eps)


def adam_direction(
    R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, betas: tuple[float, float], eps: float
) -> torch.Tensor:
    """As :func:`reference.kernels.project.eager.adam_direction`, for float32 tensors on the CPU.

    M and V must be contiguous, since they are updated in place. Raises ValueError on anything else.
    """
    for name, tensor in (("R", R), ("M", M), ("V", V)):
        if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
            raise ValueError(f"{name} must be float32 on the CPU, got {tensor.dtype} on {tensor.device}")
    if not (M.is_contiguous() and V.is_contiguous()):
        raise ValueError("M and V must be contiguous")
    N = torch.empty_like(M)
    flat = [tensor.detach().reshape(-1).numpy() for tensor in (R.contiguous(), M, V, N)]
    # 1 - b is rounded after the subtraction: 1 - float32(0.999) would be off by 5e-5
    scalars = (betas[0], 1.0 - betas[0], betas[1], 1.0 - betas[1], eps)
    _direction(*flat, *(np.float32(value) for value in scalars))
    return N
