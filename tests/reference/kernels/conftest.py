"""What the tests of all kernels share: a device, Triton ahead of time, nvcc."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

ARCHS = ("sm_80", "sm_90")


def _beside(name: str) -> ModuleType:
    """The module ``name`` of this directory; tests are not a package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def device() -> str:
    """``cuda`` where there is one, else ``cpu`` with Triton's interpreter."""
    if torch.cuda.is_available():
        return "cuda"
    pytest.importorskip("triton")
    from reference.kernels import backend

    assert backend.interpreted(), "triton was imported before TRITON_INTERPRET was set"
    return "cpu"


@pytest.fixture(scope="session")
def aot() -> Iterator[Callable[..., dict[int, dict[str, int]]]]:
    """``aot("module:function", signature, constexprs, divisible=(), **options)``: compiled for cc 80 and 90.

    ``signature`` maps argument names to Triton types (``*fp32``, ``i64``), ``constexprs`` the rest to values,
    ``divisible`` names arguments known to be multiples of 16, ``options`` are num_warps, num_stages and the like.
    Returns {80: {"shared_bytes", "fused", "registers", "stack_bytes"}, 90: ...}: ``fused`` counts float32 multiply-adds
    of one rounding; ``registers`` and ``stack_bytes`` (where spills live) are absent where cuobjdump is. Fails with
    Triton's message when it does not compile.
    """
    pytest.importorskip("triton")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(Path(__file__).with_name("ahead_of_time.py"))]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as worker:

        def compiled(
            kernel: str, signature: Mapping[str, str], constexprs: Mapping[str, object], divisible: Sequence[str] = (),
            **options: int,
        ) -> dict[int, dict[str, int]]:
            request = {"kernel": kernel, "signature": dict(signature), "constexprs": dict(constexprs),
                       "divisible": list(divisible), "options": options}
            print(json.dumps(request), file=worker.stdin, flush=True)
            answer = json.loads(worker.stdout.readline() or '{"error": "the compiling process died"}')
            assert "error" not in answer, answer["error"]
            return {int(cc): numbers for cc, numbers in answer.items()}

        yield compiled
        worker.stdin.close()


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Callable[..., object]]:
    """``on_cpu(source)``: a stand-in for driver.kernel that runs the kernels of ``source`` on CPU tensors.

    The threads of a block run one after the other (cuda_on_cpu.h): arithmetic, indices and waiting are proven, nothing
    of speed or memory order. Skips where nvcc or g++ is not installed.
    """
    from reference.kernels import nvcc as compiler

    if compiler.find() is None or shutil.which("g++") is None:
        pytest.skip("NOT CHECKED: running CUDA kernels on the CPU takes nvcc and g++")
    host = _beside("on_cpu")

    @cache
    def stand_in(source: Path) -> Callable[..., object]:
        names = list(compiler.build(source, ARCHS[-1]).resources)
        library = host.compiled(source, names, compiler.find(), tmp_path_factory.mktemp(source.stem))
        return lambda _source, name, _device: host.CpuKernel(library, name)

    return stand_in


@pytest.fixture(scope="session")
def nvcc() -> Callable[[Path], dict[str, dict[str, object]]]:
    """``nvcc(source)``: {"sm_80": {kernel: Resources}, "sm_90": ...}; skips where nvcc is not installed."""
    from reference.kernels import nvcc as compiler

    if compiler.find() is None:
        pytest.skip(f"NOT CHECKED: no nvcc to compile CUDA kernels with; {compiler.HOW_TO_INSTALL}")
    return lambda source: {arch: compiler.build(source, arch).resources for arch in ARCHS}
