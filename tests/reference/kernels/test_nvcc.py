"""Compiling by nvcc: the cache, the report of resources, refusals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference.kernels import nvcc as compiler
from reference.kernels.backend import BackendMissing
from reference.kernels.nvcc import CompileError, Resources

SOURCE = """
#include "scale.h"
extern "C" __global__ void scale(float* x) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = FACTOR * s[63 - threadIdx.x];
}
extern "C" __global__ void fill(float* x) { x[threadIdx.x] = 1.0f; }
"""
LOG = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 384 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "scale.h").write_text("#define FACTOR 2.0f\n")
    path = tmp_path / "scale.cu"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def installed(source):
    if compiler.find() is None:
        pytest.skip(f"NOT CHECKED: no nvcc; {compiler.HOW_TO_INSTALL}")
    return source


def test_resources_are_read_from_what_ptxas_says():
    assert compiler.parse(LOG) == {"first": Resources(255, 384, 8, 12, 16), "second": Resources(8, 0, 0, 0, 0)}
    assert compiler.parse("ptxas info    : 0 bytes gmem") == {}
    with pytest.raises(CompileError, match="ptxas reported no"):
        compiler.parse("Compiling entry function 'odd' for 'sm_90'")


def test_compiled_once_and_again_when_anything_changes(installed):
    first = compiler.build(installed, "sm_90")
    assert first.path.read_bytes().startswith(b"\x7fELF") and not first.from_cache
    assert set(first.resources) == {"scale", "fill"}
    assert first.resources["scale"].shared_bytes == 256 and first.resources["fill"].shared_bytes == 0
    assert all(taken.registers > 0 and taken.spill_stores == 0 for taken in first.resources.values())
    again = compiler.build(installed, "sm_90")
    assert (again.path, again.resources, again.from_cache) == (first.path, first.resources, True)
    assert again.seconds < first.seconds
    installed.with_name("scale.h").write_text("#define FACTOR 3.0f\n")
    paths = {first.path, compiler.build(installed, "sm_90").path}
    paths |= {compiler.build(installed, "sm_80").path, compiler.build(installed, "sm_90", ["-DX=1"]).path}
    assert len(paths) == 4
    assert sorted(path.suffix for path in compiler.folder().iterdir()) == [".cubin"] * 4 + [".json"] * 4


def test_an_error_shows_file_and_line_and_leaves_nothing(installed):
    installed.write_text(SOURCE + "\n__global__ void broken() { undeclared = 1; }\n")
    with pytest.raises(CompileError, match=r"(?s)could not compile .*scale.cu for sm_90.*\(11\): error.*undeclared"):
        compiler.build(installed, "sm_90")
    assert list(compiler.folder().iterdir()) == []


def test_two_processes_may_compile_the_same_file_at_once(installed):
    code = ("import sys; from pathlib import Path; from reference.kernels import nvcc; "
            "print(nvcc.build(Path(sys.argv[1]), 'sm_90').path)")  # fmt: skip
    command = [sys.executable, "-c", code, str(installed)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    paths = {worker.communicate(timeout=120)[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0] and len(paths) == 1
    assert compiler.build(installed, "sm_90").from_cache
    assert sorted(path.suffix for path in compiler.folder().iterdir()) == [".cubin", ".json"]


def test_without_nvcc(source, monkeypatch):
    monkeypatch.setattr(compiler, "find", lambda: None)
    assert not compiler.has_cubin("sm_90") and not compiler.has_cubin("sm_90", source)
    with pytest.raises(BackendMissing, match=r"no compiled scale.cu for sm_90 is cached; install the CUDA toolkit"):
        compiler.build(source, "sm_90")


def test_without_nvcc_the_newest_cubin_of_the_same_source_is_taken(installed, monkeypatch):
    first = compiler.build(installed, "sm_90")
    monkeypatch.setattr(compiler, "find", lambda: None)
    taken = compiler.build(installed, "sm_90")
    assert taken.path == first.path and taken.from_cache and taken.resources == first.resources
    assert compiler.has_cubin("sm_90", installed) and not compiler.has_cubin("sm_80", installed)
    installed.write_text(SOURCE.replace("1.0f", "2.0f"))
    assert compiler.has_cubin("sm_90") and not compiler.has_cubin("sm_90", installed)
    with pytest.raises(BackendMissing):
        compiler.build(installed, "sm_90")


def test_nvcc_is_looked_for_in_cuda_home_then_on_the_path(tmp_path, monkeypatch):
    for place in ("home/bin", "path"):
        (tmp_path / place).mkdir(parents=True)
        tool = tmp_path / place / "nvcc"
        tool.write_text("#!/bin/sh\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert compiler.find() == tmp_path / "home/bin/nvcc"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "elsewhere"))
    assert compiler.find() == tmp_path / "path/nvcc"
    monkeypatch.setenv("PATH", os.devnull)
    assert compiler.find() is None


def test_refusals(source):
    with pytest.raises(ValueError, match="a real architecture such as sm_90, not 'compute_90'"):
        compiler.build(source, "compute_90")
    with pytest.raises(FileNotFoundError):
        compiler.build(Path("no such file.cu"), "sm_90")
