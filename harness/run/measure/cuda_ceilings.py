"""What a CUDA device can do at most: bandwidth of copies, reads and triads within its memory, and float32 FLOP/s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.run.measure.cuda import CudaDevice
from harness.run.measure.gpu import TorchGpu

_ARRAY_BYTES = 2**28
_GEMM = 8192
_REPEATS = 30
_LEAD_NS = 200_000


def measure_cuda_ceilings(device: str) -> dict[str, Any]:
    """Bytes per second of streams over arrays far beyond the L2 cache, and FLOP/s of a float32 product without TF32.

    Each is the best of several repeats between two events. Streams count the bytes that the program reads and writes.
    """
    gpu = TorchGpu(device)
    return {**_streams(gpu, device), "flops_per_s": _gemm_flops(gpu, device)}


def _streams(gpu: TorchGpu, device: str) -> dict[str, Any]:
    import torch

    array_bytes = max(_ARRAY_BYTES, 4 * gpu.l2_bytes)
    a, b, c = (torch.full((array_bytes // 4,), float(value), device=device) for value in range(3))
    total = torch.empty((), device=device)

    def rate(amount: float, work: Callable[[], object]) -> float:
        return amount / (best_ns(gpu, work) * 1e-9)

    return {
        "copy_bytes_per_s": rate(2.0 * array_bytes, lambda: a.copy_(b)),
        "read_bytes_per_s": max(rate(1.0 * array_bytes, lambda: torch.sum(b, dim=0, out=total)),
                                rate(1.0 * array_bytes, lambda: torch.amax(b, dim=0, out=total))),
        "triad_bytes_per_s": rate(3.0 * array_bytes, lambda: torch.add(b, c, alpha=3.0, out=a)),
        "array_bytes": array_bytes,
    }


def best_ns(device: CudaDevice, work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Device time of the fastest of ``repeats`` runs of ``work``, the first one and its compilation left out."""
    work()
    device.synchronise()
    pairs = []
    for _ in range(repeats):
        device.spin(_LEAD_NS)
        start = device.event()
        work()
        pairs.append((start, device.event()))
    device.synchronise()
    return min(device.between_ns(start, end) for start, end in pairs)


def _gemm_flops(gpu: TorchGpu, device: str) -> float:
    import torch

    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        left, right = (torch.ones(_GEMM, _GEMM, device=device) for _ in range(2))
        out = torch.empty_like(left)
        return 2.0 * _GEMM**3 / (best_ns(gpu, lambda: torch.mm(left, right, out=out), repeats=10) * 1e-9)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
