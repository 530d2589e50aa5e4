"""Kernels of a ``.cu`` file compiled by g++ and run on CPU tensors, thread by thread (see cuda_on_cpu.h)."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from ctypes import c_uint, c_void_p
from pathlib import Path

import numpy as np
import torch

SHIM = Path(__file__).with_name("cuda_on_cpu.h")
# No contraction: the sources say fmaf where they mean it. Shared memory is never initialised.
HOST_FLAGS = "-fPIC,-ffp-contract=off,-fno-strict-aliasing,-fno-extern-tls-init,-w"
SHARED_BYTES = 227 * 1024
SCALARS = {
    np.int32: ctypes.c_int32, np.uint32: ctypes.c_uint32, np.int64: ctypes.c_int64, np.uint64: ctypes.c_uint64,
    np.float32: ctypes.c_float, np.float64: ctypes.c_double,
}
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s*)?(\w+)\s+(\w+)\s*\[\]")


class CpuKernel:
    """Like driver.Kernel, on CPU tensors."""

    def __init__(self, library: ctypes.CDLL, name: str) -> None:
        self.function = getattr(library, f"on_cpu_{name}")

    def launch(self, grid: object, block: object, args: Sequence[object], shared_bytes: int = 0) -> None:
        assert 0 <= shared_bytes <= SHARED_BYTES
        values = [self._value(argument) for argument in args]
        places = (c_void_p * len(values))(*map(ctypes.addressof, values))
        self.function(self._extent(grid), self._extent(block), places)

    @staticmethod
    def _value(argument: object) -> object:
        if isinstance(argument, torch.Tensor):
            assert argument.device.type == "cpu" and argument.is_contiguous()
            return c_void_p(argument.data_ptr())
        return SCALARS[type(argument)](argument.item())

    @staticmethod
    def _extent(extent: object) -> object:
        sizes = (extent,) if isinstance(extent, int) else tuple(extent)
        assert min(sizes) >= 1
        return (c_uint * 3)(*sizes, *(1,) * (3 - len(sizes)))


def compiled(source: Path, names: Sequence[str], nvcc: Path, folder: Path) -> ctypes.CDLL:
    """The library of the kernels ``names``; nvcc only passes g++ the places of its headers."""
    shared = {name: kind for kind, name in _DYNAMIC.findall(source.read_text())}
    memories = "\n".join(
        f"alignas(16) thread_local {kind} {name}[{SHARED_BYTES} / sizeof({kind})];" for name, kind in shared.items()
    )
    clears = "".join(f"std::memset({name}, 255, sizeof {name});" for name in shared)
    launchers = "\n".join(
        f'extern "C" void on_cpu_{name}(const unsigned* grid, const unsigned* threads, void** places) '
        f"{{ cpu::launch({name}, grid, threads, places, clear); }}"
        for name in names
    )
    wrapper, library = folder / f"{source.stem}.cpp", folder / f"{source.stem}.so"
    wrapper.write_text(f'#include "{SHIM}"\n#include "{source}"\nnamespace {{\n{memories}\n'
                       f"void clear() {{ {clears} }}\n}}\n{launchers}\n")
    command = [nvcc, "-x", "c++", "-std=c++17", "-O2", "-shared", "-Xcompiler", HOST_FLAGS, "-o", library, wrapper]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))
