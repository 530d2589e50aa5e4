"""Adam's two moments of one tensor, in full precision or in block-wise 8-bit codes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference.kernels.project import adam_direction
from reference.kernels.quantize import block_count, dequantize_blockwise, dynamic_map, quantize_blockwise

BLOCK = 256
MIN_8BIT_ELEMENTS = 4096


@dataclass
class FullMoments:
    """M and V as tensors in the gradient's dtype."""

    M: torch.Tensor
    V: torch.Tensor

    def direction(self, R: torch.Tensor, betas: tuple[float, float], eps: float, backend: str) -> torch.Tensor:
        """Take R into the moments; returns M / (sqrt(V) + eps)."""
        return adam_direction(R, self.M, self.V, betas, eps, backend)


@dataclass
class ByteMoments:
    """M in the signed and V in the unsigned dynamic 8-bit map, one float32 scale per block of 256.

    Moments are decoded, updated in float32 and coded again; N comes from the values before they are coded, so a step
    sees the coding error of earlier steps only.
    """

    m_codes: torch.Tensor
    m_absmax: torch.Tensor
    v_codes: torch.Tensor
    v_absmax: torch.Tensor
    shape: tuple[int, ...]

    def direction(self, R: torch.Tensor, betas: tuple[float, float], eps: float, backend: str) -> torch.Tensor:
        """Take R into the moments; returns M / (sqrt(V) + eps) in R's dtype."""
        coder = "numba" if backend == "numba" else "eager"
        m_map, v_map = (dynamic_map(signed).to(R.device) for signed in (True, False))
        M = dequantize_blockwise(self.m_codes, self.m_absmax, m_map, block=BLOCK, shape=self.shape, backend=coder)
        V = dequantize_blockwise(self.v_codes, self.v_absmax, v_map, block=BLOCK, shape=self.shape, backend=coder)
        N = adam_direction(R.float(), M, V, betas, eps, backend)
        self.m_codes, self.m_absmax = quantize_blockwise(M, code=m_map, block=BLOCK, backend=coder)
        self.v_codes, self.v_absmax = quantize_blockwise(V, code=v_map, block=BLOCK, backend=coder)
        return N.to(R.dtype)


Moments = FullMoments | ByteMoments


def zero_moments(shape: tuple[int, ...], like: torch.Tensor, bits: int = 32) -> Moments:
    """Moments of zero on ``like``'s device; ``bits=8`` codes tensors of at least 4096 elements.

    Otherwise they have ``like``'s dtype. Raises ValueError for other ``bits``.
    """
    if bits not in (8, 32):
        raise ValueError(f"bits must be 8 or 32, found {bits}")
    size = 1
    for length in shape:
        size *= length
    if bits == 32 or size < MIN_8BIT_ELEMENTS:
        return FullMoments(*(torch.zeros(shape, dtype=like.dtype, device=like.device) for _ in range(2)))
    blocks = block_count(size, BLOCK)
    # a zero scale decodes every code to zero
    codes = [torch.zeros(size, dtype=torch.uint8, device=like.device) for _ in range(2)]
    scales = [torch.zeros(blocks, dtype=torch.float32, device=like.device) for _ in range(2)]
    return ByteMoments(codes[0], scales[0], codes[1], scales[1], shape)
