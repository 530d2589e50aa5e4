"""Logarithmic codes of non-negative numbers: x becomes s * 2^(-code*q/r), or 0.

log2 is q = r = 1; AdaLog (arXiv 2407.12951) keeps r = 37 and searches q. code = round(-log2(x/s) * r/q), half to even,
found without a logarithm: by comparing x with the edges s * 2^(-(k + 1/2)*q/r), rounded to float32 so that every
comparison decides as the real numbers do. Codes are therefore equal in every backend. Rules at the edges:

- x > s takes code 0, the largest value; what is too small for the last code is flushed to 0, as are negative and
  subnormal entries (AdaLog's lower clip of x/s at 1e-15 never shows: it would only keep values that small);
- ``zero="extra"``, the papers' arithmetic: 2^bits powers and, one code above them, zero; a byte a code, so 7 bits at
  most;
- ``zero="last"``: 2^bits - 1 powers, and the last code is zero; 2-bit and 4-bit codes are packed (see ``packing``);
- a NaN takes code 0; without a given s, a NaN or an infinity makes s NaN and the whole tensor comes back as NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from reference.kernels.quantize.formats.books import LogBook, log_book
from reference.kernels.quantize.formats.support import check, code_bytes, codes_per_byte, flat_input, kernels, result

Tensor = torch.Tensor

NO_CUDA = "logarithmic codes"
ADALOG_R = 37


@dataclass(frozen=True)
class Logarithmic:
    """codes uint8 of ``shape``, or packed uint8[ceil(n*bits/8)] for 2 and 4 bits with ``zero`` ``last``."""

    codes: Tensor
    scale: float
    shape: tuple[int, ...]
    bits: int
    q: int
    r: int
    zero: str

    @property
    def book(self) -> LogBook:
        """The values and thresholds of the codes."""
        if self.zero not in {"extra", "last"}:
            raise ValueError(f"zero must be 'extra' or 'last', found {self.zero!r}")
        most = 7 if self.zero == "extra" else 8
        if not isinstance(self.bits, int) or not 2 <= self.bits <= most:
            raise ValueError(f"bits must be 2 to {most} with zero={self.zero!r}, found {self.bits!r}")
        return log_book(self.scale, self.q, self.r, 2**self.bits - (self.zero == "last"))

    @property
    def each(self) -> int:
        """Codes in a byte."""
        return codes_per_byte(self.bits) if self.zero == "last" else 1

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, and 4 for the scale."""
        return self.codes.nbytes + 4


def quantize_log(
    x: Tensor, *, bits: int = 4, q: int = 1, r: int = 1, scale: float | None = None, zero: str = "extra",
    out: Logarithmic | None = None, backend: str = "auto",
) -> Logarithmic:
    """The codes of ``x``, contiguous float32, float16 or bfloat16; ``scale`` (rounded to float32) defaults to max x.

    q/r >= 1/5. ``out`` lends its codes, of the same shape and packing, to the result. Raises ValueError for what does
    not fit, BackendMissing where ``backend`` cannot run (there is no CUDA C++ kernel: ``auto`` takes Triton).
    """
    flat = flat_input("x", x)
    s = _largest(flat) if scale is None else float(np.float32(scale))
    if scale is not None and not 0 < s < math.inf:
        raise ValueError(f"scale must be positive and finite, found {scale!r}")
    each = codes_per_byte(bits) if zero == "last" and bits in {2, 4} else 1
    shape = tuple(x.shape) if each == 1 else (code_bytes(x.numel(), bits),)
    codes = torch.empty(shape, dtype=torch.uint8, device=x.device) if out is None else out.codes
    check("codes", codes, torch.uint8, shape, x.device)
    done = Logarithmic(codes, s, tuple(x.shape), bits, q, r, zero)
    book = done.book
    if flat.numel():
        kernels(backend, x.device, NO_CUDA).quantize_log(flat, book, bits, each, codes.view(-1))
    return done


def quantize_adalog(
    x: Tensor, *, q: int, bits: int = 4, scale: float | None = 1.0, backend: str = "auto"
) -> Logarithmic:
    """:func:`quantize_log` with AdaLog's base 2^(q/37); after a softmax the scale is 1."""
    return quantize_log(x, bits=bits, q=q, r=ADALOG_R, scale=scale, backend=backend)


def dequantize_log(
    packed: Logarithmic, *, rounded: bool = False, dtype: torch.dtype = torch.float32, out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The values of the codes, float32 rounded to ``dtype`` (or to the type of ``out``), of ``packed.shape``.

    ``rounded`` takes the fraction's powers from AdaLog's table, whose entries are multiples of 1/(2^(bits+1) - 2), as
    its shift-and-look-up hardware would; else they are exact up to float32.
    """
    device, book = packed.codes.device, packed.book
    n = torch.Size(packed.shape).numel()
    shape = packed.shape if packed.each == 1 else (code_bytes(n, packed.bits),)
    check("codes", packed.codes, torch.uint8, shape, device)
    values = result(out, dtype, packed.shape, device)
    if n:
        table = torch.from_numpy(book.values(packed.bits if rounded else None)).to(device)
        work = kernels(backend, device, NO_CUDA)
        work.dequantize_log(packed.codes.view(-1), table, packed.bits, packed.each, values.view(-1))
    return values


def _largest(flat: Tensor) -> float:
    """max x, at least 0; NaN when an entry is NaN or infinite."""
    if not flat.numel():
        return 0.0
    low, high = torch.aminmax(flat)
    return max(float(high), 0.0) if bool(torch.isfinite(low) & torch.isfinite(high)) else math.nan
