"""4-bit NormalFloat, block-wise (QLoRA, arXiv 2305.14314, section 3 and appendix E).

A block of consecutive entries of the flat tensor keeps N_b = max |x| in float32; an entry's code is the one of the 16
values nearest to x * (1/N_b), both operations rounded to float32 and a tie going to the lower code, with the midpoints
rounded to float32: the arithmetic of bitsandbytes 0.50, whose bytes are the same. (Its CPU version divides in a ragged
last block; where that rounds to the other side of a midpoint, that code differs by one.)

- Two codes share a byte, the first in the high nibble; an odd last byte is filled up with the code of 0.
- The last block may be shorter. A zero block has N_b = 0 and gives zeros back.
- A block with a NaN or an infinity has that for N_b and comes back as NaN.
- 1/N_b is taken of max(N_b, 1e-38): in blocks below 1e-38 codes are coarse, and an error is at most 2e-38.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference.kernels.quantize.formats.support import check, code_bytes, flat_input, kernels, result

Tensor = torch.Tensor

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class NF4:
    """codes uint8[ceil(n/2)], scale float32[ceil(n/block)] for a tensor of ``shape`` with n entries."""

    codes: Tensor
    scale: Tensor
    shape: tuple[int, ...]
    block: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.codes.nbytes + self.scale.nbytes


def quantize_nf4(x: Tensor, *, block: int = 64, out: NF4 | None = None, backend: str = "auto") -> NF4:
    """The codes of ``x``, contiguous float32, float16 or bfloat16 of any shape; ``block`` is one of ``BLOCKS``.

    ``out``, an earlier result for this shape and block, is written again and returned.
    Raises ValueError for other inputs, BackendMissing where ``backend`` cannot run.
    """
    flat = flat_input("x", x)
    if out is None:
        out = _empty(tuple(x.shape), block, x.device)
    elif (out.shape, out.block) != (tuple(x.shape), block):
        raise ValueError(f"out is for shape {out.shape} and block {out.block}, not {tuple(x.shape)} and {block}")
    _check(out, x.device)
    if flat.numel():
        kernels(backend, x.device).quantize_nf4(flat, block, out.codes, out.scale)
    return out


def dequantize_nf4(
    packed: NF4, *, dtype: torch.dtype = torch.float32, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """value[code] * N_b in float32, rounded to ``dtype`` (or to the type of ``out``), of ``packed.shape``."""
    device = packed.codes.device
    _check(packed, device)
    values = result(out, dtype, packed.shape, device)
    if values.numel():
        kernels(backend, device).dequantize_nf4(packed.codes, packed.scale, packed.block, values.view(-1))
    return values


def _empty(shape: tuple[int, ...], block: int, device: torch.device) -> NF4:
    n = torch.Size(shape).numel()
    codes = torch.empty(code_bytes(n, 4), dtype=torch.uint8, device=device)
    return NF4(codes, torch.empty(_blocks(n, block), device=device), shape, block)


def _blocks(n: int, block: int) -> int:
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {', '.join(map(str, BLOCKS))}, found {block!r}")
    return -(-n // block)


def _check(packed: NF4, device: torch.device) -> None:
    n = torch.Size(packed.shape).numel()
    check("codes", packed.codes, torch.uint8, (code_bytes(n, 4),), device)
    check("scale", packed.scale, torch.float32, (_blocks(n, packed.block),), device)
