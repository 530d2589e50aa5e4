"""The error that error feedback carries to the next step, in full precision or in min-max buckets of 8 or 4 bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class ErrorBuffer:
    """A matrix stored row by row: one bucket a row with its smallest value and the width of its uniform levels.

    With 32 bits ``values`` holds it exactly. With 8 or 4 bits a value comes back within half a level,
    (max - min) / (2 * (2^bits - 1)) of its row; two 4-bit codes share a byte.
    """

    bits: int
    shape: tuple[int, int]
    values: torch.Tensor
    low: torch.Tensor | None = None
    width: torch.Tensor | None = None

    @classmethod
    def zeros(cls, like: torch.Tensor, bits: int) -> ErrorBuffer:
        """A zero error of ``like``'s shape. Raises ValueError unless ``bits`` is 32, 8 or 4."""
        if bits not in (4, 8, 32):
            raise ValueError(f"bits must be 4, 8 or 32, found {bits}")
        rows, columns = like.shape
        if bits == 32:
            return cls(bits, (rows, columns), torch.zeros_like(like))
        stored = columns if bits == 8 else -(-columns // 2)
        low, width = (torch.zeros(rows, 1, dtype=like.dtype, device=like.device) for _ in range(2))
        codes = torch.zeros(rows, stored, dtype=torch.uint8, device=like.device)
        return cls(bits, (rows, columns), codes, low, width)

    def store(self, error: torch.Tensor) -> None:
        """Keep ``error`` until the next step."""
        if self.bits == 32:
            self.values.copy_(error)
            return
        assert self.low is not None
        assert self.width is not None
        levels = 2**self.bits - 1
        low, high = error.aminmax(dim=1, keepdim=True)
        self.low.copy_(low)
        self.width.copy_((high - low) / levels)
        # a constant row has no width: every code means its value
        scale = torch.where(self.width > 0, self.width, torch.ones_like(self.width))
        codes = ((error - low) / scale).round_().clamp_(0, levels).to(torch.uint8)
        if self.bits == 8:
            self.values.copy_(codes)
            return
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        self.values.copy_(codes[:, 0::2] << 4 | codes[:, 1::2])

    def load(self) -> torch.Tensor:
        """The kept error, float of the matrix's shape."""
        if self.bits == 32:
            return self.values
        assert self.low is not None
        assert self.width is not None
        codes = self.values
        if self.bits == 4:
            codes = torch.stack((codes >> 4, codes & 0x0F), dim=-1).flatten(1)[:, : self.shape[1]]
        return codes.to(self.low.dtype) * self.width + self.low
