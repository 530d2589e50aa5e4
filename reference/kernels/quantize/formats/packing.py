"""Codes of 1, 2 and 4 bits packed into bytes, in plain torch; the backends pack in their kernels by the same rule.

The first entry takes the highest bits of a byte, as in bitsandbytes' nibbles and ``numpy.packbits``. Entries follow one
another in memory order, across rows; what is left of the last byte is filled up with ``fill``.
"""

from __future__ import annotations

import torch

from reference.kernels.quantize.formats.support import codes_per_byte

Tensor = torch.Tensor


def pack_codes(codes: Tensor, bits: int, fill: int = 0) -> Tensor:
    """uint8[ceil(n*bits/8)] of ``codes``, uint8 of any shape with values below 2^bits; ``bits`` is 1, 2 or 4."""
    each = _packable(bits)
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, found {codes.dtype}")
    flat = torch.nn.functional.pad(codes.reshape(-1), (0, -codes.numel() % each), value=fill).view(-1, each)
    packed = torch.zeros(flat.shape[0], dtype=torch.uint8, device=codes.device)
    for place in range(each):
        packed |= flat[:, place] << (8 - bits * (place + 1))
    return packed


def unpack_codes(packed: Tensor, bits: int, entries: int) -> Tensor:
    """uint8[entries]: the codes that :func:`pack_codes` packed."""
    each = _packable(bits)
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() != -(-entries // each):
        raise ValueError(
            f"{entries} codes of {bits} bits are uint8[{-(-entries // each)}], "
            f"found {packed.dtype} of shape {tuple(packed.shape)}"
        )
    parts = [(packed >> (8 - bits * (place + 1))) & (2**bits - 1) for place in range(each)]
    return torch.stack(parts, 1).reshape(-1)[:entries]


def _packable(bits: int) -> int:
    if bits not in {1, 2, 4}:
        raise ValueError(f"1, 2 and 4 bits can be packed, not {bits!r}")
    return codes_per_byte(bits)
