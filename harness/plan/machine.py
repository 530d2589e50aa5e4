"""The machine: a stable key apart from its volatile state, its devices and its limits. Imports no torch."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.plan.gpus import visible_gpus

_LIBRARIES = ("torch", "numpy", "numba", "scipy", "scikit-learn", "triton", "bitsandbytes")
_SIMD = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Device:
    """One place to run: ``cpu`` or ``cuda:i`` (torch's own number in a worker), with its name and memory in bytes.

    The rest is known of a CUDA device only. ``uuid`` finds it again in NVML and stays on this machine.
    """

    id: str
    name: str
    memory_bytes: int
    compute_capability: str | None = None
    l2_bytes: int | None = None
    driver: str | None = None
    uuid: str | None = None

    @property
    def kind(self) -> str:
        """``cpu`` or ``cuda``."""
        return self.id.split(":")[0]


@dataclass(frozen=True)
class Machine:
    """What comparisons depend on. ``caches`` maps l1, l2, llc to bytes; equal ``key`` means comparable speed."""

    cpu: str
    cores: int
    memory_bytes: int
    caches: dict[str, int]
    simd: tuple[str, ...]
    system: str
    devices: tuple[Device, ...]

    @property
    def key(self) -> str:
        """A readable, stable name such as ``amd-epyc-2c-24g-1a2b3c``; volatile state and host names stay out."""
        stable = [self.cpu, self.cores, round(self.memory_bytes / 2**30), sorted(self.caches.items()), self.simd,
                  self.system, [(device.id, device.name) for device in self.devices]]
        digest = hashlib.sha256(repr(stable).encode()).hexdigest()[:6]
        words = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")
        words = re.sub(r"-(processor|cpu|core|r|tm)\b", "", words)[:32].strip("-")
        gpus = [re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") for device in self.devices
                if device.kind == "cuda"]
        return "-".join([words or "cpu", f"{self.cores}c", f"{round(self.memory_bytes / 2**30)}g", *gpus[:1], digest])

    def constants(self) -> dict[str, int]:
        """The names a card may use: l1, l2, llc, memory (bytes) and cores."""
        return {**self.caches, "cores": self.cores, "memory": self.memory_bytes}

    def to_dict(self) -> dict[str, Any]:
        """Everything but serial numbers, with the key, as stored in ``run.json``."""
        found = {"key": self.key, **asdict(self), "simd": list(self.simd)}
        found["devices"] = [{name: value for name, value in asdict(device).items()
                             if name != "uuid" and value is not None} for device in self.devices]
        return found

    def device(self, name: str) -> Device | None:
        """The device with this id, None where it is not there."""
        return next((device for device in self.devices if device.id == name), None)


@lru_cache(maxsize=1)
def this_machine() -> Machine:
    """Look at this machine once."""
    model, flags = _cpu_info()
    return Machine(
        cpu=model,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        caches=_caches(),
        simd=tuple(name for name in _SIMD if name in flags),
        system=f"{platform.system()}-{platform.machine()}",
        devices=(Device("cpu", model, _memory_bytes()), *_cuda_devices()),
    )


def software() -> dict[str, str]:
    """Versions that numbers may depend on; part of a run's description, not of the machine's key."""
    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _cpu_info() -> tuple[str, set[str]]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), set()
    fields = dict(re.findall(r"^([\w ]+?)\s*:\s*(.+)$", text.split("\n\n")[0], re.MULTILINE))
    model = fields.get("model name") or fields.get("CPU part") or platform.machine()
    family = "-".join(fields[name] for name in ("cpu family", "model") if name in fields)
    return f"{model.strip()} {family}".strip(), set((fields.get("flags") or fields.get("Features") or "").split())


def _memory_bytes() -> int:
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(limit, int(text)) if text.isdigit() else limit
    except OSError:
        return limit


def _caches() -> dict[str, int]:
    """Data caches of core 0 in bytes; ``llc`` is the largest. Conservative guesses where the system does not tell."""
    found: dict[int, int] = {}
    for index in sorted(_CPUS.glob("cpu0/cache/index*")):
        try:
            if (index / "type").read_text().strip() == "Instruction":
                continue
            level, size = int((index / "level").read_text()), (index / "size").read_text().strip()
        except (OSError, ValueError):
            continue
        found[level] = int(size.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(size[-1], 1)
    l1, l2 = found.get(1, 32 * 2**10), found.get(2, 512 * 2**10)
    return {"l1": l1, "l2": l2, "llc": max([32 * 2**20] if not found else found.values())}


def _cuda_devices() -> tuple[Device, ...]:
    return tuple(
        Device(f"cuda:{index}", gpu.name, gpu.memory_bytes, gpu.compute_capability, gpu.l2_bytes, gpu.driver, gpu.uuid)
        for index, gpu in enumerate(visible_gpus(os.environ))
    )
