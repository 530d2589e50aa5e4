"""Which backend works on given tensors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch

from reference.kernels import backend as backends

SOURCE = Path(__file__).with_name("project.cu")

_MODULES = {"numba": "numba_cpu", "eager": "eager", "triton": "triton_gpu", "cuda": "cuda_gpu"}
_WIDE = (torch.float32,)
# Types that a backend's kernels take; eager takes all.
TYPES = {"numba": _WIDE, "triton": (*_WIDE, torch.float16, torch.bfloat16), "cuda": _WIDE}


def name(backend: str, *tensors: torch.Tensor) -> str:
    """The backend to use on ``tensors``: ``backend`` itself, or for ``auto`` the device's default.

    ``auto`` falls back to eager for types, strides and gradients that kernels do not take. A backend that was named is
    held to it: BackendMissing where it cannot run, ValueError for an unknown name, a type or strides.
    """
    chosen = backends.choose(backend, str(tensors[0].device), SOURCE)
    if chosen == "eager":
        return chosen
    refusal = next((reason for tensor in tensors if (reason := _refusal(chosen, tensor))), None)
    if refusal is None:
        return chosen
    if backend == "auto":
        return "eager"
    raise ValueError(f"backend {chosen} {refusal}")


def module(backend: str, *tensors: torch.Tensor) -> ModuleType:
    """The module of :func:`name`, imported on first use."""
    return import_module(f"reference.kernels.project.{_MODULES[name(backend, *tensors)]}")


def _refusal(chosen: str, tensor: torch.Tensor) -> str | None:
    if tensor.dtype not in TYPES[chosen]:
        types = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES[chosen])
        return f"takes tensors of {types} only, got {tensor.dtype}"
    if not tensor.is_contiguous():
        return f"takes contiguous tensors only, got strides {tensor.stride()}"
    if tensor.requires_grad and torch.is_grad_enabled():
        return "computes no gradients; call it under torch.no_grad()"
    return None
