"""The CUDA devices that a worker will see, in its order: NVML's list through the filter of CUDA_VISIBLE_DEVICES.

Workers run with CUDA_DEVICE_ORDER=PCI_BUS_ID, the order of NVML, so that ``cuda:i`` here is torch's ``cuda:i`` there
and an index in CUDA_VISIBLE_DEVICES counts in that order too. Nothing here makes a CUDA context or imports torch.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

_L2_ATTRIBUTE = 38  # CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE
_MIG_ENABLED = 1


@dataclass(frozen=True)
class Gpu:
    """A whole GPU or, with ``mig``, a slice of one. Sizes in bytes; None where the driver does not tell."""

    uuid: str
    name: str
    memory_bytes: int
    compute_capability: str
    driver: str
    l2_bytes: int | None = None
    mig: bool = False


def visible_gpus(environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows to a process with this environment; () without a driver or without nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        return ()
    return gpus_by(pynvml, environ, l2_sizes)


def gpus_by(nvml: Any, environ: Mapping[str, str], l2: Callable[[], Mapping[str, int]]) -> tuple[Gpu, ...]:
    """:func:`visible_gpus` by the functions of the module ``nvml``; ``l2`` tells the cache sizes by UUID."""
    with _session(nvml) as alive:
        if not alive:
            return ()
        driver = _text(nvml.nvmlSystemGetDriverVersion())
        physical = [_slices(nvml, index, driver) for index in range(nvml.nvmlDeviceGetCount())]
    shown = _enumerated(chosen(physical, environ.get("CUDA_VISIBLE_DEVICES")))
    sizes = l2() if shown else {}
    return tuple(replace(gpu, l2_bytes=sizes.get(gpu.uuid)) for gpu in shown)


def chosen(physical: Sequence[Sequence[Gpu]], visible: str | None) -> list[Gpu]:
    """What CUDA_VISIBLE_DEVICES selects of ``physical``, which holds for each GPU itself or, in MIG mode, its slices.

    Entries are indices, UUIDs or unique beginnings of UUIDs. As in CUDA, the first entry that names nothing ends the
    list, and an entry given twice empties it.
    """
    if visible is None:
        return [gpu for slices in physical for gpu in slices]
    found: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matching = [list(physical[int(entry)])[:1]] if int(entry) < len(physical) else []
        else:
            matching = [[gpu] for slices in physical for gpu in slices if entry and gpu.uuid.startswith(entry)]
        if len(matching) != 1 or not matching[0]:
            break
        if matching[0][0] in found:
            return []
        found += matching[0]
    return found


def _enumerated(gpus: Sequence[Gpu]) -> Sequence[Gpu]:
    """A CUDA process sees a single MIG slice, and beside it no whole GPU."""
    slices = [gpu for gpu in gpus if gpu.mig]
    return slices[:1] or gpus


def _slices(nvml: Any, index: int, driver: str) -> list[Gpu]:
    """GPU ``index`` itself, or its slices in MIG mode; [] where it has none, or is lost to the driver."""
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
        whole = _described(nvml, handle, f"{major}.{minor}", driver)
    except nvml.NVMLError:
        return []
    if not _in_mig_mode(nvml, handle):
        return [whole]
    found = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number)
            found.append(replace(_described(nvml, part, whole.compute_capability, driver), mig=True))
        except nvml.NVMLError:  # no slice at this index
            continue
    return found


def _described(nvml: Any, handle: Any, compute_capability: str, driver: str) -> Gpu:
    return Gpu(_text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle)),
               int(nvml.nvmlDeviceGetMemoryInfo(handle).total), compute_capability, driver)


def _in_mig_mode(nvml: Any, handle: Any) -> bool:
    try:
        return bool(nvml.nvmlDeviceGetMigMode(handle)[0] == _MIG_ENABLED)
    except nvml.NVMLError:  # a GPU that cannot be sliced
        return False


@contextmanager
def _session(nvml: Any) -> Iterator[bool]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def l2_sizes() -> dict[str, int]:
    """L2 bytes by UUID as the CUDA driver tells them; {} where it cannot be asked. NVML does not know them."""
    try:
        cuda = ctypes.CDLL(ctypes.util.find_library("cuda") or "libcuda.so.1")
    except OSError:
        return {}
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return {}
    found = {}
    for index in range(count.value):
        device, size, raw = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
        if (cuda.cuDeviceGet(ctypes.byref(device), index) or cuda.cuDeviceGetUuid_v2(ctypes.byref(raw), device)
                or cuda.cuDeviceGetAttribute(ctypes.byref(size), _L2_ATTRIBUTE, device)):
            continue
        for kind in ("GPU", "MIG"):
            found[f"{kind}-{uuid.UUID(bytes=bytes(raw))}"] = size.value
    return found
