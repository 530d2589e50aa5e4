"""What on this machine would spoil a measurement, and what to do about it. Reads /proc and /sys, changes nothing.

Each check looks below a root folder (``/`` in earnest, a made-up tree in tests) and says what it saw. A file that is
not there makes the finding ``unknown``, never a guess.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from harness.plan.machine import Machine, software

Severity = Literal["ok", "note", "warning", "unknown"]
_CPU = "sys/devices/system/cpu"
_GIB = 2**30
_FAST_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
_DRIVER_FILES = ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")
_PEERS = {
    "bitsandbytes": "the 8-bit optimizer arms", "galore_torch": "the original GaLore arms", "triton": "GPU kernels",
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: what was seen, how much it matters, what to do. ``advice`` is empty when all is well."""

    check: str
    severity: Severity
    seen: str
    advice: str = ""


def read(root: Path, path: str) -> str | None:
    """The stripped text of ``root/path``, None where it cannot be read."""
    try:
        return (root / path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def unknown(check: str, why: str) -> Finding:
    """The finding of a check whose file is not there."""
    return Finding(check, "unknown", why)


def governor(root: Path) -> Finding:
    """Whether every core runs under the ``performance`` frequency governor."""
    found = {text for path in sorted((root / _CPU).glob("cpu[0-9]*/cpufreq/scaling_governor"))
             if (text := read(root, str(path.relative_to(root))))}
    if not found:
        return unknown("governor", "the system shows no frequency governor (usual on virtual machines)")
    if found == {"performance"}:
        return Finding("governor", "ok", "performance")
    return Finding("governor", "warning", ", ".join(sorted(found)),
                   "clock follows load: sudo cpupower frequency-set -g performance")


def turbo(root: Path) -> Finding:
    """Whether the clock may rise above its base, which depends on heat and neighbours."""
    intel, boost = read(root, f"{_CPU}/intel_pstate/no_turbo"), read(root, f"{_CPU}/cpufreq/boost")
    if intel is None and boost is None:
        return unknown("turbo", "the system shows no turbo switch (usual on virtual machines)")
    if intel == "1" or (intel is None and boost == "0"):
        return Finding("turbo", "ok", "off")
    switch = (f"echo 1 | sudo tee /{_CPU}/intel_pstate/no_turbo" if intel is not None
              else f"echo 0 | sudo tee /{_CPU}/cpufreq/boost")
    return Finding("turbo", "note", "on", f"clock depends on heat; for steadier absolute times: {switch}")


def load(root: Path, cores: int) -> Finding:
    """Whether others already keep the cores busy."""
    text = read(root, "proc/loadavg")
    if not text:
        return unknown("load", "no /proc/loadavg")
    average = float(text.split()[0])
    seen = f"{average:.2f} on {cores} cores in the last minute"
    if average <= 0.3 * cores:
        return Finding("load", "ok", seen)
    return Finding("load", "warning", seen, "wait, or stop what is running; see the heavy processes below")


def smt(root: Path) -> Finding:
    """Whether two hardware threads share each core."""
    active = read(root, f"{_CPU}/smt/active")
    if active is None:
        return unknown("smt", "the system does not tell")
    if active == "0":
        return Finding("smt", "ok", "off")
    return Finding("smt", "note", "on: two threads share a core",
                   f"a busy sibling slows a timed core: echo off | sudo tee /{_CPU}/smt/control")


def _meminfo_bytes(root: Path) -> dict[str, int]:
    lines = [line.split() for line in (read(root, "proc/meminfo") or "").splitlines()]
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) >= 2 and words[1].isdigit()}


def memory(root: Path) -> Finding:
    """Whether the largest default cell (8 GiB) fits into the memory that is free now."""
    available = _meminfo_bytes(root).get("MemAvailable")
    if available is None:
        return unknown("memory", "no /proc/meminfo")
    seen = f"{available / _GIB:.1f} GiB available"
    if available >= 8 * _GIB:
        return Finding("memory", "ok", seen)
    return Finding("memory", "warning", seen, "a cell may take 8 GiB unless its card says less: close other programs")


def swap(root: Path) -> Finding:
    """Whether memory has been paged out, which makes the first touch of a page slow."""
    info = _meminfo_bytes(root)
    if "SwapTotal" not in info:
        return unknown("swap", "no /proc/meminfo")
    used = info["SwapTotal"] - info.get("SwapFree", 0)
    if used < 0.01 * _GIB:
        return Finding("swap", "ok", "none in use")
    return Finding("swap", "warning", f"{used / _GIB:.1f} GiB in use",
                   "free memory, then: sudo swapoff -a && sudo swapon -a")


def huge_pages(root: Path) -> Finding:
    """How the kernel hands out transparent huge pages; large arrays are faster with them."""
    text = read(root, "sys/kernel/mm/transparent_hugepage/enabled")
    if not text or "[" not in text:
        return unknown("huge pages", "the system does not tell")
    mode = text.split("[")[1].split("]")[0]
    if mode == "always":
        return Finding("huge pages", "ok", mode)
    return Finding("huge pages", "note", mode,
                   "large arrays pay more page misses; to compare with machines that use them: "
                   "echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled")


def clock(root: Path) -> Finding:
    """Whether reading the time is a register read or a slow device access."""
    name = read(root, "sys/devices/system/clocksource/clocksource0/current_clocksource")
    if name is None:
        return unknown("clock", "the system does not tell")
    if name in _FAST_CLOCKS:
        return Finding("clock", "ok", name)
    return Finding("clock", "warning", name,
                   "each reading costs about a microsecond; boot with clocksource=tsc where the processor has one")


def virtual(root: Path) -> Finding:
    """Whether a hypervisor sits below, which may move the machine between speeds."""
    flags = {word for line in (read(root, "proc/cpuinfo") or "").splitlines() if line.startswith("flags")
             for word in line.split()}
    if not flags:
        return unknown("virtual machine", "no processor flags in /proc/cpuinfo")
    if "hypervisor" not in flags:
        return Finding("virtual machine", "ok", "no hypervisor")
    return Finding("virtual machine", "note", "runs under a hypervisor",
                   "its speed may change within seconds; arms are compared inside a cell, so trust ratios, not times")


def quota(root: Path, cores: int) -> Finding:
    """Whether a control group stops the process when it has used its share."""
    words = (read(root, "sys/fs/cgroup/cpu.max") or "").split()
    if len(words) != 2:
        return unknown("cpu quota", "no cpu.max")
    if words[0] == "max" or int(words[0]) >= cores * int(words[1]):
        return Finding("cpu quota", "ok", "none below the cores")
    return Finding("cpu quota", "warning", f"{int(words[0]) / int(words[1]):.2f} cores of {cores}",
                   "threads are stopped in mid-measurement: raise the container's limit, or pin it to whole cores")


def power(root: Path) -> Finding:
    """Whether a laptop runs on its battery."""
    supplies = [read(root, str(path.relative_to(root))) for path in (root / "sys/class/power_supply").glob("*/online")]
    if not supplies:
        return Finding("power", "ok", "no battery")
    if "1" in supplies:
        return Finding("power", "ok", "mains")
    return Finding("power", "warning", "battery", "plug the machine in: the clock is held down on battery")


def steal(before: str, after: str) -> Finding:
    """The share of time the hypervisor gave to others between two readings of the ``cpu`` line of /proc/stat."""
    try:
        first, second = ([int(word) for word in text.split()[1:9]] for text in (before, after))
        total, stolen = sum(second) - sum(first), second[7] - first[7]
    except (IndexError, ValueError):
        return unknown("steal", "no steal time in /proc/stat")
    if total <= 0:
        return unknown("steal", "no time passed between the two readings")
    seen = f"{100 * stolen / total:.1f} % of the time went to other guests"
    if stolen / total < 0.01:
        return Finding("steal", "ok", seen)
    return Finding("steal", "warning", seen, "the host is overbooked: measure at another time or on another host")


def cpu_ticks(root: Path) -> dict[int, tuple[str, int]]:
    """pid -> (name, processor ticks used so far) of every process below ``root/proc``."""
    found = {}
    for folder in (root / "proc").glob("[0-9]*"):
        text = read(root, f"proc/{folder.name}/stat")
        if not text or ")" not in text:
            continue
        name, fields = text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 1 :].split()
        if len(fields) > 12 and fields[11].isdigit() and fields[12].isdigit():
            found[int(folder.name)] = (name, int(fields[11]) + int(fields[12]))
    return found


def heavy_processes(before: Mapping[int, tuple[str, int]], after: Mapping[int, tuple[str, int]], elapsed_s: float,
                    ticks_per_s: int, own: Iterable[int] = ()) -> Finding:
    """The processes that used more than a tenth of a core between two calls of :func:`cpu_ticks`."""
    ours = set(own)
    shares = {pid: (ticks - before[pid][1]) / ticks_per_s / elapsed_s
              for pid, (_, ticks) in after.items() if pid in before and pid not in ours}
    heavy = sorted(((share, pid) for pid, share in shares.items() if share > 0.1), reverse=True)[:3]
    if not heavy:
        return Finding("processes", "ok", "none above a tenth of a core")
    seen = ", ".join(f"{after[pid][0]} (pid {pid}) {100 * share:.0f} %" for share, pid in heavy)
    return Finding("processes", "warning", seen, "stop them, or wait until they have ended, before measuring speed")


def disk(folder: Path, free_bytes: int) -> Finding:
    """Whether records and artefacts fit."""
    seen = f"{free_bytes / _GIB:.1f} GiB free"
    if free_bytes >= 2 * _GIB:
        return Finding("disk", "ok", seen)
    return Finding("disk", "warning", seen, f"free space below {folder}, or choose another folder with --out")


def peers(installed: Callable[[str], bool]) -> list[Finding]:
    """The optional libraries that are missing, with what is skipped without them."""
    missing = [Finding(f"peer {name}", "note", "not installed", f"no {what}; pip install {name.replace('_', '-')}")
               for name, what in _PEERS.items() if not installed(name)]
    return missing or [Finding("peers", "ok", "all installed")]


def cuda(root: Path, machine: Machine, installed: Callable[[str], bool] = lambda name: find_spec(name) is not None,
         environ: Mapping[str, str] = os.environ, torch_version: str | None = None) -> Finding:
    """Whether a GPU is there, visible to the plan, and of use to the installed torch (None: ask what is installed)."""
    found = [device for device in machine.devices if device.kind == "cuda"]
    if found:
        seen = ", ".join(f"{device.id} {device.name}" for device in found)
        version = software().get("torch", "") if torch_version is None else torch_version
        if version.endswith("+cpu"):
            return Finding("cuda", "warning", f"{seen}, but torch {version} is a build without CUDA",
                           "install a CUDA build: https://pytorch.org/get-started/locally")
        return Finding("cuda", "ok", seen)
    if not any((root / path).exists() for path in _DRIVER_FILES):
        return Finding("cuda", "note", "none", "cells for cuda are skipped with this reason")
    if not installed("pynvml"):
        return Finding("cuda", "warning", "a driver is loaded, but nvidia-ml-py is not installed, so no GPU is seen",
                       "pip install nvidia-ml-py")
    if "CUDA_VISIBLE_DEVICES" in environ:
        return Finding("cuda", "warning",
                       f"a driver is loaded, but CUDA_VISIBLE_DEVICES={environ['CUDA_VISIBLE_DEVICES']} shows no GPU",
                       "unset it, or name GPUs by the index or UUID that nvidia-smi -L prints")
    return Finding("cuda", "warning", "a driver is loaded, but it shows no GPU", "see what is wrong with: nvidia-smi")


def examine(machine: Machine, folder: Path, pause: Callable[[float], None], root: Path = Path("/"),
            pause_s: float = 0.5) -> list[Finding]:
    """All findings. ``pause(seconds)`` lets time pass between the two readings that steal and processes need."""
    stat_before, ticks_before = read(root, "proc/stat") or "", cpu_ticks(root)
    pause(pause_s)
    stat_after, ticks_after = read(root, "proc/stat") or "", cpu_ticks(root)
    return [
        governor(root), turbo(root), load(root, machine.cores),
        heavy_processes(ticks_before, ticks_after, pause_s, os.sysconf("SC_CLK_TCK"), own=[os.getpid()]),
        steal(stat_before.partition("\n")[0], stat_after.partition("\n")[0]),
        smt(root), quota(root, machine.cores), virtual(root), clock(root), memory(root), swap(root), huge_pages(root),
        power(root), disk(folder, shutil.disk_usage(folder).free), cuda(root, machine),
        *peers(lambda name: find_spec(name) is not None),
    ]
