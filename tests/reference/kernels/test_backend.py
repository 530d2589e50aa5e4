"""Which backend runs where, and what is said when none does."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from reference.kernels import backend, driver, nvcc, target

CUDA = torch.cuda.is_available()
without_cuda = pytest.mark.skipif(CUDA, reason="describes a machine without a CUDA device")


@pytest.fixture
def found_nothing(monkeypatch):
    """As if nothing had been found to run before."""
    monkeypatch.setattr(backend, "_usable", set())


@pytest.fixture
def h100(monkeypatch, found_nothing):
    """What torch would say beside one H100."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (9, 0))
    monkeypatch.setattr(driver, "missing", lambda: None)
    target.arch.cache_clear()
    yield
    target.arch.cache_clear()


def interpreted_in(code: str, interpret: bool) -> str:
    environment = {"TRITON_INTERPRET": "1"} if interpret else {}
    command = [sys.executable, "-c", f"{code}; from reference.kernels import backend; print(backend.interpreted())"]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_the_interpreter_counts_only_if_asked_for_before_triton_is_imported(device):
    late = "import triton, os; os.environ['TRITON_INTERPRET'] = '1'"
    assert interpreted_in("pass", True) == "True"
    assert interpreted_in("import triton", True) == "True"
    assert interpreted_in("import triton", False) == "False"
    assert interpreted_in(late, False) == "False"


def test_on_the_cpu(monkeypatch, found_nothing):
    assert backend.missing("numba", "cpu") is None and backend.missing("eager", "cpu") is None
    assert backend.missing("cuda", "cpu") == "cuda runs on a CUDA device"
    assert backend.default("cpu") == "numba" == backend.choose("auto", "cpu")
    monkeypatch.setattr(backend, "interpreted", lambda: False)
    assert "set TRITON_INTERPRET=1 before anything imports triton" in backend.missing("triton", "cpu")
    monkeypatch.setattr(backend, "interpreted", lambda: True)
    assert backend.missing("triton", "cpu") is None


@pytest.mark.parametrize("name", ["numba", "triton"])
def test_a_library_that_is_not_installed(monkeypatch, found_nothing, name):
    monkeypatch.setattr(backend, "find_spec", lambda module: None if module == name else object())
    assert backend.missing(name, "cpu") == f"{name} is not installed; pip install {name}"
    assert backend.default("cpu") == ("eager" if name == "numba" else "numba")


@without_cuda
@pytest.mark.parametrize("name", ["eager", "triton", "cuda"])
def test_without_a_cuda_device(name):
    with pytest.raises(backend.BackendMissing, match=f"{name} cannot run on cuda:0: torch finds no CUDA device"):
        backend.choose(name, "cuda:0")
    assert backend.default("cuda") == "eager"


def test_on_a_cuda_device(monkeypatch, h100):
    monkeypatch.setattr(nvcc, "find", lambda: "/somewhere/nvcc")
    assert backend.missing("numba", "cuda") == "numba runs on the CPU"
    assert backend.missing("cuda", "cuda:1") == "there are only 1 CUDA devices"
    assert backend.missing("cuda", "cuda") is None and backend.missing("triton", "cuda:0") is None
    assert backend.default("cuda") == "cuda" == backend.choose("auto", "cuda:0")


def test_without_nvcc_a_cached_cubin_will_do(monkeypatch, h100, tmp_path):
    monkeypatch.setattr(nvcc, "find", lambda: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = tmp_path / "op.cu"
    source.write_text("")
    reason = backend.missing("cuda", "cuda", source)
    assert reason.startswith("nvcc is not installed and no compiled op.cu for sm_90 is cached; install the CUDA")
    assert "no compiled kernel for sm_90 is cached" in backend.missing("cuda", "cuda")
    assert backend.default("cuda", source) == "triton"
    nvcc.folder().mkdir(parents=True)
    (nvcc.folder() / f"{nvcc._stem(source, 'sm_90', ())}-0.cubin").touch()
    assert backend.missing("cuda", "cuda", source) is None is backend.missing("cuda", "cuda")
    assert backend.default("cuda", source) == "cuda"


def test_a_device_too_old(monkeypatch, h100):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: (7, 5))
    for name in ("cuda", "triton"):
        assert backend.missing(name, "cuda") == "the kernels need sm_80 or newer, this device is sm_75"
    assert backend.default("cuda") == "eager"


def test_what_was_found_to_run_is_not_looked_for_again(monkeypatch, found_nothing):
    assert backend.choose("numba", "cpu") == "numba"
    monkeypatch.setattr(backend, "missing", None)
    assert backend.choose("numba", "cpu") == backend.choose("auto", "cpu") == "numba"


def test_unknown_backends_and_devices():
    with pytest.raises(ValueError, match="unknown backend 'fortran'; there are numba, eager, triton, cuda"):
        backend.missing("fortran", "cpu")
    assert backend.missing("numba", "meta") == "numba does not run on meta"
    assert backend.default("meta") == "eager"
