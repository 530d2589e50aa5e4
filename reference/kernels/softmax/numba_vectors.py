"""Vectors of sixteen numbers as a type of Numba: what a kernel computes with does not depend on LLVM's vectoriser.

Each operation below is one LLVM instruction or a few; LLVM splits a vector into as many registers as the machine needs.
Memory holds float32, or halves as their bit patterns, float16 in uint16 and bfloat16 in int16: widened on load, rounded
to the nearest on writing. Elements are reached by a bare pointer, since a Numba array costs reference counts.

Without FMA hardware ``llvm.fma`` becomes a library call: slow, and still right.
"""

from __future__ import annotations

import operator
import platform

from llvmlite import ir
from numba import float32, float64, int64, types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_model

LANES = 16
STEP = 4 * LANES
AHEAD = 4096  # elements between what is read and what is asked for; past the end it does no harm


class Vector(types.Type):
    """``LANES`` elements in vector registers, as many as the machine needs for them."""

    def __init__(self, element: types.Type, ir_element: ir.Type):
        self.element, self.ir = element, ir.VectorType(ir_element, LANES)
        super().__init__(f"Vector({element})")


V32, V64 = Vector(float32, ir.FloatType()), Vector(float64, ir.DoubleType())
_WORD, _BITS = ir.IntType(32), ir.VectorType(ir.IntType(32), LANES)


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, fe_type.ir)


def _constant(vector_type, value):
    return ir.Constant(vector_type, [value] * LANES)


def _splat(builder, value, vector_type):
    one = builder.insert_element(ir.Constant(vector_type, ir.Undefined), value, ir.Constant(_WORD, 0))
    return builder.shuffle_vector(one, one, ir.Constant(_BITS, [0] * LANES))


def _call(builder, name, of, args):
    """An LLVM function that takes and gives vectors of one type."""
    function = ir.FunctionType(of.ir, [of.ir] * len(args))
    name = f"{name}.v{LANES}f{of.element.bitwidth}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def _vector_operator(function, instruction):
    """Let ``function`` take two vectors, or a vector and a number that stands for all lanes."""

    @infer_global(function)
    class _Operator(AbstractTemplate):
        def generic(self, args, _):
            vector = next((a for a in args if isinstance(a, Vector)), None)
            if vector is None or len(args) != 2 or not all(a in (vector, vector.element) for a in args):
                return None
            return signature(vector, *args)

    def lower(_, builder, sig, args):
        of = sig.return_type.ir
        a, b = (v if t is sig.return_type else _splat(builder, v, of) for v, t in zip(args, sig.args, strict=True))
        return getattr(builder, instruction)(a, b)

    for pair in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(function, *pair)(lower)


_vector_operator(operator.add, "fadd")
_vector_operator(operator.sub, "fsub")
_vector_operator(operator.mul, "fmul")
_vector_operator(operator.truediv, "fdiv")


@intrinsic
def every(_context, _value):
    """The vector whose lanes all hold a number."""
    of = V32 if _value == float32 else V64
    return of(_value), lambda _, builder, __, args: _splat(builder, args[0], of.ir)


@intrinsic
def fma(_context, a, b, c):
    """a*b + c rounded once, for vectors and numbers."""
    of = next(t for t in (a, b, c) if isinstance(t, Vector))

    def generate(_, builder, sig, args):
        args = [v if t is of else _splat(builder, v, of.ir) for v, t in zip(args, sig.args, strict=True)]
        return _call(builder, "llvm.fma", of, args)

    return of(a, b, c), generate


@intrinsic
def rint(_context, _a):
    """The nearest integer, ties to even."""
    return V32(V32), lambda _, builder, __, args: _call(builder, "llvm.rint", V32, args)


def _pattern(vector_type):
    """The integers that hold the bits of a vector's lanes."""
    return ir.VectorType(ir.IntType(vector_type.element.bitwidth), LANES)


@intrinsic
def shift_to_exponent(_context, a):
    """The low bits of each lane's mantissa become its exponent."""

    def generate(_, builder, sig, args):
        of, mantissa_bits = _pattern(sig.return_type), 23 if sig.return_type is V32 else 52
        return builder.bitcast(builder.shl(builder.bitcast(args[0], of), _constant(of, mantissa_bits)), a.ir)

    return a(a), generate


@intrinsic
def binary_exponent(_context, _a):
    """n with |a| = f * 2^n and f in [1/2, 1), as float; whatever fits for 0, NaN and infinity."""

    def generate(_, builder, __, args):
        of = _pattern(V64)
        field = builder.and_(builder.lshr(builder.bitcast(args[0], of), _constant(of, 52)), _constant(of, 0x7FF))
        shifted = builder.bitcast(builder.or_(field, _constant(of, 0x433 << 52)), V64.ir)  # 2^52 + field
        return builder.fsub(shifted, _constant(V64.ir, 2.0**52 + 1022.0))

    return V64(V64), generate


def _larger_of(builder, a, b):
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@intrinsic
def larger(_context, a, b):
    """The larger; ``b`` where either is NaN."""
    return V32(a, b), lambda _, builder, __, args: _larger_of(builder, *args)


@intrinsic
def at_least(_context, x, floor):
    """max(x, floor) that keeps NaN."""

    def generate(_, builder, sig, args):
        least = args[1] if isinstance(sig.args[1], Vector) else _splat(builder, args[1], V32.ir)
        return builder.select(builder.fcmp_ordered("<", args[0], least), least, args[0])

    return V32(x, floor), generate


@intrinsic
def flushed_below(_context, x, smallest):
    """x, and 0 where it is below ``smallest``; NaN stays NaN."""

    def generate(_, builder, sig, args):
        below = builder.fcmp_ordered("<", args[0], _splat(builder, args[1], V32.ir))
        return builder.select(below, _constant(V32.ir, 0.0), args[0])

    return V32(x, smallest), generate


@intrinsic
def wide(_context, _a):
    """In float64."""
    return V64(V32), lambda _, builder, __, args: builder.fpext(args[0], V64.ir)


@intrinsic
def narrow(_context, _a):
    """Rounded to float32."""
    return V32(V64), lambda _, builder, __, args: builder.fptrunc(args[0], V32.ir)


@intrinsic
def any_nan(_context, _a):
    """Whether a lane is NaN."""

    def generate(_, builder, __, args):
        found = builder.bitcast(builder.fcmp_unordered("uno", args[0], args[0]), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", found, ir.Constant(found.type, 0))

    return types.boolean(V32), generate


@intrinsic
def first_lane(_context, a):
    """The first lane."""
    return a.element(a), lambda _, builder, __, args: builder.extract_element(args[0], ir.Constant(_WORD, 0))


def _across(builder, vector, combine):
    """The lanes combined in pairs at a distance of 8, 4, 2 and 1."""
    half = LANES
    while half > 1:
        half //= 2
        low, high = (ir.Constant(ir.VectorType(_WORD, half), list(range(at, at + half))) for at in (0, half))
        vector = combine(builder.shuffle_vector(vector, vector, low), builder.shuffle_vector(vector, vector, high))
    return builder.extract_element(vector, ir.Constant(_WORD, 0))


@intrinsic
def largest_lane(_context, _a):
    """The largest lane of a vector without NaN."""
    return float32(V32), lambda _, builder, __, args: _across(builder, args[0], lambda a, b: _larger_of(builder, a, b))


@intrinsic
def sum_of_lanes(_context, _a):
    """The sum of the lanes, in pairs at a distance of 8, 4, 2 and 1."""
    return float64(V64), lambda _, builder, __, args: _across(builder, args[0], builder.fadd)


# --- memory: float32, or the bit patterns of float16 (uint16) and bfloat16 (int16)


def _native_half(context):
    """Whether the processor converts float16 itself; without it LLVM would call functions that may not be there."""
    return platform.machine() not in ("x86_64", "AMD64") or "+f16c" in context.codegen().magic_tuple()[2]


def _widen_float16(context, builder, bits):
    if _native_half(context):
        return builder.fpext(builder.bitcast(bits, ir.VectorType(ir.HalfType(), LANES)), V32.ir)
    word = builder.zext(bits, _BITS)
    magnitude = builder.and_(word, _constant(_BITS, 0x7FFF))
    moved = builder.shl(magnitude, _constant(_BITS, 13))
    normal = builder.add(moved, _constant(_BITS, 112 << 23))
    special = builder.or_(moved, _constant(_BITS, 0x7F800000))
    small = builder.bitcast(builder.fmul(builder.sitofp(magnitude, V32.ir), _constant(V32.ir, 2.0**-24)), _BITS)
    is_special = builder.icmp_signed(">=", magnitude, _constant(_BITS, 0x7C00))
    is_small = builder.icmp_signed("<", magnitude, _constant(_BITS, 0x0400))
    found = builder.select(is_small, small, builder.select(is_special, special, normal))
    sign = builder.shl(builder.and_(word, _constant(_BITS, 0x8000)), _constant(_BITS, 16))
    return builder.bitcast(builder.or_(found, sign), V32.ir)


def _round_float16(context, builder, value):
    """To the nearest float16, ties to even; NaN stays NaN."""
    if _native_half(context):
        return builder.bitcast(builder.fptrunc(value, ir.VectorType(ir.HalfType(), LANES)), _SHORTS)
    bits = builder.bitcast(value, _BITS)
    magnitude = builder.and_(bits, _constant(_BITS, 0x7FFFFFFF))
    odd = builder.and_(builder.lshr(magnitude, _constant(_BITS, 13)), _constant(_BITS, 1))
    rounded = builder.add(builder.add(magnitude, odd), _constant(_BITS, 0xFFF - (112 << 23)))
    normal = builder.lshr(rounded, _constant(_BITS, 13))
    infinite = _constant(_BITS, 0x7C00)
    normal = builder.select(builder.icmp_signed(">", magnitude, _constant(_BITS, 0x47800000)), infinite, normal)
    # Adding 1/2 leaves multiples of 2^-24, the spacing of small float16, in the low bits.
    half = builder.fadd(builder.bitcast(magnitude, V32.ir), _constant(V32.ir, 0.5))
    small = builder.sub(builder.bitcast(half, _BITS), _constant(_BITS, 0x3F000000))
    found = builder.select(builder.icmp_signed("<", magnitude, _constant(_BITS, 113 << 23)), small, normal)
    is_nan = builder.icmp_signed(">", magnitude, _constant(_BITS, 0x7F800000))
    found = builder.select(is_nan, _constant(_BITS, 0x7E00), found)
    sign = builder.and_(builder.lshr(bits, _constant(_BITS, 16)), _constant(_BITS, 0x8000))
    return builder.trunc(builder.or_(found, sign), _SHORTS)


def _widen_bfloat16(_, builder, bits):
    return builder.bitcast(builder.shl(builder.zext(bits, _BITS), _constant(_BITS, 16)), V32.ir)


def _round_bfloat16(_, builder, value):
    """To the nearest bfloat16, ties to even. NaN from bfloat16 inputs has low bits of 0 and stays NaN."""
    bits = builder.bitcast(value, _BITS)
    odd = builder.and_(builder.lshr(bits, _constant(_BITS, 16)), _constant(_BITS, 1))
    rounded = builder.add(builder.add(bits, odd), _constant(_BITS, 0x7FFF))
    return builder.trunc(builder.lshr(rounded, _constant(_BITS, 16)), _SHORTS)


def _as_is(_, __, value):
    return value


_SHORTS = ir.VectorType(ir.IntType(16), LANES)
_FORMATS = {
    types.float32: (V32.ir, "f32", _as_is, _as_is),
    types.uint16: (_SHORTS, "i16", _widen_float16, _round_float16),
    types.int16: (_SHORTS, "i16", _widen_bfloat16, _round_bfloat16),
    types.float64: (V64.ir, "f64", _as_is, _as_is),
}


@intrinsic
def elements(_context, array):
    """The elements of a contiguous array, without its reference count."""

    def generate(context, builder, sig, args):
        return context.make_array(sig.args[0])(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), generate


def _place(builder, elements_type, elements, index):
    """A pointer to ``LANES`` elements from an index on, and an element's bytes."""
    place = builder.bitcast(builder.gep(elements, [index]), _FORMATS[elements_type.dtype][0].as_pointer())
    return place, elements_type.dtype.bitwidth // 8


def _first(builder, count):
    """The mask of the first ``count`` lanes."""
    numbers = ir.Constant(_BITS, list(range(LANES)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, _WORD), _BITS))


def _masked(builder, what, result, suffix, arguments):
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    name = f"llvm.masked.{what}.v{LANES}{suffix}.p0"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _reserve(element):
    """An intrinsic that reserves ``LANES`` elements in the caller's frame; nothing is left to free."""

    @intrinsic
    def reserve(_context):
        def generate(context, builder, _, __):
            pointer = cgutils.alloca_once(builder, context.get_data_type(element), size=LANES)
            pointer.align = 64
            return pointer

        return types.CPointer(element)(), generate

    return reserve


lanes, wide_lanes = _reserve(float32), _reserve(float64)


@intrinsic
def load(_context, x, _at):
    """x[at : at + LANES] as float32; float64 stays."""

    def generate(context, builder, sig, args):
        place, size = _place(builder, sig.args[0], *args)
        return _FORMATS[sig.args[0].dtype][2](context, builder, builder.load(place, align=size))

    return (V64 if x.dtype == float64 else V32)(x, int64), generate


@intrinsic
def load_first(_context, x, _at, _count, _padding):
    """x[at : at + count] as float32, at most ``LANES`` of them, and ``padding`` in the lanes behind."""

    def generate(context, builder, sig, args):
        stored, suffix, widen, _ = _FORMATS[sig.args[0].dtype]
        place, size = _place(builder, sig.args[0], *args[:2])
        mask = _first(builder, args[2])
        nothing = ir.Constant(stored, None) if suffix == "i16" else _constant(stored, 0.0)
        loaded = _masked(builder, "load", stored, suffix, [place, ir.Constant(_WORD, size), mask, nothing])
        return builder.select(mask, widen(context, builder, loaded), _splat(builder, args[3], V32.ir))

    return V32(x, int64, int64, float32), generate


@intrinsic
def put(_context, y, _at, _value):
    """Round to the type of y and write y[at : at + LANES]."""

    def generate(context, builder, sig, args):
        place, size = _place(builder, sig.args[0], *args[:2])
        builder.store(_FORMATS[sig.args[0].dtype][3](context, builder, args[2]), place, align=size)
        return context.get_dummy_value()

    return types.void(y, int64, V32), generate


@intrinsic
def put_first(_context, y, _at, _count, _value):
    """Round to the type of y and write y[at : at + count], at most ``LANES`` elements."""

    def generate(context, builder, sig, args):
        _, suffix, _, narrow = _FORMATS[sig.args[0].dtype]
        place, size = _place(builder, sig.args[0], *args[:2])
        rounded, mask = narrow(context, builder, args[3]), _first(builder, args[2])
        _masked(builder, "store", ir.VoidType(), suffix, [rounded, place, ir.Constant(_WORD, size), mask])
        return context.get_dummy_value()

    return types.void(y, int64, int64, V32), generate


@intrinsic
def prefetch(_context, x, _at):
    """Ask for ``STEP`` elements well ahead: a computing pass leaves the core too few loads in flight by itself."""

    def generate(context, builder, sig, args):
        byte = ir.IntType(8).as_pointer()
        function = ir.FunctionType(ir.VoidType(), [byte, _WORD, _WORD, _WORD])
        prefetch = cgutils.get_or_insert_function(builder.module, function, "llvm.prefetch.p0")
        elements = 64 // (sig.args[0].dtype.bitwidth // 8)
        for line in range(STEP // elements):
            ahead = builder.add(args[1], ir.Constant(ir.IntType(64), AHEAD + line * elements))
            place = builder.bitcast(builder.gep(args[0], [ahead]), byte)
            builder.call(prefetch, [place, *(ir.Constant(_WORD, value) for value in (0, 3, 1))])  # to read, keep, data
        return context.get_dummy_value()

    return types.void(x, int64), generate
