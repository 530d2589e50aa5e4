"""What the Numba kernels of the formats do with single numbers, and how codes are packed.

Half types come as their bits: int16 arrays are float16, uint16 ones bfloat16. All arithmetic is float32, with neither
contraction nor reassociation, so codes equal the eager backend's.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from llvmlite import ir
from numba import float32, int16, int32, types, uint16
from numba.extending import intrinsic

from reference.kernels.jit import kernel
from reference.kernels.quantize.formats.books import NF4_MIDPOINTS, NF4_VALUES

F32 = np.float32
ZERO, ONE = F32(0), F32(1)
NF4_FLOATS = tuple(float(F32(value)) for value in NF4_VALUES)
MAGNITUDE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
# Eight bytes of one bit (four of two) times this leave their bits in the highest byte, the first byte's on top.
GATHER_BITS, TOP_BITS = np.uint64(0x8040201008040201), np.uint64(56)
GATHER_PAIRS, TOP_PAIRS = np.uint32(0x40100401), np.uint32(24)

OPTIONS = {
    "error_model": "numpy", "nogil": True,
    "sources": [Path(__file__).with_name(f"{name}.py") for name in ("numba_elements", "books", "grid", "cost")],
}
inline = kernel(inline="always", **OPTIONS)
serial = kernel(**OPTIONS)
parallel = kernel(parallel=True, **OPTIONS)


@intrinsic
def f32(_context, value):
    """A number as float32; int16 and uint16 are the bits of a float16 and a bfloat16."""

    def generate(_, builder, signature, arguments):
        source = signature.args[0]
        if source == int16:
            return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())
        if source == uint16:
            word = builder.shl(builder.zext(arguments[0], ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
            return builder.bitcast(word, ir.FloatType())
        return arguments[0]

    return (float32(value), generate) if value in {float32, int16, uint16} else None


@intrinsic
def rounded(_context, value, array):
    """A float32 as an element of ``array``, rounded to the nearest, ties to even."""

    def generate(_, builder, signature, arguments):
        number, word = arguments[0], ir.IntType(32)
        if signature.return_type == int16:
            return builder.bitcast(builder.fptrunc(number, ir.HalfType()), ir.IntType(16))
        if signature.return_type == uint16:
            bits = builder.bitcast(number, word)
            high = builder.lshr(bits, ir.Constant(word, 16))
            odd = builder.and_(high, ir.Constant(word, 1))
            near = builder.lshr(builder.add(builder.add(bits, odd), ir.Constant(word, 0x7FFF)), ir.Constant(word, 16))
            quiet = builder.or_(high, ir.Constant(word, 0x40))
            nan = builder.fcmp_unordered("uno", number, number)
            return builder.trunc(builder.select(nan, quiet, near), ir.IntType(16))
        return number

    known = value == float32 and isinstance(array, types.Array) and array.dtype in {float32, int16, uint16}
    return (array.dtype(float32, array), generate) if known else None


@intrinsic
def bits_of(_context, value):
    """The bits of a float32, as an int32."""
    return int32(float32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def float_of(_context, bits):
    """The float32 of such bits."""
    return float32(int32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.FloatType())


def _llvm(name):
    @intrinsic
    def call(_context, value):
        def generate(_, builder, __, arguments):
            return builder.call(builder.module.declare_intrinsic(name, [ir.FloatType()]), arguments)

        return float32(float32), generate

    return call


rint, floor = _llvm("llvm.rint"), _llvm("llvm.floor")


@intrinsic
def nf4_code(_context, value):
    """How many midpoints of NF4 are below a float32, by bisection: four comparisons, and selects to choose the next."""

    def generate(_, builder, __, arguments):
        answers = []

        def midpoint(low, high, known):
            middle = (low + high) // 2
            if not known:
                return ir.Constant(ir.FloatType(), NF4_MIDPOINTS[middle - 1])
            return builder.select(known[0], midpoint(middle, high, known[1:]), midpoint(low, middle, known[1:]))

        code = zero = ir.Constant(ir.IntType(32), 0)
        for bit in (8, 4, 2, 1):
            above = builder.fcmp_ordered(">", arguments[0], midpoint(0, 16, answers))
            answers.append(above)
            code = builder.or_(code, builder.select(above, ir.Constant(ir.IntType(32), bit), zero))
        return code

    return int32(float32), generate


@intrinsic
def nf4_value(_context, code):
    """The value of an NF4 code, by selects: a look-up in memory would not vectorise."""

    def generate(_, builder, __, arguments):
        word = ir.IntType(32)

        def chosen(values, bit):
            if len(values) == 1:
                return ir.Constant(ir.FloatType(), values[0])
            half = len(values) // 2
            test = builder.icmp_unsigned("!=", builder.and_(arguments[0], ir.Constant(word, bit)), ir.Constant(word, 0))
            return builder.select(test, chosen(values[half:], bit >> 1), chosen(values[:half], bit >> 1))

        return chosen(NF4_FLOATS, 8)

    return float32(int32), generate


@inline
def pack(scratch, count, each, fill, out):
    """Pack ``count`` codes of 8/each bits from ``scratch``, which is longer by 8, into the start of ``out``."""
    for i in range(each - 1):
        scratch[count + i] = fill
    if each == 1:
        piece = out[:count]
        for i in range(count):
            piece[i] = scratch[i]
    elif each == 2:
        piece = out[: (count + 1) >> 1]
        for i in range(piece.size):
            piece[i] = (scratch[2 * i] << 4) | scratch[2 * i + 1]
    elif each == 4:
        piece = out[: (count + 3) >> 2]
        words = scratch.view(np.uint32)
        for i in range(piece.size):
            piece[i] = (words[i] * GATHER_PAIRS) >> TOP_PAIRS
    else:
        piece = out[: (count + 7) >> 3]
        bits = scratch.view(np.uint64)
        for i in range(piece.size):
            piece[i] = (bits[i] * GATHER_BITS) >> TOP_BITS


@inline
def unpack(codes, entry, count, each, bits, scratch):
    """Codes of ``count`` entries as bytes in ``scratch``; ``entry`` is the first of a byte."""
    shift = 0 if each == 1 else 1 if each == 2 else 2
    piece = codes[entry >> shift : (entry + count + each - 1) >> shift]
    if each == 1:
        for i in range(count):
            scratch[i] = piece[i]
    elif each == 2:
        for i in range(piece.size):
            scratch[2 * i] = piece[i] >> 4
            scratch[2 * i + 1] = piece[i] & 15
    else:
        for i in range(piece.size):
            for place in range(each):
                scratch[each * i + place] = (piece[i] >> np.uint8(8 - bits * (place + 1))) & np.uint8(2**bits - 1)
