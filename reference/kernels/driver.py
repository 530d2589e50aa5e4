"""Kernels of a cubin launched through the CUDA driver (libcuda by ctypes), on torch's streams and contexts."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_uint, c_void_p
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import get_ident
from typing import Any, TypeAlias

import numpy as np
import torch

from reference.kernels import nvcc, target
from reference.kernels.backend import BackendMissing

LIBRARY = "libcuda.so.1"
SHARED_WITHOUT_ASKING = 48 * 1024  # more dynamic shared memory than this must be asked for, kernel by kernel
_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

Argument: TypeAlias = torch.Tensor | np.generic
Extent: TypeAlias = int | tuple[int, ...]

# Names and argument types of cuda.h; handles (CUcontext, CUmodule, CUfunction, CUstream) are pointers, the rest int.
_SIGNATURES: dict[str, tuple[type, ...]] = {
    "cuInit": (c_uint,),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDevicePrimaryCtxRetain": (POINTER(c_void_p), c_int),
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (POINTER(c_void_p),),
    "cuModuleLoadData": (POINTER(c_void_p), c_char_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, POINTER(c_void_p), POINTER(c_void_p)),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
}
NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT
_LETTERS: dict[type, str] = {  # of struct, in native size and alignment
    np.int32: "i", np.uint32: "I", np.int64: "q", np.uint64: "Q", np.float32: "f", np.float64: "d",
}  # fmt: skip


class CudaError(RuntimeError):
    """A call of the CUDA driver failed; the message holds the call and the driver's own words."""


@dataclass(frozen=True)
class Kernel:
    """One ``extern "C"`` kernel, loaded on one device."""

    name: str
    device: torch.device
    function: int
    context: int
    frames: dict[tuple[object, ...], Frame] = field(default_factory=dict, repr=False, compare=False)

    def launch(self, grid: Extent, block: Extent, args: Sequence[Argument], shared_bytes: int = 0) -> None:
        """Queue the kernel on torch's current stream of its device; returns before it has run.

        ``args`` follow the kernel's parameters: contiguous tensors of that device (their pointer is passed) and numpy
        scalars of exactly the parameter's type. Raises TypeError or ValueError for other arguments, CudaError when the
        driver refuses the launch. Errors inside the kernel surface at torch's next synchronisation.
        """
        # A frame is used again by the thread that made it: the driver copies it before the launch returns.
        key = (get_ident(), *map(type, args))
        frame = self.frames.get(key)
        if frame is None:
            frame = self.frames[key] = Frame(args, self.device)
        frame.fill(args)
        if shared_bytes > SHARED_WITHOUT_ASKING:
            _allow_shared(self.context, self.function, shared_bytes)
        index = self.device.index
        arguments = (self.function, *_extent(grid), *_extent(block), shared_bytes, stream(index), frame.places, None)
        # Where torch is on this device, its context is current but for a thread that has done nothing with CUDA yet.
        if torch.cuda.current_device() != index or (status := _library().cuLaunchKernel(*arguments)) == NO_CONTEXT:
            _in_context(self.context, "cuLaunchKernel", *arguments)
        elif status != 0:
            raise CudaError(f"cuLaunchKernel of {self.name}: {_words(_library(), status)}")


class Frame:
    """The arguments of a launch in memory, laid out as C would, and the array of their addresses."""

    def __init__(self, args: Sequence[Argument], device: torch.device) -> None:
        self.device = device
        letters = [_letter(position, argument) for position, argument in enumerate(args)]
        self.tensors = [position for position, letter in enumerate(letters) if letter == "P"]
        self.layout = struct.Struct("@" + "".join(letters))
        self.memory = ctypes.create_string_buffer(max(1, self.layout.size))
        ends = [struct.calcsize("@" + "".join(letters[: i + 1])) for i in range(len(letters))]
        starts = [end - struct.calcsize(letter) for end, letter in zip(ends, letters, strict=True)]
        self.places = (c_void_p * len(starts))(*(ctypes.addressof(self.memory) + start for start in starts))

    def fill(self, args: Sequence[Argument]) -> None:
        """Write ``args``; raises ValueError for a tensor that is elsewhere or not contiguous."""
        values: list[Any] = list(args)
        for position in self.tensors:
            tensor = values[position]
            if tensor.device != self.device or not tensor.is_contiguous():
                raise ValueError(
                    f"argument {position} must be a contiguous tensor on {self.device}, not one of strides "
                    f"{tensor.stride()} on {tensor.device}"
                )
            values[position] = tensor.data_ptr()
        self.layout.pack_into(self.memory, 0, *values)


def _letter(position: int, argument: Argument) -> str:
    letter = "P" if isinstance(argument, torch.Tensor) else _LETTERS.get(type(argument))
    if letter is None:
        kinds = ", ".join(f"np.{kind.__name__}" for kind in _LETTERS)
        raise TypeError(f"argument {position} must be a torch tensor or {kinds}, not {type(argument).__name__}")
    return letter


def stream(device_index: int) -> int:
    """The handle of torch's current stream on a device."""
    # What torch's own compiler calls: the public function makes an object for it, at twice the cost of all else here.
    raw = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    return int(raw(device_index) if raw else torch.cuda.current_stream(device_index).cuda_stream)


def missing() -> str | None:
    """Why no kernel can be launched here; None when the CUDA driver is there."""
    try:
        _library()
    except BackendMissing as refusal:
        return str(refusal)
    return None


def kernel(op_file: Path, name: str, device: str | torch.device) -> Kernel:
    """The kernel ``name`` of the ``.cu`` file ``op_file`` on ``device``, compiled and loaded at most once a process.

    Raises BackendMissing without driver, nvcc or cubin; CompileError; CudaError when the cubin holds no such kernel.
    """
    return _kernel(op_file, name, target.index(device))


def _extent(extent: Extent) -> tuple[int, int, int]:
    if isinstance(extent, int) and extent > 0:
        return extent, 1, 1
    sizes = (extent,) if isinstance(extent, int) else extent
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise ValueError(f"grid and block have one to three positive sizes, not {extent}")
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise BackendMissing(f"the CUDA driver cannot be loaded ({error}); install NVIDIA's driver") from error
    for name, types in _SIGNATURES.items():
        getattr(library, name).argtypes = types
        getattr(library, name).restype = c_int
    if (status := library.cuInit(0)) != 0:
        raise BackendMissing(f"the CUDA driver does not start: {_words(library, status)}; see nvidia-smi")
    return library


def _words(library: ctypes.CDLL, status: int) -> str:
    name, text = c_char_p(), c_char_p()
    library.cuGetErrorName(status, byref(name))
    library.cuGetErrorString(status, byref(text))
    if name.value is None or text.value is None:
        return f"error {status}"
    return f"{name.value.decode()}: {text.value.decode()}"


def _call(name: str, *arguments: object) -> None:
    library = _library()
    if (status := getattr(library, name)(*arguments)) != 0:
        raise CudaError(f"{name}: {_words(library, status)}")


def _in_context(context: int, name: str, *arguments: object) -> None:
    """A call with ``context`` current; torch's notion of the current device is left as it was."""
    current = c_void_p()
    _call("cuCtxGetCurrent", byref(current))
    if current.value == context:
        _call(name, *arguments)
        return
    _call("cuCtxPushCurrent_v2", context)
    try:
        _call(name, *arguments)
    finally:
        _call("cuCtxPopCurrent_v2", byref(c_void_p()))


@cache
def _context(device_index: int) -> int:
    """The primary context, which is the one torch works in; retained for the life of the process."""
    device, context = c_int(), c_void_p()
    _call("cuDeviceGet", byref(device), device_index)
    _call("cuDevicePrimaryCtxRetain", byref(context), device)
    assert context.value is not None
    return context.value


@cache
def _module(cubin: Path, device_index: int) -> int:
    module = c_void_p()
    _in_context(_context(device_index), "cuModuleLoadData", byref(module), cubin.read_bytes())
    assert module.value is not None
    return module.value


@cache
def _kernel(op_file: Path, name: str, device_index: int) -> Kernel:
    _library()
    cubin = nvcc.build(op_file, target.arch(device_index)).path
    function, context = c_void_p(), _context(device_index)
    module = _module(cubin, device_index)
    _in_context(context, "cuModuleGetFunction", byref(function), module, name.encode())
    assert function.value is not None
    return Kernel(name, torch.device("cuda", device_index), function.value, context)


@cache
def _allow_shared(context: int, function: int, shared_bytes: int) -> None:
    _in_context(context, "cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED, shared_bytes)
