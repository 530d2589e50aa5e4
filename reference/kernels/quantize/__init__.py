"""Block-wise 8-bit quantisation and the optimizer steps on 8-bit states (arXiv 2110.02861).

A block of B consecutive entries of a flat tensor keeps its largest magnitude N_b in float32 and, for every entry, the
index of the code nearest to x/N_b (ties to the lower code). Rules at the edges, the same in every backend:

- the last block may be shorter; ``block=None`` makes the whole tensor one block;
- an all-zero block has N_b = 0 and gives zeros back;
- a NaN or an infinity makes N_b NaN or infinite, and then the whole block comes back as NaN: failures stay visible.
"""

from __future__ import annotations

from types import ModuleType

import torch

from reference.kernels.quantize import eager
from reference.kernels.quantize.maps import MAPS, check_map, dynamic_map, linear_map
from reference.kernels.quantize.settings import AdamSettings, MomentumSettings

Tensor = torch.Tensor

BACKENDS = ("numba", "eager")


def backend_module(name: str) -> ModuleType:
    """The backend ``numba`` (CPU tensors) or ``eager`` (any device). Raises ValueError for another name."""
    if name == "eager":
        return eager
    if name == "numba":
        from reference.kernels.quantize import numba_cpu

        return numba_cpu
    raise ValueError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")


def block_count(n: int, block: int | None) -> int:
    """How many scales ``n`` entries have."""
    if block is not None and block < 1:
        raise ValueError(f"a block holds at least one entry, found {block}")
    return -(-n // _block_size(n, block)) if n else 0


def quantize_blockwise(
    x: Tensor, *, code: Tensor, block: int | None = 256, backend: str = "numba", keep_sign: bool = False
) -> tuple[Tensor, Tensor]:
    """(codes uint8[N], absmax float32[blocks]) of ``x``, float32 of any shape, flattened in memory order.

    With ``keep_sign`` a negative entry that would become 0 takes the code below it, as the CUDA kernels do for the
    first moment. ``code`` is a sorted float32[256] in [-1, 1].
    """
    check_map(code)
    flat = x.detach().reshape(-1)
    _check("x", flat, torch.float32, flat.numel())
    codes = torch.empty(flat.numel(), dtype=torch.uint8, device=x.device)
    absmax = torch.empty(block_count(flat.numel(), block), dtype=torch.float32, device=x.device)
    if flat.numel():
        backend_module(backend).quantize(flat, code, _block_size(flat.numel(), block), codes, absmax, keep_sign)
    return codes, absmax


def dequantize_blockwise(
    codes: Tensor, absmax: Tensor, code: Tensor, *, block: int | None, shape: tuple[int, ...], backend: str = "numba"
) -> Tensor:
    """``code[codes] * absmax`` as float32 of ``shape``; the inverse of :func:`quantize_blockwise` up to rounding."""
    check_map(code)
    n = codes.numel()
    _check("codes", codes, torch.uint8, n)
    _check("absmax", absmax, torch.float32, block_count(n, block))
    out = torch.empty(n, dtype=torch.float32, device=codes.device)
    if n:
        backend_module(backend).dequantize(codes.reshape(-1), absmax, code, _block_size(n, block), out)
    return out.reshape(shape)


def adam8bit_step(
    p: Tensor, g: Tensor, m_codes: Tensor, v_codes: Tensor, m_absmax: Tensor, v_absmax: Tensor, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, block: int | None,
    m_map: Tensor | None = None, v_map: Tensor | None = None, keep_sign: bool = False, backend: str = "numba",
) -> None:
    """One AdamW step in place on ``p`` and the 8-bit states; ``step`` counts from 1.

    m <- beta1*m + (1-beta1)*g; v <- beta2*v + (1-beta2)*g^2; p <- (1-lr*weight_decay)*p
    - lr*sqrt(1-beta2^t)/(1-beta1^t) * m/(sqrt(v) + eps*sqrt(1-beta2^t)), from m and v before they are requantised,
    each with a fresh scale per block. ``p`` and ``g`` are contiguous float32 of one size; the maps default to the
    dynamic ones, signed for m and unsigned for v.
    """
    m_map = dynamic_map(True) if m_map is None else m_map
    v_map = dynamic_map(False) if v_map is None else v_map
    n = p.numel()
    m_state = _state("m", n, block, m_codes, m_absmax, m_map)
    v_state = _state("v", n, block, v_codes, v_absmax, v_map)
    settings = AdamSettings.at_step(step, lr, beta1, beta2, eps, weight_decay, keep_sign)
    flat_p, flat_g = _flat_pair(p, g)
    if n:
        backend_module(backend).adam(flat_p, flat_g, m_state, v_state, _block_size(n, block), settings)


def momentum8bit_step(
    p: Tensor, g: Tensor, m_codes: Tensor, m_absmax: Tensor, *,
    lr: float, momentum: float, weight_decay: float, block: int | None,
    m_map: Tensor | None = None, keep_sign: bool = False, backend: str = "numba",
) -> None:
    """One step of SGD with momentum in place: m <- momentum*m + (g + weight_decay*p); p <- p - lr*m; requantise m."""
    m_map = dynamic_map(True) if m_map is None else m_map
    n = p.numel()
    m_state = _state("m", n, block, m_codes, m_absmax, m_map)
    flat_p, flat_g = _flat_pair(p, g)
    settings = MomentumSettings.of(lr, momentum, weight_decay, keep_sign)
    if n:
        backend_module(backend).momentum(flat_p, flat_g, m_state, _block_size(n, block), settings)


def _block_size(n: int, block: int | None) -> int:
    return max(n, 1) if block is None else block


def _state(name: str, n: int, block: int | None, codes: Tensor, absmax: Tensor, code: Tensor) -> tuple[Tensor, ...]:
    _check(f"{name}_codes", codes, torch.uint8, n)
    _check(f"{name}_absmax", absmax, torch.float32, block_count(n, block))
    check_map(code)
    return codes.view(-1), absmax, code


def _flat_pair(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    _check("p", p, torch.float32, p.numel())
    _check("g", g, torch.float32, p.numel())
    return p.detach().view(-1), g.detach().view(-1)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, size: int) -> None:
    if tensor.dtype != dtype or tensor.numel() != size or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {dtype} of {size} entries, found {tensor.dtype} of shape {tuple(tensor.shape)}"
        )


__all__ = [
    "BACKENDS", "MAPS", "adam8bit_step", "backend_module", "block_count", "dequantize_blockwise", "dynamic_map",
    "linear_map", "momentum8bit_step", "quantize_blockwise",
]
