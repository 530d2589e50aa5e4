"""What softmax() accepts, returns and refuses."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from reference.kernels.softmax import ALGORITHMS, cost, numba_cpu, softmax

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
def test_empty_input_gives_empty_output(backend, shape):
    assert softmax(np.zeros(shape, np.float32), backend=backend).shape == shape


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
        ({"x": X.tolist()}, TypeError, "must be a numpy array or a torch tensor"),
        ({"x": X.reshape(2, 2, 3)}, ValueError, "1-D or"),
        ({"x": X[::2]}, ValueError, "C-contiguous"),
        ({"x": torch.from_numpy(X).reshape(3, 4).T}, ValueError, "C-contiguous"),
        ({"x": torch.empty(3, device="meta")}, ValueError, "on the CPU"),
    ],
)
def test_refusals_say_what_is_expected(arguments, error, message):
    with pytest.raises(error, match=message):
        softmax(**{"x": X, **arguments})


def test_more_threads_than_the_pool_has_are_harmless():
    x = np.random.default_rng(0).random(2**18, dtype=np.float32)
    before = numba_cpu.thread_count(None)
    y = softmax(x, threads=16)
    assert numba_cpu.thread_count(None) == before
    assert y.sum(dtype=np.float64) == pytest.approx(1.0, abs=1e-6)


def test_importing_the_package_imports_no_backend():
    code = "import sys, reference.kernels.softmax; print({'numba', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_cost_is_the_papers_table():
    assert [cost.ALGORITHMS[name].bytes_moved(1) for name in ALGORITHMS] == [12, 16, 20, 12]
    assert all(model.flops_done(10) > 100 for model in cost.ALGORITHMS.values())
    assert set(cost.PASSES) == set(numba_cpu.PASSES)
