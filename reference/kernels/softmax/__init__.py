"""Softmax, log-softmax and log-sum-exp over the last axis by the algorithms of "The Two-Pass Softmax Algorithm".

``two_pass`` (arXiv 2001.04438) reads the input twice and holds e^x as p * 2^n, so that no maximum is needed;
``three_pass_recompute`` and ``three_pass_reload`` are the paper's baselines; ``online`` keeps a running maximum. All
share one polynomial exp.

Every backend module (``numba_cpu``, ``eager``, ``triton_gpu``, ``cuda_gpu``) has these three functions; what they get
has been checked, is not empty and is contiguous; ``threads`` is None or at least 1 and means nothing on a GPU:

    softmax(x, out, algorithm, threads) -> None       x, out (rows, n); out is x itself or shares no memory with it
    log_softmax(x, out, algorithm, threads) -> None   the same
    log_sum_exp(x, out, algorithm, threads) -> None   x (rows, n), out (rows,)

``x`` and ``out`` are torch tensors of the same type, float32, float16 or bfloat16, on one device (``numba_cpu`` takes
numpy arrays too).

The rules, in every backend and algorithm (as torch has them):

- -inf is a masked element: its softmax is exactly 0, its log-softmax -inf, and the rest is as if it were not there.
- A row of nothing but -inf, and one that holds NaN or +inf, is NaN throughout in softmax and log-softmax.
- Log-sum-exp of a row is NaN where it holds NaN, else +inf where it holds +inf, else -inf where all is masked.
- n = 0: softmax and log-softmax are empty, log-sum-exp is -inf.

The errors: computing is done in float32 with sums in float64, and rounded once to the type of ``x`` at the end
(``three_pass_reload`` rounds the terms it stores as well, so halves are rounded twice there).

- softmax above 2^-100: within 8 units of 2^-24 for ``two_pass``; the others round x - max first, which adds half a unit
  in the last place of the largest difference (at most 64 units of 2^-24 where it counts). Below 2^-128 it is 0.
- log-softmax: within 8 units of 2^-24 * max(1, |value|).
- log-sum-exp: within 8 units of 2^-24 * max(1, |value|).
- Halves add half a unit in their own last place; ``three_pass_reload`` 1.5.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reference.kernels.backend import BACKENDS, choose

if TYPE_CHECKING:
    import numpy as np
    import torch

    Array = np.ndarray | torch.Tensor

__all__ = ["ALGORITHMS", "BACKENDS", "log_softmax", "log_sum_exp", "softmax"]

ALGORITHMS = ("two_pass", "three_pass_recompute", "three_pass_reload", "online")
TYPES = ("float32", "float16", "bfloat16")
_MODULES = {
    backend: f"{__name__}.{module}"
    for backend, module in {"numba": "numba_cpu", "eager": "eager", "triton": "triton_gpu", "cuda": "cuda_gpu"}.items()
}
_SOURCE = Path(__file__).with_name("softmax.cu")
# Why an algorithm is not one of the function.
_WITHOUT_RELOAD = {
    "log_softmax": "three_pass_reload has no meaning for log_softmax: the last pass needs no exponential to reload",
    "log_sum_exp": "three_pass_reload has no meaning for log_sum_exp: no term is stored that could be reloaded",
}


def softmax(
    x: Array, out: Array | None = None, *, algorithm: str = "two_pass", backend: str = "auto",
    threads: int | None = None,
) -> Array:
    """softmax(x) over the last axis of a 1-D or (rows, n) array (float32, float16) or tensor (also bfloat16).

    Returns ``out``: of the same kind, shape, type and device as ``x``, allocated when None; ``x`` itself or memory that
    shares none of its own. Special values and errors are as the module says. ``backend`` is one of ``BACKENDS`` or
    ``auto``, the best one on the device of ``x``; ``threads`` None takes the library's setting. Tensors are detached.

    Raises ValueError for an unknown backend or algorithm, a wrong shape, memory that is not C-contiguous or overlaps in
    part, TypeError for another type, BackendMissing for a backend that cannot run on the device of ``x``.
    """
    return _run("softmax", x, out, algorithm, backend, threads)


def log_softmax(
    x: Array, out: Array | None = None, *, algorithm: str = "two_pass", backend: str = "auto",
    threads: int | None = None,
) -> Array:
    """x - ln(sum(e^x)) over the last axis; takes, returns and refuses what :func:`softmax` does.

    ``three_pass_reload`` is refused: the last pass subtracts from x, there is no exponential that it could reload.
    """
    return _run("log_softmax", x, out, algorithm, backend, threads)


def log_sum_exp(
    x: Array, out: Array | None = None, *, algorithm: str = "two_pass", backend: str = "auto",
    threads: int | None = None,
) -> Array:
    """ln(sum(e^x)) over the last axis of a 1-D or (rows, n) array or tensor: 0-D or (rows,), of the type of ``x``.

    A single sweep for ``two_pass`` and ``online``, two for ``three_pass_recompute``; ``three_pass_reload`` is refused,
    since nothing is stored. Otherwise as :func:`softmax`, but that ``out`` must share no memory with ``x``.
    """
    return _run("log_sum_exp", x, out, algorithm, backend, threads)


def _run(op: str, x: Any, out: Any, algorithm: str, backend: str, threads: int | None) -> Any:
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    if algorithm not in ALGORITHMS:
        raise ValueError(f"unknown algorithm {algorithm!r}; there are {', '.join(ALGORITHMS)}")
    if algorithm == "three_pass_reload" and op in _WITHOUT_RELOAD:
        raise ValueError(_WITHOUT_RELOAD[op])
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    tensor = _is_tensor(x)
    _check("x", x, tensor)
    if x.ndim not in (1, 2):
        raise ValueError(f"x must be 1-D or (rows, n), not {x.ndim}-D")
    shape = tuple(x.shape[:-1] if op == "log_sum_exp" else x.shape)
    if out is None:
        out = _empty(shape, x, tensor)
    else:
        _check_out(out, shape, x, tensor)
        _check_memory(x, out, tensor, op != "log_sum_exp")
    chosen = choose(backend, str(x.device) if tensor else "cpu", _SOURCE)
    rows, n = (1, x.shape[0]) if x.ndim == 1 else x.shape
    if rows == 0 or n == 0:
        if op == "log_sum_exp":
            out[...] = -float("inf")
        return out
    source, target = (x.detach(), out.detach()) if tensor else (x, out)
    if not tensor and chosen != "numba":
        import torch

        source, target = torch.from_numpy(x), torch.from_numpy(out)
    source = source.reshape(rows, n)
    target = target.reshape(rows) if op == "log_sum_exp" else target.reshape(rows, n)
    getattr(import_module(_MODULES[chosen]), op)(source, target, algorithm, threads)
    return out


def _is_tensor(x: Any) -> bool:
    return "torch" in sys.modules and isinstance(x, sys.modules["torch"].Tensor)


def _type(x: Any) -> str:
    return str(x.dtype).removeprefix("torch.")


def _check(name: str, x: Any, tensor: bool) -> None:
    if not tensor and type(x).__name__ != "ndarray":
        raise TypeError(f"{name} must be a numpy array or a torch tensor, not {type(x).__name__}")
    if _type(x) not in TYPES:
        raise TypeError(f"{name} must be {', '.join(TYPES[:-1])} or {TYPES[-1]}, not {x.dtype}")
    if tensor and x.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name} must be on the CPU or on a CUDA device, not on {x.device}")
    if not (x.is_contiguous() if tensor else x.flags.c_contiguous):
        raise ValueError(f"{name} must be C-contiguous; it has shape {tuple(x.shape)} and other strides")


def _check_out(out: Any, shape: tuple[int, ...], x: Any, tensor: bool) -> None:
    _check("out", out, _is_tensor(out))
    if (
        _is_tensor(out) is not tensor or tuple(out.shape) != shape or out.dtype != x.dtype
        or (tensor and out.device != x.device)
    ):
        kind, device = ("torch tensor", f" on {x.device}") if tensor else ("numpy array", "")
        raise ValueError(f"out must be a {kind} of {_type(x)} and shape {shape}{device}")


def _check_memory(x: Any, out: Any, tensor: bool, in_place: bool) -> None:
    (begin, end), (out_begin, out_end) = _extent(x, tensor), _extent(out, tensor)
    if in_place and (begin, end) == (out_begin, out_end):
        return
    if max(begin, out_begin) < min(end, out_end):
        rule = "be x itself or share no memory with it" if in_place else "share no memory with x"
        raise ValueError(f"out must {rule}; they overlap")


def _extent(x: Any, tensor: bool) -> tuple[int, int]:
    if tensor:
        return x.data_ptr(), x.data_ptr() + x.numel() * x.element_size()
    begin = x.__array_interface__["data"][0]
    return begin, begin + x.nbytes


def _empty(shape: tuple[int, ...], x: Any, tensor: bool) -> Any:
    if tensor:
        return sys.modules["torch"].empty(shape, dtype=x.dtype, device=x.device)
    import numpy as np

    return np.empty(shape, x.dtype)
