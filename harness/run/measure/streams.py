"""Compiled loops that do nothing but move memory or multiply and add: what the ceilings of a CPU are measured with.

Each exists twice, as a plain loop and with prefetches well ahead in 64 lanes: which one gets more out of the memory
depends on the processor. Everything is in one file, since Numba's disk cache is keyed by it.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

F32 = np.float32
LANES = 64
_LINE = 16  # float32 in a cache line
_AHEAD = 4096  # elements between what is read and what is asked for; past the end it does no harm
# Fused multiply-adds per element and passes over a block, which stays in the first-level cache.
CHAIN, PASSES = 32, 512

_OPTIONS = {"fastmath": {"contract"}, "error_model": "numpy", "nogil": True, "cache": True}
_inline = njit(inline="always", **_OPTIONS)
_kernel = njit(**_OPTIONS)


@intrinsic
def _reserve_lanes(_context):  # type: ignore[no-untyped-def]
    """``LANES`` float32 in the caller's frame."""

    def generate(context, builder, _, __):  # type: ignore[no-untyped-def]
        pointer = cgutils.alloca_once(builder, context.get_data_type(types.float32), size=LANES)
        pointer.align = 64
        return pointer

    return types.CPointer(types.float32)(), generate


@intrinsic
def _prefetch_line(_context, array, _index):  # type: ignore[no-untyped-def]
    """Ask for the cache line that holds ``array[index]``, to be read."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        place = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        builder.call(prefetch, [place, *(ir.Constant(word, value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@_inline
def _prefetch(x, at):  # type: ignore[no-untyped-def]
    for line in range(LANES // _LINE):
        _prefetch_line(x, at + _AHEAD + line * _LINE)


@_kernel
def _read_part(b):  # type: ignore[no-untyped-def]
    lanes = carray(_reserve_lanes(), (LANES,))
    for j in range(LANES):
        lanes[j] = F32(0.0)
    for block in range(b.size // LANES):
        at = block * LANES
        _prefetch(b, at)
        for j in range(LANES):
            lanes[j] += b[at + j]
    total = F32(0.0)
    for j in range(LANES):
        total += lanes[j]
    return total


@_kernel
def _copy_part(a, b):  # type: ignore[no-untyped-def]
    for block in range(b.size // LANES):
        at = block * LANES
        _prefetch(b, at)
        for j in range(LANES):
            a[at + j] = b[at + j]


@_kernel
def _triad_part(a, b, c):  # type: ignore[no-untyped-def]
    for block in range(b.size // LANES):
        at = block * LANES
        _prefetch(b, at)
        _prefetch(c, at)
        for j in range(LANES):
            a[at + j] = b[at + j] + F32(3.0) * c[at + j]


@njit(parallel=True, fastmath=True, cache=True)
def read(b):  # type: ignore[no-untyped-def]
    """The sum of ``b``."""
    total = F32(0.0)
    for i in prange(b.size):
        total += b[i]
    return total


@njit(parallel=True, fastmath={"contract"}, cache=True)
def read_ahead(b, sums):  # type: ignore[no-untyped-def]
    """The sums of as many parts of ``b`` as ``sums`` has elements, a thread each; leaves out a part's odd end."""
    for part in prange(sums.size):
        width = b.size // sums.size
        sums[part] = _read_part(b[part * width : (part + 1) * width])


@njit(parallel=True, cache=True)
def copy(a, b):  # type: ignore[no-untyped-def]
    """A = b."""
    for i in prange(b.size):
        a[i] = b[i]


@njit(parallel=True, cache=True)
def copy_ahead(a, b, parts):  # type: ignore[no-untyped-def]
    """A = b, a thread for each part."""
    for part in prange(parts):
        width = b.size // parts
        cut = slice(part * width, (part + 1) * width)
        _copy_part(a[cut], b[cut])


@njit(parallel=True, cache=True)
def triad(a, b, c):  # type: ignore[no-untyped-def]
    """A = b + 3 c."""
    for i in prange(b.size):
        a[i] = b[i] + F32(3.0) * c[i]


@njit(parallel=True, fastmath={"contract"}, cache=True)
def triad_ahead(a, b, c, parts):  # type: ignore[no-untyped-def]
    """A = b + 3 c, a thread for each part."""
    for part in prange(parts):
        width = b.size // parts
        cut = slice(part * width, (part + 1) * width)
        _triad_part(a[cut], b[cut], c[cut])


@njit(parallel=True, fastmath={"contract"}, cache=True)
def chain(blocks, a, b):  # type: ignore[no-untyped-def]
    """Horner chains, every thread on a row of ``blocks``: 2 * CHAIN * PASSES operations an element."""
    for row in prange(blocks.shape[0]):
        block = blocks[row]
        for _ in range(PASSES):
            for i in range(block.size):
                y = block[i]
                for _ in range(CHAIN):
                    y = y * a + b
                block[i] = y
