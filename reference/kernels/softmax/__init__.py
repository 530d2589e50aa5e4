"""Softmax over the last axis by the algorithms of "The Two-Pass Softmax Algorithm" (arXiv 2001.04438).

``two_pass`` reads the input twice and holds e^x as p * 2^n, so that no maximum is needed; ``three_pass_recompute`` and
``three_pass_reload`` are the paper's baselines; ``online`` keeps a running maximum. All share one polynomial exp.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray | torch.Tensor

BACKENDS = ("numba", "eager")
ALGORITHMS = ("two_pass", "three_pass_recompute", "three_pass_reload", "online")


def softmax(
    x: Array, out: Array | None = None, *, algorithm: str = "two_pass", backend: str = "numba",
    threads: int | None = None,
) -> Array:
    """softmax(x) over the last axis of a 1-D or (rows, n) float32 numpy array or CPU tensor.

    Returns ``out`` (same kind, shape and type as ``x``; allocated when None, never ``x`` itself). Outputs above 2^-100
    are within a few units of 2^-24 of the exact value; those below 2^-128 are 0. As in torch: -inf gives 0, a row of
    nothing but -inf gives NaN, and so does a row with NaN or +inf. n = 0 gives an empty result. ``threads`` None takes
    the library's setting. Raises ValueError for an unknown backend or algorithm, a wrong shape or memory that is not
    C-contiguous, TypeError for another type.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; there are {', '.join(ALGORITHMS)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    _check("x", x)
    if out is None:
        out = _empty_like(x)
    else:
        _check("out", out)
        if type(out) is not type(x) or out.shape != x.shape:
            raise ValueError(f"out must be like x: {type(x).__name__} of shape {tuple(x.shape)}")
    if 0 in x.shape:
        return out
    rows = (1, x.shape[0]) if x.ndim == 1 else tuple(x.shape)
    convert = _to_torch if backend == "eager" else _to_numpy
    _module(backend).softmax(convert(x).reshape(rows), convert(out).reshape(rows), algorithm, threads)
    return out


def _module(backend: str) -> ModuleType:
    if backend == "eager":
        from reference.kernels.softmax import eager

        return eager
    from reference.kernels.softmax import numba_cpu

    return numba_cpu


def _is_tensor(x: Any) -> bool:
    return "torch" in sys.modules and isinstance(x, sys.modules["torch"].Tensor)


def _check(name: str, x: Any) -> None:
    if not _is_tensor(x) and type(x).__name__ != "ndarray":
        raise TypeError(f"{name} must be a numpy array or a torch tensor, not {type(x).__name__}")
    if str(x.dtype).removeprefix("torch.") != "float32":
        raise TypeError(f"{name} must be float32, not {x.dtype}")
    if x.ndim not in (1, 2):
        raise ValueError(f"{name} must be 1-D or (rows, n), not {x.ndim}-D")
    if _is_tensor(x) and x.device.type != "cpu":
        raise ValueError(f"{name} must be on the CPU, not on {x.device}")
    if not (x.is_contiguous() if _is_tensor(x) else x.flags.c_contiguous):
        raise ValueError(f"{name} must be C-contiguous")


def _empty_like(x: Any) -> Any:
    import numpy as np

    return sys.modules["torch"].empty_like(x) if _is_tensor(x) else np.empty_like(x)


def _to_numpy(x: Any) -> Any:
    return x.detach().numpy() if _is_tensor(x) else x


def _to_torch(x: Any) -> Any:
    if _is_tensor(x):
        return x.detach()
    import torch

    return torch.from_numpy(x)
