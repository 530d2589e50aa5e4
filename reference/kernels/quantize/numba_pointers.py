"""Plain pointers for Numba kernels: slices of arrays would be counted references, which costs a short block dearly."""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from reference.kernels.quantize.cost import PIECE


@intrinsic
def at(_context, array, _index):
    """Pointer to entry ``index`` of a contiguous array, which must outlive it."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.gep(data, [arguments[1]])

    return types.CPointer(array.dtype)(array, types.intp), generate


@intrinsic
def moved(_context, pointer, _steps):
    """The pointer ``steps`` entries further on."""
    return pointer(pointer, types.intp), lambda _, builder, __, arguments: builder.gep(arguments[0], [arguments[1]])


@intrinsic
def bits(_context, pointer):
    """A pointer to floats as one to their bit patterns, int32."""

    def generate(_, builder, __, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32).as_pointer())

    return types.CPointer(types.int32)(pointer), generate


@intrinsic
def frame(_context):
    """``PIECE`` floats in the caller's frame, at a multiple of 64; nothing is left to free."""

    def generate(_, builder, __, ___):
        pointer = cgutils.alloca_once(builder, ir.FloatType(), size=PIECE)
        pointer.align = 64
        return pointer

    return types.CPointer(types.float32)(), generate


@intrinsic
def is_aligned(_context, pointer):
    """Whether the address is a multiple of 64."""

    def generate(_, builder, __, arguments):
        word = ir.IntType(64)
        rest = builder.and_(builder.ptrtoint(arguments[0], word), ir.Constant(word, 63))
        return builder.icmp_unsigned("==", rest, ir.Constant(word, 0))

    return types.boolean(pointer), generate
