"""Which implementation of an op can run where, and which one is taken when nobody says."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

BACKENDS = ("numba", "eager", "triton", "cuda")
OLDEST_CAPABILITY = (8, 0)

_usable: set[tuple[str, str, Path | None]] = set()


class BackendMissing(RuntimeError):
    """A backend was asked for that cannot run here; the message says which, why, and what to do."""


def missing(backend: str, device: str, source: Path | None = None) -> str | None:
    """Why ``backend`` cannot run on ``device`` (``cpu``, ``cuda``, ``cuda:0``); None when it can.

    ``source`` is the op's ``.cu`` file: without it the answer for ``cuda`` is about any compiled kernel. Raises
    ValueError for a backend that does not exist.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are {', '.join(BACKENDS)}")
    if backend in ("numba", "triton") and find_spec(backend) is None:
        return f"{backend} is not installed; pip install {backend}"
    if device.startswith("cuda"):
        return "numba runs on the CPU" if backend == "numba" else _missing_on_cuda(backend, device, source)
    if device != "cpu":
        return None if backend == "eager" else f"{backend} does not run on {device}"
    if backend == "triton" and not interpreted():
        return "triton runs on a CUDA device (or set TRITON_INTERPRET=1 before anything imports triton)"
    return "cuda runs on a CUDA device" if backend == "cuda" else None


def default(device: str, source: Path | None = None) -> str:
    """The backend for ``device``: numba on a CPU; cuda or triton on a CUDA device; eager where nothing else runs."""
    order = ("cuda", "triton") if device.startswith("cuda") else ("numba",) if device == "cpu" else ()
    return next((name for name in order if _runs(name, device, source)), "eager")


def choose(backend: str, device: str, source: Path | None = None) -> str:
    """``backend``, or the :func:`default` for ``auto``.

    Raises BackendMissing where it cannot run on ``device``, ValueError where there is no such backend. What was once
    found to run is not looked for again.
    """
    if backend == "auto":
        return default(device, source)
    if not _runs(backend, device, source):
        reason = missing(backend, device, source)
        raise BackendMissing(f"backend {backend} cannot run on {device}: {reason}")
    return backend


def interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter: TRITON_INTERPRET=1 was set before triton was imported."""
    if "triton" not in sys.modules:
        return os.environ.get("TRITON_INTERPRET") == "1"
    import triton.language
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(triton.language.sum, InterpretedFunction)


def _runs(backend: str, device: str, source: Path | None) -> bool:
    key = (backend, device, source)
    if key not in _usable and missing(backend, device, source) is None:
        _usable.add(key)
    return key in _usable


def _missing_on_cuda(backend: str, device: str, source: Path | None) -> str | None:
    import torch

    from reference.kernels import target

    if not torch.cuda.is_available():
        return "torch finds no CUDA device; see torch.cuda.is_available()"
    number = target.index(device)
    if number >= torch.cuda.device_count():
        return f"there are only {torch.cuda.device_count()} CUDA devices"
    if backend == "eager":
        return None
    if torch.cuda.get_device_capability(number) < OLDEST_CAPABILITY:
        return f"the kernels need sm_80 or newer, this device is {target.arch(number)}"
    return _missing_compiler(target.arch(number), source) if backend == "cuda" else None


def _missing_compiler(arch: str, source: Path | None) -> str | None:
    from reference.kernels import driver, nvcc

    if (reason := driver.missing()) is not None:
        return reason
    if nvcc.find() is None and not nvcc.has_cubin(arch, source):
        kernel = "compiled kernel" if source is None else f"compiled {source.name}"
        return f"nvcc is not installed and no {kernel} for {arch} is cached; {nvcc.HOW_TO_INSTALL}"
    return None
