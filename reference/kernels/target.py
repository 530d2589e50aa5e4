"""What a CUDA device is called by compilers and how wide it is; asked once a device."""

from __future__ import annotations

from functools import cache

import torch


def index(device: str | torch.device) -> int:
    """The number of a CUDA device; ``cuda`` without one is torch's current device."""
    device = torch.device(device)
    return torch.cuda.current_device() if device.index is None else device.index


@cache
def arch(device_index: int) -> str:
    """The real architecture that nvcc compiles for, such as ``sm_90``."""
    major, minor = torch.cuda.get_device_capability(device_index)
    return f"sm_{major}{minor}"


@cache
def multiprocessors(device_index: int) -> int:
    """How many streaming multiprocessors the device has."""
    return int(torch.cuda.get_device_properties(device_index).multi_processor_count)
