"""CUDA C++ sources compiled by nvcc, one cubin for each real architecture, kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from reference.kernels.backend import BackendMissing

FLAGS = ("-std=c++17", "-O3", "-lineinfo", "-Xptxas", "-v")
HOW_TO_INSTALL = "install the CUDA toolkit and put its bin folder on PATH, or set CUDA_HOME"
TIMEOUT_S = 600

_INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)
_ENTRY = re.compile(r"Compiling entry function '([^']+)' for")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+)(?:\+\d+)? bytes smem")


class CompileError(RuntimeError):
    """nvcc refused a source; the message is its own, with file and line."""


@dataclass(frozen=True)
class Resources:
    """What a thread or (``shared_bytes``) a block of one kernel takes, as ptxas reports it; spills are in bytes."""

    registers: int
    shared_bytes: int
    spill_stores: int
    spill_loads: int
    stack_bytes: int


@dataclass(frozen=True)
class Compiled:
    """A cubin on disk, the seconds it took to have it now, and what its kernels take by name."""

    path: Path
    seconds: float
    from_cache: bool
    resources: dict[str, Resources]


def find() -> Path | None:
    """nvcc in CUDA_HOME, else on PATH; None when there is none."""
    home = os.environ.get("CUDA_HOME")
    if home and (inside := Path(home) / "bin" / "nvcc").is_file():
        return inside
    found = shutil.which("nvcc")
    return Path(found) if found else None


def build(source: Path, arch: str, flags: Sequence[str] = ()) -> Compiled:
    """The cubin of ``source`` for ``arch`` (``sm_90``), compiled unless one of equal source, flags and nvcc is cached.

    Headers that it includes by ``#include "..."`` from its folder count as source. Without nvcc the newest cached
    cubin of equal source and flags is taken. Processes may build the same file at once: each cubin appears whole.
    Raises BackendMissing when there is neither nvcc nor a cubin, CompileError with nvcc's message, FileNotFoundError
    for a missing source.
    """
    began = time.perf_counter()
    stem = _stem(source, arch, flags)
    nvcc = find()
    if nvcc is None:
        cubin = _newest(f"{stem}-*.cubin")
        if cubin is None:
            raise BackendMissing(f"nvcc is not installed and no compiled {source.name} for {arch} is cached; "
                                 f"{HOW_TO_INSTALL}")
    else:
        cubin = folder() / f"{stem}-{_digest(version(nvcc).encode())}.cubin"
    fresh = not (cubin.is_file() and _table(cubin).is_file())
    if fresh:
        if nvcc is None:
            raise BackendMissing(f"{cubin} has lost its table of resources and nvcc is not installed; {HOW_TO_INSTALL}")
        _compile(nvcc, source, arch, flags, cubin)
    resources = {name: Resources(**numbers) for name, numbers in json.loads(_table(cubin).read_text()).items()}
    return Compiled(cubin, time.perf_counter() - began, not fresh, resources)


def has_cubin(arch: str, source: Path | None = None, flags: Sequence[str] = ()) -> bool:
    """Whether a cubin for ``arch`` is cached: of ``source`` as it is now, or of any source."""
    return _newest(f"*-{arch}-*.cubin" if source is None else f"{_stem(source, arch, flags)}-*.cubin") is not None


def folder() -> Path:
    """Where cubins are kept: ``litmus/cubin`` below $XDG_CACHE_HOME (``~/.cache``)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "litmus" / "cubin"


def version(nvcc: Path) -> str:
    """What ``nvcc --version`` prints; asked again when the file changes."""
    return _version(nvcc, nvcc.stat().st_mtime_ns)


@cache
def _version(nvcc: Path, _changed_ns: int) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def _stem(source: Path, arch: str, flags: Sequence[str]) -> str:
    if not re.fullmatch(r"sm_\d+[a-z]?", arch):
        raise ValueError(f"arch must be a real architecture such as sm_90, not {arch!r}")
    text = b"\0".join([*_texts(source), *(flag.encode() for flag in (*FLAGS, *flags))])
    return f"{source.stem}-{arch}-{_digest(text)}"


def _texts(source: Path) -> list[bytes]:
    """The source and the headers beside it that it includes, each once."""
    texts: dict[Path, bytes] = {}
    waiting = [source]
    while waiting:
        path = waiting.pop()
        if path in texts:
            continue
        texts[path] = path.read_bytes()
        headers = (path.parent / name.decode() for name in _INCLUDE.findall(texts[path]))
        waiting += [header for header in headers if header.is_file()]
    return list(texts.values())


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def _newest(pattern: str) -> Path | None:
    return max(folder().glob(pattern), key=lambda path: path.stat().st_mtime_ns, default=None)


def _table(cubin: Path) -> Path:
    return cubin.with_suffix(".json")


def _compile(nvcc: Path, source: Path, arch: str, flags: Sequence[str], cubin: Path) -> None:
    cubin.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cubin.parent, prefix=f".{cubin.stem}-") as scratch:
        output, table = Path(scratch) / cubin.name, Path(scratch) / _table(cubin).name
        virtual = arch.replace("sm_", "compute_")
        target = ("-cubin", f"-gencode=arch={virtual},code={arch}", "-o", str(output))
        command = [str(nvcc), *FLAGS, *flags, *target, str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        if done.returncode != 0:
            raise CompileError(f"nvcc could not compile {source} for {arch}:\n{(done.stderr + done.stdout).strip()}")
        resources = {name: asdict(numbers) for name, numbers in parse(done.stdout + done.stderr).items()}
        table.write_text(json.dumps(resources, indent=1))
        # The table first: a cubin that can be seen always has one.
        table.replace(_table(cubin))
        output.replace(cubin)


def parse(log: str) -> dict[str, Resources]:
    """Resources by kernel from what ``-Xptxas -v`` prints."""
    parts = _ENTRY.split(log)
    return {name: _resources(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def _resources(text: str) -> Resources:
    stack, stores, loads = (int(number) for number in _found(_STACK, text).groups())
    shared = _SHARED.search(text)
    return Resources(int(_found(_REGISTERS, text)[1]), int(shared[1]) if shared else 0, stores, loads, stack)


def _found(pattern: re.Pattern[str], text: str) -> re.Match[str]:
    match = pattern.search(text)
    if match is None:
        raise CompileError(f"ptxas reported no {pattern.pattern!r} in: {text.strip()}")
    return match
