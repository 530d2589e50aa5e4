"""What the formats share: the choice of a backend and the checks of tensors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from reference.kernels.backend import BackendMissing, choose, missing

Tensor = torch.Tensor

SOURCE = Path(__file__).with_name("formats.cu")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
_MODULES = {"numba": "numba_cpu", "eager": "eager", "triton": "triton_gpu", "cuda": "cuda_gpu"}


def kernels(backend: str, device: torch.device, no_cuda: str | None = None) -> ModuleType:
    """The module that does the work on ``device``; see :func:`reference.kernels.backend.choose` for the errors.

    ``no_cuda`` says what ``formats.cu`` has no kernel for, if that is the case: then ``auto`` takes Triton or eager,
    and asking for ``cuda`` raises BackendMissing with those words.
    """
    if no_cuda is not None and backend == "cuda":
        raise BackendMissing(f"backend cuda has no kernel for this: {no_cuda}; use triton")
    name = choose(backend, str(device), SOURCE)
    if no_cuda is not None and name == "cuda":
        name = "eager" if missing("triton", str(device)) else "triton"
    return import_module(f"{__package__}.{_MODULES[name]}")


def flat_input(name: str, x: Tensor) -> Tensor:
    """``x`` as a vector, detached. Raises ValueError unless it is contiguous float32, float16 or bfloat16."""
    if x.dtype not in FLOATS:
        raise ValueError(f"{name} must be float32, float16 or bfloat16, found {x.dtype}")
    if not x.is_contiguous():
        raise ValueError(f"{name} must be contiguous, found strides {x.stride()} for shape {tuple(x.shape)}")
    return x.detach().view(-1)


def check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """``tensor`` itself. Raises ValueError unless it is contiguous and has this type, shape and device."""
    found = (tensor.dtype, tuple(tensor.shape), tensor.device)
    if found != (dtype, tuple(shape), device) or not tensor.is_contiguous():
        raise ValueError(
            f"{name} must be contiguous {dtype} of shape {tuple(shape)} on {device}, "
            f"found {found[0]} of shape {found[1]} on {found[2]}"
        )
    return tensor


def result(out: Tensor | None, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """``out`` when it fits, or a fresh tensor of a float ``dtype``. Raises ValueError otherwise."""
    wanted = dtype if out is None else out.dtype
    if wanted not in FLOATS:
        raise ValueError(f"values come back as float32, float16 or bfloat16, not {wanted}")
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    return check("out", out, out.dtype, shape, device)


def code_bytes(entries: int, bits: int) -> int:
    """Bytes of ``entries`` codes: packed for 1, 2 and 4 bits, else a byte each."""
    return -(-entries // codes_per_byte(bits))


def codes_per_byte(bits: int) -> int:
    """How many codes share a byte: 8, 4 and 2 for 1, 2 and 4 bits, else one."""
    return 8 // bits if bits in {1, 2, 4} else 1
