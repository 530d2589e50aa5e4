"""Scratch memory that is allocated once and used again."""

from __future__ import annotations

from math import prod

import torch


class Workspace:
    """Named scratch tensors, kept by an optimizer for all its parameters; each grows to the largest that was asked for.

    Not to be shared by threads: two calls that run at once would write into the same memory.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype, torch.device], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
        """A contiguous tensor with undefined content; the next ``take`` of the same name returns the same memory."""
        key = (name, dtype, torch.device(device))
        length = prod(shape)
        kept = self._kept.get(key)
        if kept is None or kept.numel() < length:
            kept = self._kept[key] = torch.empty(length, dtype=dtype, device=device)
        return kept[:length].view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(tensor.nbytes for tensor in self._kept.values())
