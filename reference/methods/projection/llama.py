"""The shapes of the LLaMA models GaLore trains, and what an optimizer keeps for them. Shapes only, no memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from reference.kernels.project import small_side
from reference.methods.projection.moments import BLOCK, MIN_8BIT_ELEMENTS


@dataclass(frozen=True)
class Llama:
    """One configuration of the GaLore repository: untied head, gated MLP, RMSNorm, no biases."""

    width: int
    mlp: int
    layers: int
    vocabulary: int = 32000

    def matrices(self) -> Iterator[tuple[int, int]]:
        """The attention and MLP weights (out, in), which GaLore projects."""
        for _ in range(self.layers):
            yield from [(self.width, self.width)] * 4
            yield from [(self.mlp, self.width), (self.mlp, self.width), (self.width, self.mlp)]

    def others(self) -> Iterator[tuple[int, ...]]:
        """Embedding, head and norms, which get plain Adam."""
        yield from [(self.vocabulary, self.width)] * 2
        yield from [(self.width,)] * (2 * self.layers + 1)

    def parameter_count(self) -> int:
        """Number of scalars in the model."""
        return sum(torch.Size(shape).numel() for shape in [*self.matrices(), *self.others()])


LLAMA = {
    "60M": Llama(width=512, mlp=1376, layers=8),
    "1B": Llama(width=2048, mlp=5461, layers=24),
    "7B": Llama(width=4096, mlp=11008, layers=32),
}


def meta_parameters(shapes: Iterator[tuple[int, ...]], dtype: torch.dtype) -> list[nn.Parameter]:
    """Parameters without memory."""
    return [nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]


def adam_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """M and V of one parameter."""
    return 2 * itemsize * torch.Size(shape).numel()


def galore_bytes(shape: tuple[int, int], rank: int, itemsize: int, bits: int = 32) -> int:
    """P (m r) and M, V (2 n r) of one m x n matrix with small side m; with ``bits=8`` M and V in byte codes."""
    m, n = min(shape), max(shape)
    r = min(rank, m)
    return itemsize * m * r + 2 * moment_bytes(n * r, itemsize, bits)


def plain_bytes(shape: tuple[int, ...], itemsize: int, bits: int = 32) -> int:
    """M and V of a parameter that is not projected."""
    return 2 * moment_bytes(torch.Size(shape).numel(), itemsize, bits)


def moment_bytes(elements: int, itemsize: int, bits: int = 32) -> int:
    """One moment; with ``bits=8`` a byte an element and a float32 scale a block, from 4096 elements on."""
    if bits == 8 and elements >= MIN_8BIT_ELEMENTS:
        return elements + 4 * -(-elements // BLOCK)
    return itemsize * elements


def lora_bytes(shape: tuple[int, int], rank: int, itemsize: int) -> int:
    """M and V of LoRA's A and B: 2 (m + n) r elements; the factors themselves are weights."""
    return 2 * itemsize * sum(shape) * rank


def dct_bytes(shapes: list[tuple[int, int]], rank: int, itemsize: int) -> int:
    """Of DCT-selected subspaces: M, V (2 n r) and r int32 indices a matrix, and one basis per size of the small side.

    The basis is counted once however many matrices use it.
    """
    own = sum(2 * itemsize * max(shape) * min(rank, *shape) + 4 * min(rank, *shape) for shape in shapes)
    return own + sum(itemsize * small**2 for small in {projected_length(shape) for shape in shapes})


def projected_length(shape: tuple[int, int]) -> int:
    """The length of the side that ``std`` projects."""
    return shape[1] if small_side(*shape) == "right" else shape[0]
