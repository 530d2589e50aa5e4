"""What softmax() accepts, returns and refuses."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from reference.kernels.backend import BackendMissing
from reference.kernels.softmax import ALGORITHMS, cost, log_softmax, log_sum_exp, numba_cpu, softmax

BACKENDS = ("numba", "eager")
X = np.linspace(-3.0, 3.0, 12, dtype=np.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_give_arrays_and_tensors_give_tensors(backend):
    y = softmax(X, backend=backend)
    assert isinstance(y, np.ndarray) and y.dtype == np.float32 and y.shape == X.shape
    t = softmax(torch.from_numpy(X).reshape(3, 4), backend=backend)
    assert isinstance(t, torch.Tensor) and t.shape == (3, 4)
    torch.testing.assert_close(t, torch.softmax(torch.from_numpy(X).reshape(3, 4), -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0)])
def test_empty_rows(backend, shape):
    for x in (np.zeros(shape, np.float32), torch.zeros(shape)):
        assert softmax(x, backend=backend).shape == log_softmax(x, backend=backend).shape == shape
        found = log_sum_exp(x, backend=backend)
        assert found.shape == shape[:-1]
        assert (found == -np.inf).all()


@pytest.mark.parametrize("kind", [np.float16, torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_are_of_the_type_of_x(backend, kind):
    x = X.astype(kind) if kind is np.float16 else torch.from_numpy(X).to(kind)
    y = softmax(x, backend=backend)
    total, logs = log_sum_exp(x, backend=backend), log_softmax(x, backend=backend)
    assert y.dtype == total.dtype == logs.dtype == x.dtype
    assert type(y) is type(total) is type(logs) is type(x)
    assert total.ndim == 0 and y.shape == logs.shape == X.shape
    out = np.empty((3,), kind) if kind is np.float16 else torch.empty(3, dtype=kind)
    assert log_sum_exp(x.reshape(3, 4), out, backend=backend) is out
    assert float(np.log(np.exp(np.asarray(out.tolist())).sum())) == pytest.approx(float(total), rel=1e-2)


def test_no_gradient_is_recorded():
    x = torch.from_numpy(X).requires_grad_()
    assert not softmax(x).requires_grad


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backend": "xla"}, ValueError, "unknown backend 'xla'; there are numba, eager"),
        ({"algorithm": "four_pass"}, ValueError, "there are two_pass, three_pass_recompute"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"out": np.empty(3, np.float32)}, ValueError, "out must be a numpy array of float32"),
        ({"out": torch.empty(12)}, ValueError, "out must be a numpy array of float32"),
        ({"out": np.empty(12, np.float64)}, TypeError, "out must be float32, float16 or bfloat16"),
        ({"x": X.astype(np.float64)}, TypeError, "x must be float32, float16 or bfloat16, not float64"),
        ({"out": np.empty(12, np.float16)}, ValueError, "out must be a numpy array of float32"),
        ({"x": X.tolist()}, TypeError, "must be a numpy array or a torch tensor"),
        ({"x": X.reshape(2, 2, 3)}, ValueError, "1-D or"),
        ({"x": X[::2]}, ValueError, "C-contiguous"),
        ({"x": torch.from_numpy(X).reshape(3, 4).T}, ValueError, "C-contiguous"),
        ({"x": torch.empty(3, device="meta")}, ValueError, "on the CPU or on a CUDA device, not on meta"),
    ],
)
def test_refusals_say_what_is_expected(arguments, error, message):
    with pytest.raises(error, match=message):
        softmax(**{"x": X, **arguments})


def test_memory_that_overlaps_in_part_is_refused():
    memory = np.zeros(30, np.float32)
    for function in (softmax, log_softmax):
        with pytest.raises(ValueError, match="be x itself or share no memory"):
            function(memory[:20], memory[10:])
    with pytest.raises(ValueError, match="share no memory with x"):
        log_sum_exp(memory[:20].reshape(4, 5), memory[16:20])
    assert log_sum_exp(memory[:20].reshape(4, 5), memory[20:24])[0] == pytest.approx(np.log(5.0))
    tensor = torch.zeros(30)
    with pytest.raises(ValueError, match="they overlap"):
        softmax(tensor[:20], tensor[10:])


@pytest.mark.parametrize("function", [log_softmax, log_sum_exp])
def test_the_logarithms_have_no_reload_form(function):
    with pytest.raises(ValueError, match=f"three_pass_reload has no meaning for {function.__name__}"):
        function(X, algorithm="three_pass_reload")


def test_a_backend_that_cannot_run_here_says_why():
    with pytest.raises(BackendMissing, match="cuda runs on a CUDA device"):
        softmax(X, backend="cuda")


def test_more_threads_than_the_pool_has_are_harmless():
    x = np.random.default_rng(0).random(2**18, dtype=np.float32)
    before = numba_cpu.thread_count(None)
    y = softmax(x, threads=16)
    assert numba_cpu.thread_count(None) == before
    assert y.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)


def test_importing_the_package_imports_no_backend():
    code = "import sys, reference.kernels.softmax; print({'numba', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_a_second_process_loads_kernels_without_the_compiler(tmp_path):
    code = """
import sys, numpy as np
from reference.kernels.softmax import softmax
softmax(np.ones((40, 33), np.float32), threads=1)
print("compiler" if "numba.np.arraymath" in sys.modules else "no compiler")
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    said = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
            for _ in range(2)]
    assert [one.stdout for one in said] == ["compiler\n", "no compiler\n"]


def test_cost_is_the_papers_table():
    assert [cost.ALGORITHMS[name].bytes_moved(1) for name in ALGORITHMS] == [12, 16, 20, 12]
    assert cost.ALGORITHMS["two_pass"].bytes_moved(1, itemsize=2) == 6
    assert [model.bytes_moved(1) for model in cost.LOG_SUM_EXP.values()] == [4, 8, 4]
    assert [model.bytes_moved(1) for model in cost.LOG_SOFTMAX.values()] == [12, 16, 12]
    assert all(model.flops_done(10) > 100 for model in cost.ALGORITHMS.values())
    assert set(cost.PASSES) == set(numba_cpu.PASSES)


@pytest.mark.parametrize(
    ("rows", "n", "threads", "how"),
    [
        (1, 2**20, 2, ("chunks", 2)), (1, 2**16, 8, ("rows", 1)), (4096, 128, 2, ("rows", 2)), (1, 100, 8, ("rows", 1)),
        (3, 2**20, 2, ("chunks", 2)), (4, 2**20, 2, ("rows", 2)), (2, 2**17, 8, ("rows", 2)),
        (17, 2**20, 2, ("rows", 2)),
    ],
)  # fmt: skip
def test_how_threads_share_rows(rows, n, threads, how):
    assert cost.shared(rows, n, threads) == how
    chunks = how[1] if how[0] == "chunks" else 0
    assert cost.workspace_bytes(rows, n, threads=threads) == 12 * chunks
