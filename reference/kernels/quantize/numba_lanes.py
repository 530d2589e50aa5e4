"""Codes of block-wise quantisation found and decoded 64 at a time, by AVX-512 instructions that look up bytes.

A table of 256 bytes is four registers, and two permutes and a blend look 64 entries up in it; floats are looked up as
four tables of bytes and put together by unpacking. :class:`maps.LaneTable` says what the tables hold. The intrinsics
emit nothing where the target lacks an instruction set of ``NEEDS``: callers must not come here then.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from reference.kernels.quantize.maps import BASE_AT, DECODE_AT, LOWEST_OCTAVE, MIDPOINTS_AT, OFFSETS_AT, SHIFTS_AT

NEEDS = ("avx512f", "avx512bw", "avx512vbmi")

_BYTE, _WORD, _INT, _FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_BYTES, _WORDS, _INTS = ir.VectorType(_BYTE, 64), ir.VectorType(_WORD, 32), ir.VectorType(_INT, 16)
_FLOATS = ir.VectorType(_FLOAT, 16)


class _Lanes:
    """Emits vector instructions; ``usable`` is False where the target has not got them."""

    def __init__(self, context, builder):
        self.builder = builder
        features = context.codegen().magic_tuple()[2].split(",")
        self.usable = all(f"+{name}" in features for name in NEEDS)

    def load(self, pointer, at, vector):
        """``vector`` at byte ``at``."""
        place = self.builder.gep(pointer, [ir.Constant(ir.IntType(64), at)])
        return self.builder.load(self.builder.bitcast(place, vector.as_pointer()), align=1)

    def store(self, value, pointer, at, *, stream=False):
        """``stream`` writes past the caches, at a multiple of 64."""
        place = self.builder.gep(pointer, [ir.Constant(ir.IntType(64), at)])
        place = self.builder.bitcast(place, value.type.as_pointer())
        written = self.builder.store(value, place, align=64 if stream else 1)
        if stream:
            written.set_metadata("nontemporal", self.builder.module.add_metadata([ir.Constant(_INT, 1)]))

    def call(self, name, result, *arguments):
        function = ir.FunctionType(result, [argument.type for argument in arguments])
        name = f"llvm.x86.avx512.{name}.512"
        return self.builder.call(cgutils.get_or_insert_function(self.builder.module, function, name), arguments)

    def shuffle(self, a, b, places):
        return self.builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT, len(places)), places))

    def splat(self, value, vector):
        lone = self.builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(_INT, 0))
        return self.shuffle(lone, lone, [0] * vector.count)

    def constant(self, value, vector):
        return ir.Constant(vector, [value] * vector.count)

    def transposed(self, data):
        """The 4x4 blocks of four bytes transposed: from and to the order that packing and unpacking leaves."""
        ints = self.builder.bitcast(data, _INTS)
        return self.builder.bitcast(self.shuffle(ints, ints, [i % 4 * 4 + i // 4 for i in range(16)]), _BYTES)

    def unpacked(self, a, b, *, high):
        """``a`` and ``b`` interleaved within lanes of 128 bits, the low or the high half of each."""
        half = a.type.count // 8
        starts = [lane * 2 * half + high * half for lane in range(4)]
        return self.shuffle(a, b, [start + i + side * a.type.count
                                   for start in starts for i in range(half) for side in (0, 1)])

    def looked_up(self, table, at, index, upper):
        """Bytes from the 256 at ``at``; ``upper`` says which indices are above 127."""
        planes = [self.load(table, at + 64 * part, _BYTES) for part in range(4)]
        low, high = (self.call("vpermi2var.qi", _BYTES, a, index, b) for a, b in (planes[:2], planes[2:]))
        return self.builder.select(upper, high, low)

    def above_127(self, index):
        return self.builder.icmp_signed("<", index, self.constant(0, _BYTES))

    def floats(self, table, at, index):
        """64 floats from a table of 256 kept as four tables of bytes; ``index`` is transposed."""
        upper = self.above_127(index)
        planes = [self.looked_up(table, at + 256 * byte, index, upper) for byte in range(4)]
        found = []
        for high in (0, 1):
            lower, higher = (self.builder.bitcast(self.unpacked(*pair, high=high), _WORDS)
                             for pair in (planes[:2], planes[2:]))
            found += [self.builder.bitcast(self.unpacked(lower, higher, high=half), _FLOATS) for half in (0, 1)]
        return found

    def mask(self, parts):
        """Four masks of 16 as one of 64."""
        pairs = [self.shuffle(a, b, list(range(32))) for a, b in (parts[:2], parts[2:])]
        return self.shuffle(*pairs, list(range(64)))


def _decoder(stream):
    @intrinsic
    def decode(_context, codes, table, scale, out):
        def generate(context, builder, _, arguments):
            lanes = _Lanes(context, builder)
            if lanes.usable:
                source, tables, scale, target = arguments
                factor = lanes.splat(scale, _FLOATS)
                index = lanes.transposed(lanes.load(source, 0, _BYTES))
                target = builder.bitcast(target, _BYTE.as_pointer())
                for part, values in enumerate(lanes.floats(tables, DECODE_AT, index)):
                    lanes.store(builder.fmul(values, factor), target, 64 * part, stream=stream)
            return context.get_dummy_value()

        return types.void(codes, table, types.float32, out), generate

    return decode


# f(codes, table, scale, out): out[:64] = code[codes[:64]] * scale
decode, decode_past_caches = _decoder(stream=False), _decoder(stream=True)


@intrinsic
def fence(_context):
    """Order what was written past the caches before all that follows."""

    def generate(context, builder, _, __):
        if _Lanes(context, builder).usable:
            name = "llvm.x86.sse.sfence"
            builder.call(cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), []), name), [])
        return context.get_dummy_value()

    return types.void(), generate


def _bins(lanes, table, x, magnitude, signs):
    """The bin of each of 16 scaled entries: its octave's offset + its top mantissa bits, + 256 for a negative one."""
    builder = lanes.builder
    shifts, offsets = ([lanes.load(table, at + 64 * half, _INTS) for half in (0, 1)] for at in (SHIFTS_AT, OFFSETS_AT))
    bits = builder.bitcast(x, _INTS)
    size = builder.and_(bits, magnitude)
    lowest = lanes.constant(LOWEST_OCTAVE << 23, _INTS)
    size = builder.select(builder.icmp_signed(">", size, lowest), size, lowest)
    octave = builder.lshr(size, lanes.constant(23, _INTS))
    shift, offset = (lanes.call("vpermi2var.d", _INTS, a, octave, b) for a, b in (shifts, offsets))
    place = builder.add(lanes.call("psrlv.d", _INTS, size, shift), offset)
    return builder.or_(place, builder.and_(builder.lshr(bits, lanes.constant(23, _INTS)), signs))


def _nearest(lanes, table, scaled, magnitude, signs):
    """Codes of 64 scaled entries: those of their bins' start, and one more where the next midpoint is below."""
    builder = lanes.builder
    bins = [_bins(lanes, table, x, magnitude, signs) for x in scaled]
    words = [builder.bitcast(lanes.call("packusdw", _WORDS, *pair), _BYTES) for pair in (bins[:2], bins[2:])]
    low = [16 * lane + 2 * i + 64 * side for lane in range(4) for side in (0, 1) for i in range(8)]
    index, page = lanes.shuffle(*words, low), lanes.shuffle(*words, [place + 1 for place in low])
    upper = lanes.above_127(index)
    halves = [lanes.looked_up(table, BASE_AT + 256 * half, index, upper) for half in (0, 1)]
    base = builder.select(builder.icmp_unsigned("!=", page, lanes.constant(0, _BYTES)), halves[1], halves[0])
    midpoints = lanes.floats(table, MIDPOINTS_AT, base)
    above = lanes.mask([builder.fcmp_ordered(">", x, middle) for x, middle in zip(scaled, midpoints, strict=True)])
    return builder.sub(lanes.transposed(base), builder.sext(above, _BYTES))


def _one_below(lanes, found, scaled, zero):
    """Negative entries that became 0 take the code below it."""
    nothing = lanes.constant(0.0, _FLOATS)
    negative = lanes.mask([lanes.builder.fcmp_ordered("<", value, nothing) for value in scaled])
    lost = lanes.builder.icmp_unsigned("==", found, lanes.splat(zero, _BYTES))
    return lanes.builder.add(found, lanes.builder.sext(lanes.builder.and_(negative, lost), _BYTES))


def _encoder(keep_sign):
    @intrinsic
    def encode(_context, x, scale, table, magnitude, signs, zero, codes):
        def generate(context, builder, _, arguments):
            lanes = _Lanes(context, builder)
            if lanes.usable:
                source, scale, tables, *integers, target = arguments
                magnitude, signs = (lanes.splat(builder.trunc(value, _INT), _INTS) for value in integers[:2])
                source, divisor = builder.bitcast(source, _BYTE.as_pointer()), lanes.splat(scale, _FLOATS)
                scaled = [builder.fdiv(lanes.load(source, 64 * part, _FLOATS), divisor) for part in range(4)]
                found = _nearest(lanes, tables, scaled, magnitude, signs)
                if keep_sign:
                    found = _one_below(lanes, found, scaled, builder.trunc(integers[2], _BYTE))
                lanes.store(found, target, 0)
            return context.get_dummy_value()

        return types.void(x, types.float32, table, *[types.intp] * 3, codes), generate

    return encode


# f(x, scale, table, magnitude, signs, zero, codes): codes[:64] = the nearest codes of x[:64] / scale
encode, encode_keeping_sign = _encoder(keep_sign=False), _encoder(keep_sign=True)
