"""What a CUDA device is called by compilers, how wide it is, and scratch memory on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

_workspaces: dict[tuple[int, int], torch.Tensor] = {}


@dataclass(frozen=True)
class Width:
    """Streaming multiprocessors of a device and the most shared memory that a block may have, in bytes."""

    multiprocessors: int
    shared_bytes: int


def index(device: str | torch.device) -> int:
    """The number of a CUDA device; ``cuda`` without one is torch's current device."""
    device = torch.device(device)
    return int(torch.cuda.current_device() if device.index is None else device.index)


@cache
def arch(device_index: int) -> str:
    """The real architecture that nvcc compiles for, such as ``sm_90``."""
    major, minor = torch.cuda.get_device_capability(device_index)
    return f"sm_{major}{minor}"


@cache
def width(device: torch.device) -> Width:
    """How wide ``device`` is."""
    properties = torch.cuda.get_device_properties(device)
    # All of a multiprocessor's but the KiB that the system keeps for each block.
    return Width(properties.multi_processor_count, properties.shared_memory_per_multiprocessor - 1024)


def workspace(device: torch.device, size_bytes: int) -> torch.Tensor:
    """At least ``size_bytes`` of scratch memory that the current stream of ``device`` has to itself.

    One buffer a stream, kept and grown, so that repeated calls allocate nothing. What it holds is anything.
    """
    key = (index(device), torch.cuda.current_stream(device).cuda_stream)
    buffer = _workspaces.get(key)
    if buffer is None or buffer.numel() < size_bytes:
        buffer = _workspaces[key] = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    return buffer
