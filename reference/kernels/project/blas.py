"""Matrix products on the platform's fastest float32 BLAS, always in full precision.

Two routes lead to a BLAS on a CPU. ``torch`` is torch.matmul, which is MKL in most builds. ``onednn`` is oneDNN's inner
product, reached through torch's own operator for fused linear layers. MKL keeps its AVX-512 kernels for Intel's
processors: on an AMD Zen 5 one thread reached 118 GFLOP/s by MKL and 264 by oneDNN.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

Route = Literal["torch", "onednn"]

# Below 128^3 multiplications, and for a block of few rows or columns, oneDNN packs for longer than it saves.
SMALLEST_VOLUME = 128**3
NARROWEST = 8

# A panel of a large result, worked on at once: near the second-level caches, with rows enough to pay for the packing.
PANEL_BYTES = 2**21
PANEL_ROWS = 256


@cache
def gemm_route() -> Route:
    """The route of large float32 products on this machine's CPU; part of what a measurement should report.

    ``onednn`` where torch's BLAS is MKL, the processor has AVX-512 and is not Intel's, and torch was built with oneDNN;
    ``torch`` elsewhere. A rule on the machine, not a measurement, so that equal machines compute equal bits.
    """
    capable = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    foreign = _vendor() not in ("", "GenuineIntel")
    return "onednn" if capable and foreign and "AVX512" in torch.backends.cpu.get_cpu_capability() else "torch"


def route_of(m: int, k: int, n: int, dtype: torch.dtype, device: torch.device) -> Route:
    """The route that an m x k times k x n product takes: small, narrow, non-float32 and non-CPU ones go by torch."""
    large = m * k * n >= SMALLEST_VOLUME and min(m, n) >= NARROWEST
    return gemm_route() if large and dtype == torch.float32 and device.type == "cpu" else "torch"


def matmul(
    A: torch.Tensor, B: torch.Tensor, *, out: torch.Tensor | None = None, route: Route | None = None
) -> torch.Tensor:
    """A @ B for matrices, by ``route`` or by the machine's own.

    Returns ``out`` (m x n with contiguous rows, sharing no memory with A or B) or a new contiguous matrix. float32 is
    computed in float32, whatever torch's settings for reduced precision say. NaN and infinity go as IEEE says, k = 0
    gives zeros. Where a gradient is asked for, torch computes. oneDNN cannot write into ``out``: there a panel of rows
    is computed at a time, see :func:`workspace_bytes`. Raises ValueError for shapes or types that do not fit.
    """
    _check(A, B, out)
    tracked = torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)
    if route is None:
        route = "torch" if tracked else route_of(A.shape[0], *B.shape, A.dtype, A.device)
    product = _by_torch if route == "torch" or 0 in (*A.shape, B.shape[1]) else _by_onednn
    if _is_full(A):
        return product(A, B, out)
    with full_precision(A):
        return product(A, B, out)


@contextmanager
def full_precision(like: torch.Tensor) -> Iterator[None]:
    """Products of float32 tensors on the device of ``like`` round no factor inside, whatever torch's settings say."""
    if _is_full(like):
        yield
        return
    settings = _settings(like)
    before = settings.fp32_precision
    settings.fp32_precision = "ieee"
    try:
        yield
    finally:
        settings.fp32_precision = before


def panel_rows(m: int, n: int) -> int:
    """Rows of a float32 m x n result that are worked on at once: ``PANEL_BYTES`` a thread, at least ``PANEL_ROWS``."""
    rows = PANEL_BYTES * torch.get_num_threads() // (4 * max(1, n))
    return max(1, min(m, max(PANEL_ROWS, rows // 64 * 64)))


def workspace_bytes(m: int, k: int, n: int, *, into: bool, contiguous: bool = True) -> int:
    """What a float32 product on the CPU allocates beyond A, B and its result or ``out`` (``into``).

    ``contiguous`` is about A: of any other, rows are copied. A panel counts three times: oneDNN allocates each, and the
    allocator may place one beside the two before, which were just freed. B is packed block by block in buffers of
    bounded size that both libraries keep from call to call; they are not counted.
    """
    if route_of(m, k, n, torch.float32, torch.device("cpu")) == "torch":
        return 0
    rows = panel_rows(m, n)
    if not contiguous and _turned(m, k, n):
        return 4 * n * (k + m)
    panels = 3 * rows * n if into and rows < m else rows * n if into else 0
    return 4 * (panels + (0 if contiguous else (rows if into else m) * k))


def _by_torch(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    return torch.matmul(A, B) if out is None else torch.matmul(A, B, out=out)


def _by_onednn(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    if not A.is_contiguous() and _turned(*A.shape, B.shape[1]):
        product = _inner_product(B.mT.contiguous(), _dense(A)).mT
        return product.contiguous() if out is None else out.copy_(product)
    weight = _dense(B.mT)
    if out is None:
        return _inner_product(A.contiguous(), weight)
    rows = panel_rows(A.shape[0], B.shape[1])
    for start in range(0, A.shape[0], rows):
        part = slice(start, start + rows)
        out[part].copy_(_inner_product(A[part].contiguous(), weight))
    return out


def _turned(m: int, k: int, n: int) -> bool:
    """Whether the transposed product, which wants copies of B and of the result, copies less than A's rows would be."""
    return n * (k + m) < m * k


def _inner_product(A: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A @ weight^T."""
    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(A, weight, None, "none", [], "")
    return product


def _dense(weight: torch.Tensor) -> torch.Tensor:
    """``weight``, copied unless it or its transpose is contiguous: for other strides oneDNN is slow beyond reason."""
    return weight if weight.is_contiguous() or weight.mT.is_contiguous() else weight.contiguous()


def _settings(like: torch.Tensor) -> Any:
    """Where torch keeps whether float32 factors may be rounded."""
    return torch.backends.cuda.matmul if like.device.type == "cuda" else torch.backends.mkldnn.matmul


def _is_full(like: torch.Tensor) -> bool:
    return like.dtype != torch.float32 or _settings(like).fp32_precision in ("ieee", "none")


def _check(A: torch.Tensor, B: torch.Tensor, out: torch.Tensor | None) -> None:
    if A.ndim != 2 or B.ndim != 2 or A.shape[1] != B.shape[0]:
        raise ValueError(f"A @ B needs matrices that fit, got {tuple(A.shape)} and {tuple(B.shape)}")
    if A.dtype != B.dtype or A.device != B.device:
        raise ValueError(f"A and B must agree in type and device, got {A.dtype}, {B.dtype}, {A.device}, {B.device}")
    if out is None:
        return
    if tuple(out.shape) != (A.shape[0], B.shape[1]) or out.dtype != A.dtype or out.device != A.device:
        raise ValueError(f"out must be {A.shape[0]} x {B.shape[1]} of A's type and device, got {tuple(out.shape)} "
                         f"{out.dtype} on {out.device}")
    if out.shape[1] > 1 and out.stride(1) != 1:
        raise ValueError("out must have contiguous rows")


@cache
def _vendor() -> str:
    """The processor's maker as Linux names it; empty where unknown."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("vendor_id")), "")
