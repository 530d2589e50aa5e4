"""Block-wise 8-bit quantisation and the optimizer steps on 8-bit states (arXiv 2110.02861).

A block of B consecutive entries of a flat tensor keeps its largest magnitude N_b in float32 and, for every entry, the
index of the code nearest to x/N_b (ties to the lower code). Rules at the edges, the same in every backend:

- the last block may be shorter; ``block=None`` makes the whole tensor one block;
- x/N_b is the quotient rounded to float32, as IEEE division gives it, and midpoints of codes are exact, so codes and
  scales are equal bit for bit in every backend; parameters agree within the rounding of a root and a division;
- an all-zero block has N_b = 0 and gives zeros back;
- a NaN or an infinity makes N_b NaN or infinite, and then the whole block comes back as NaN, from a map that holds 0:
  failures stay visible;
- subnormal entries and scales count like others, unless the process flushes them to zero.

Tensors are contiguous and on one device, the maps too. ``backend`` is one of ``BACKENDS`` or ``auto``, the default of
:mod:`reference.kernels.backend`; BackendMissing says why one cannot run. Nothing is allocated but the results that no
``out=`` was given for and what ``cost.workspace_bytes`` declares. Wrong types, shapes or devices raise ValueError.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from reference.kernels.backend import BACKENDS, choose
from reference.kernels.quantize.maps import MAPS, check_map, dynamic_map, linear_map
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

Tensor = torch.Tensor

SOURCE = Path(__file__).with_name("quantize.cu")
_MODULES = {"numba": "numba_cpu", "eager": "eager", "triton": "triton_gpu", "cuda": "cuda_gpu"}


def backend_module(name: str, device: str = "cpu") -> ModuleType:
    """The module that does the work on ``device``; see :func:`reference.kernels.backend.choose` for the errors."""
    return _module(choose(name, device, SOURCE))


@cache
def _module(backend: str) -> ModuleType:
    return import_module(f"{__name__}.{_MODULES[backend]}")


def block_count(n: int, block: int | None) -> int:
    """How many scales ``n`` entries have."""
    if block is not None and block < 1:
        raise ValueError(f"a block holds at least one entry, found {block}")
    return -(-n // _block_size(n, block)) if n else 0


def quantize_blockwise(
    x: Tensor, *, code: Tensor, block: int | None = 256, out: tuple[Tensor, Tensor] | None = None,
    backend: str = "auto", keep_sign: bool = False,
) -> tuple[Tensor, Tensor]:
    """(codes uint8[N], absmax float32[blocks]) of ``x``, float32 of any shape, flattened in memory order.

    With ``keep_sign`` a negative entry that would become 0 takes the code below it, if there is one: no first moment
    loses its sign. ``code`` is a sorted float32[256] in [-1, 1]. ``out`` holds the two results.
    """
    x = x.detach()
    _check("x", x, torch.float32, x.numel(), x)
    _check_code("code", code, x)
    n, blocks = x.numel(), block_count(x.numel(), block)
    if out is None:
        out = torch.empty(n, dtype=torch.uint8, device=x.device), torch.empty(blocks, device=x.device)
    codes, absmax = out
    _check("codes", codes, torch.uint8, n, x)
    _check("absmax", absmax, torch.float32, blocks, x)
    if n:
        kernels = backend_module(backend, str(x.device))
        kernels.quantize(x.view(-1), code, _block_size(n, block), codes.view(-1), absmax, keep_sign)
    return out


def dequantize_blockwise(
    codes: Tensor, absmax: Tensor, code: Tensor, *, block: int | None, shape: tuple[int, ...] | None = None,
    out: Tensor | None = None, backend: str = "auto",
) -> Tensor:
    """``code[codes] * absmax`` as float32 of ``shape`` (codes' own by default), or in ``out``.

    The inverse of :func:`quantize_blockwise` up to rounding.
    """
    n = codes.numel()
    _check("codes", codes, torch.uint8, n, codes)
    _check("absmax", absmax, torch.float32, block_count(n, block), codes)
    _check_code("code", code, codes)
    if out is None:
        out = torch.empty(codes.shape if shape is None else shape, dtype=torch.float32, device=codes.device)
    _check("out", out, torch.float32, n, codes)
    if n:
        kernels = backend_module(backend, str(codes.device))
        kernels.dequantize(codes.view(-1), absmax, code, _block_size(n, block), out.view(-1))
    return out


def adam8bit_step(
    p: Tensor, g: Tensor, m_codes: Tensor, v_codes: Tensor, m_absmax: Tensor, v_absmax: Tensor, *,
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, block: int | None,
    m_map: Tensor | None = None, v_map: Tensor | None = None, keep_sign: bool = False, backend: str = "auto",
) -> None:
    """One AdamW step in place on ``p`` and the 8-bit states; ``step`` counts from 1.

    m <- beta1*m + (1-beta1)*g; v <- beta2*v + (1-beta2)*g^2; p <- (1-lr*weight_decay)*p
    - lr*sqrt(1-beta2^t)/(1-beta1^t) * m/(sqrt(v) + eps*sqrt(1-beta2^t)), from m and v before they are requantised,
    each with a fresh scale per block. ``p`` and ``g`` are contiguous float32 of one size; the maps default to the
    dynamic ones, signed for m and unsigned for v.
    """
    n = p.numel()
    m_state = _state("m", p, block, m_codes, m_absmax, m_map, signed=True)
    v_state = _state("v", p, block, v_codes, v_absmax, v_map, signed=False)
    settings = AdamSettings.at_step(step, lr, beta1, beta2, eps, weight_decay, keep_sign)
    flat_p, flat_g = _flat_pair(p, g)
    if n:
        kernels = backend_module(backend, str(p.device))
        kernels.adam(flat_p, flat_g, m_state, v_state, _block_size(n, block), settings)


def momentum8bit_step(
    p: Tensor, g: Tensor, m_codes: Tensor, m_absmax: Tensor, *,
    lr: float, momentum: float, weight_decay: float, block: int | None,
    m_map: Tensor | None = None, keep_sign: bool = False, backend: str = "auto",
) -> None:
    """One step of SGD with momentum in place: m <- momentum*m + (g + weight_decay*p); p <- p - lr*m; requantise m."""
    m_state = _state("m", p, block, m_codes, m_absmax, m_map, signed=True)
    settings = MomentumSettings.of(lr, momentum, weight_decay, keep_sign)
    flat_p, flat_g = _flat_pair(p, g)
    if n := p.numel():
        kernels = backend_module(backend, str(p.device))
        kernels.momentum(flat_p, flat_g, m_state, _block_size(n, block), settings)


def lion8bit_step(
    p: Tensor, g: Tensor, m_codes: Tensor, m_absmax: Tensor, *,
    lr: float, beta1: float, beta2: float, weight_decay: float, block: int | None,
    m_map: Tensor | None = None, keep_sign: bool = False, backend: str = "auto",
) -> None:
    """One step of Lion (arXiv 2302.06675) in place: c = beta1*m + (1-beta1)*g; p <- (1-lr*weight_decay)*p - lr*sign(c);

    m <- beta2*m + (1-beta2)*g; requantise m. sign(0) = 0, and where c is NaN p becomes NaN.
    """
    m_state = _state("m", p, block, m_codes, m_absmax, m_map, signed=True)
    settings = LionSettings.of(lr, beta1, beta2, weight_decay, keep_sign)
    flat_p, flat_g = _flat_pair(p, g)
    if n := p.numel():
        kernels = backend_module(backend, str(p.device))
        kernels.lion(flat_p, flat_g, m_state, _block_size(n, block), settings)


def _block_size(n: int, block: int | None) -> int:
    return max(n, 1) if block is None else block


def _state(
    name: str, p: Tensor, block: int | None, codes: Tensor, absmax: Tensor, code: Tensor | None, *, signed: bool
) -> tuple[Tensor, Tensor, Tensor]:
    code = dynamic_map(signed, str(p.device)) if code is None else code
    _check(f"{name}_codes", codes, torch.uint8, p.numel(), p)
    _check(f"{name}_absmax", absmax, torch.float32, block_count(p.numel(), block), p)
    _check_code(f"{name}_map", code, p)
    return codes.view(-1), absmax, code


def _flat_pair(p: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    _check("p", p, torch.float32, p.numel(), p)
    _check("g", g, torch.float32, p.numel(), p)
    return p.detach().view(-1), g.detach().view(-1)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, size: int, beside: Tensor) -> None:
    if tensor.dtype != dtype or tensor.numel() != size or not tensor.is_contiguous() or tensor.device != beside.device:
        raise ValueError(
            f"{name} must be contiguous {dtype} of {size} entries on {beside.device}, found {tensor.dtype} of shape "
            f"{tuple(tensor.shape)} and strides {tensor.stride()} on {tensor.device}"
        )


def _check_code(name: str, code: Tensor, beside: Tensor) -> None:
    check_map(code)
    _check(name, code, torch.float32, 256, beside)


__all__ = [
    "BACKENDS", "MAPS", "adam8bit_step", "backend_module", "block_count", "dequantize_blockwise", "dynamic_map",
    "linear_map", "lion8bit_step", "momentum8bit_step", "quantize_blockwise",
]
