"""Arguments in memory, calls of the driver in order, and what is said when it is not there; no GPU is needed."""

from __future__ import annotations

import ctypes
import threading

import numpy as np
import pytest
import torch

from reference.kernels import driver
from reference.kernels.backend import BackendMissing

CPU = torch.device("cpu")
HERE, ELSEWHERE = 77, 78  # contexts


class Library:
    """Answers as libcuda would and keeps what it was asked; of a launch also the arguments, read as ``kinds``."""

    def __init__(self) -> None:
        self.context, self.status, self.calls, self.kinds, self.values = HERE, 0, [], [], []

    def cuCtxGetCurrent(self, place):
        place._obj.value = self.context
        return 0

    def cuCtxPushCurrent_v2(self, context):
        self.calls.append(("push", context))
        self.context = context
        return 0

    def cuCtxPopCurrent_v2(self, _place):
        self.calls.append(("pop",))
        return 0

    def cuFuncSetAttribute(self, *arguments):
        self.calls.append(("attribute", *arguments))
        return 0

    def cuLaunchKernel(self, *arguments):
        if self.context != HERE:
            return driver.NO_CONTEXT
        self.calls.append(("launch", *arguments))
        places = list(arguments[9])
        assert all(place % ctypes.sizeof(kind) == 0 for place, kind in zip(places, self.kinds, strict=False))
        self.values = [ctypes.cast(place, ctypes.POINTER(kind)).contents.value for place, kind in
                       zip(places, self.kinds, strict=False)]  # fmt: skip
        return self.status

    def cuGetErrorName(self, status, place):
        place._obj.value = b"CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" if status == 701 else None
        return 0

    def cuGetErrorString(self, status, place):
        place._obj.value = b"too many resources requested for launch" if status == 701 else None
        return 0


@pytest.fixture
def library(monkeypatch):
    fake = Library()
    monkeypatch.setattr(driver, "_library", lambda: fake)
    monkeypatch.setattr(driver, "stream", lambda _index: 4242)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)
    driver._allow_shared.cache_clear()
    yield fake
    driver._allow_shared.cache_clear()


def kernel() -> driver.Kernel:
    return driver.Kernel("scale", CPU, function=9, context=HERE)


def test_arguments_lie_where_the_driver_looks(library):
    x = torch.arange(6.0)
    args = (np.int32(-5), x, np.float32(0.5), np.int64(-(2**40)), np.uint32(7), np.float64(1e300), np.uint64(2**63))
    c = ctypes
    library.kinds = (c.c_int32, c.c_void_p, c.c_float, c.c_int64, c.c_uint32, c.c_double, c.c_uint64)
    kernel().launch((2, 3), 128, args, shared_bytes=64)
    assert library.values == [-5, x.data_ptr(), 0.5, -(2**40), 7, 1e300, 2**63]
    ((_, function, *sizes, stream, _, extra),) = library.calls
    assert (function, sizes, stream, extra) == (9, [2, 3, 1, 128, 1, 1, 64], 4242, None)


def test_a_second_launch_takes_new_values_and_other_threads_their_own_memory(library):
    k, x = kernel(), torch.zeros(1)
    library.kinds = (ctypes.c_void_p, ctypes.c_int32)
    for value in (1, 2):
        k.launch(1, 32, (x, np.int32(value)))
        assert library.values == [x.data_ptr(), value]
    other = threading.Thread(target=k.launch, args=(1, 32, (x, np.int32(3))))
    other.start()
    other.join()
    assert library.values[1] == 3
    one, two, three = (call[10] for call in library.calls)
    assert one is two and two is not three
    library.kinds = (ctypes.c_void_p, ctypes.c_int64)
    k.launch(1, 32, (x, np.int64(2**40)))
    assert library.values[1] == 2**40


def test_the_context_is_made_current_and_left_as_it_was(library):
    library.context = ELSEWHERE
    kernel().launch(1, 32, (np.int32(1),))
    assert [call[0] for call in library.calls] == ["push", "launch", "pop"]


def test_much_shared_memory_is_asked_for_once(library):
    k = kernel()
    for shared_bytes in (48 * 1024, 100_000, 100_000):
        k.launch(1, 32, (np.int32(1),), shared_bytes)
    assert [call[0] for call in library.calls] == ["launch", "attribute", "launch", "launch"]
    assert library.calls[1] == ("attribute", 9, 8, 100_000)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((1,), TypeError, "argument 0 must be a torch tensor or np.int32, .* not int"),
        ((np.int32(1), True), TypeError, "argument 1 must be .* not bool"),
        ((np.ones(3),), TypeError, "not ndarray"),
        ((torch.zeros(4, 4).T,), ValueError, "argument 0 must be a contiguous tensor on cpu"),
        ((np.int32(0), torch.empty(3, device="meta")), ValueError, "argument 1 must be .* on cpu, not .* on meta"),
    ],
)  # fmt: skip
def test_arguments_that_are_refused(library, args, error, message):
    with pytest.raises(error, match=message):
        kernel().launch(1, 32, args)
    assert library.calls == []


@pytest.mark.parametrize("grid", [0, (), (1, 0), (1, 1, 1, 1), -3])
def test_extents_that_are_refused(library, grid):
    with pytest.raises(ValueError, match="one to three positive sizes"):
        kernel().launch(grid, 32, (np.int32(1),))


def test_what_the_driver_refuses_is_said_in_its_words(library):
    library.status = 701
    with pytest.raises(driver.CudaError, match="cuLaunchKernel of scale: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES: too many"):
        kernel().launch(1, 32, (np.int32(1),))
    library.status = 99999
    with pytest.raises(driver.CudaError, match="error 99999"):
        kernel().launch(1, 32, (np.int32(1),))


def test_without_the_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(driver, "LIBRARY", str(tmp_path / "libcuda.so.1"))
    driver._library.cache_clear()
    try:
        assert "the CUDA driver cannot be loaded" in driver.missing() and "install NVIDIA's driver" in driver.missing()
        with pytest.raises(BackendMissing, match="cannot be loaded"):
            driver._library()
    finally:
        driver._library.cache_clear()


CU = """
extern "C" __global__ void scale(float* x, int n, float factor) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] *= factor;
}
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NOT CHECKED: launches on a GPU, for want of one")
def test_a_kernel_runs_on_the_current_stream(tmp_path):
    source = tmp_path / "scale.cu"
    source.write_text(CU)
    x = torch.arange(1000.0, device="cuda")
    with torch.cuda.stream(torch.cuda.Stream()):
        y = x * 1
        driver.kernel(source, "scale", x.device).launch(8, 128, (y, np.int32(999), np.float32(3.0)))
        torch.cuda.current_stream().synchronize()
    expected = x * 3
    expected[999] = 999.0
    assert torch.equal(y, expected)
    with pytest.raises(driver.CudaError, match="cuModuleGetFunction"):
        driver.kernel(source, "no_such_kernel", "cuda")
