"""Ternary codes {-1, 0, 1} times one scale, held as two bit planes.

An entry is kept when |x| >= threshold and x is not 0. The planes are ``mask`` (kept) and ``sign`` (kept and negative),
one bit an entry, the first in the highest bit of a byte: products of two ternary vectors are then ANDs and bit counts,
which is what ComPEFT (arXiv 2311.13171) wants two masks for. Defaults are those of Ternary Weight Networks (arXiv
1605.04711): threshold 0.7 * mean|x| and scale mean|x| over the kept entries. ComPEFT itself is ``density=k,
scale=alpha * x.std()``.

Codes are equal in every backend for a given threshold. Means are sums in float64: a default threshold and scale may
differ in the last place between backends. A NaN or an infinity makes the default scale NaN or infinite, and then no
entry comes back finite; with a given threshold and scale, a NaN becomes 0. Nothing kept means scale 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from reference.kernels.quantize.formats.support import check, code_bytes, flat_input, kernels, result

Tensor = torch.Tensor

NO_CUDA = "ternary codes"
TWN_FACTOR = 0.7


@dataclass(frozen=True)
class Ternary:
    """mask and sign uint8[ceil(n/8)] and a float32 scale, for a tensor of ``shape``; kept counts the bits of mask."""

    mask: Tensor
    sign: Tensor
    scale: float
    shape: tuple[int, ...]
    kept: int

    @property
    def nbytes(self) -> int:
        """Bytes of both planes, and 4 for the scale."""
        return self.mask.nbytes + self.sign.nbytes + 4


def quantize_ternary(
    x: Tensor, *, threshold: float | None = None, density: float | None = None, scale: float | None = None,
    out: Ternary | None = None, backend: str = "auto",
) -> Ternary:
    """The signs of the large entries of ``x``, contiguous float32, float16 or bfloat16.

    ``threshold`` says what is large, or ``density`` k does: the k*n largest magnitudes (rounded, at least one; more
    when several equal the smallest of them). ``scale`` defaults to the mean magnitude of what is kept. ``out`` lends
    its planes to the result. Raises ValueError for what does not fit, BackendMissing where ``backend`` cannot run
    (there is no CUDA C++ kernel: ``auto`` takes Triton).
    """
    flat, planes = flat_input("x", x), (code_bytes(x.numel(), 1),)
    if threshold is not None and density is not None:
        raise ValueError("pass a threshold or a density, not both")
    mask, sign = (torch.empty(planes, dtype=torch.uint8, device=x.device) for _ in range(2)) if out is None else (
        out.mask, out.sign)
    check("mask", mask, torch.uint8, planes, x.device)
    check("sign", sign, torch.uint8, planes, x.device)
    if not flat.numel():
        return Ternary(mask, sign, 0.0 if scale is None else _float32(scale), tuple(x.shape), 0)
    work = kernels(backend, x.device, NO_CUDA)
    if threshold is None:
        threshold = TWN_FACTOR * work.mean_magnitude(flat) if density is None else _magnitude_at(flat, density)
    kept, total = work.quantize_ternary(flat, _at_least(threshold), mask, sign)
    if scale is None:
        # A NaN is not kept, but is in the threshold that came from the data.
        scale = threshold if not math.isfinite(threshold) else total / kept if kept else 0.0
    return Ternary(mask, sign, _float32(scale), tuple(x.shape), kept)


def dequantize_ternary(
    packed: Ternary, *, dtype: torch.dtype = torch.float32, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """scale * {-1, 0, 1}, rounded to ``dtype`` (or to the type of ``out``), of ``packed.shape``."""
    device, n = packed.mask.device, torch.Size(packed.shape).numel()
    for name in ("mask", "sign"):
        check(name, getattr(packed, name), torch.uint8, (code_bytes(n, 1),), device)
    values = result(out, dtype, packed.shape, device)
    if n:
        work = kernels(backend, device, NO_CUDA)
        work.dequantize_ternary(packed.mask, packed.sign, packed.scale, values.view(-1))
    return values


def _magnitude_at(flat: Tensor, density: float) -> float:
    """The smallest of the density*n largest magnitudes; NaN when an entry is NaN."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be in (0, 1], found {density!r}")
    n = flat.numel()
    keep = min(max(round(density * n), 1), n)
    magnitudes = flat.abs().float()
    # kthvalue counts NaN as the largest.
    return math.nan if bool(magnitudes.isnan().any()) else float(magnitudes.kthvalue(n - keep + 1).values)


def _at_least(threshold: float) -> float:
    """The smallest float32 that is not below ``threshold``, so that comparing in float32 decides as in float64."""
    near = np.float32(threshold)
    return float(np.nextafter(near, np.float32(np.inf)) if near < threshold else near)


def _float32(value: float) -> float:
    return float(np.float32(value))
