"""The compiled side of the Numba backend: blocks are dequantised, updated and requantised while in the nearest cache.

Codes are found and decoded in one of two ways, with equal results. ``wide``: 64 entries at a time by AVX-512 byte
permutes, whose tables (:class:`maps.LaneTable`) stay in registers or the nearest cache; the map must fit such a table.
Otherwise one entry at a time from a :class:`maps.SearchTable`. No fast-math: every operation is rounded by itself.
Everything is in this one file because Numba's disk cache is keyed by the file of the outermost function.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, njit, prange, types
from numba.core import cgutils
from numba.extending import intrinsic

from reference.kernels.jit import kernel
from reference.kernels.quantize.maps import (
    BASE_AT,
    DECODE_AT,
    LOWEST_KEY,
    LOWEST_OCTAVE,
    MANTISSA_SHIFT,
    MIDPOINTS_AT,
    OFFSETS_AT,
    SHIFTS_AT,
)

PIECE = 4096  # entries of a moment held in the frame; longer blocks are read twice
WIDE_NEEDS = ("avx512f", "avx512bw", "avx512vbmi")

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)
_BIT, _BYTE, _WORD, _INT, _FLOAT = ir.IntType(1), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()
_BYTES, _WORDS, _INTS = ir.VectorType(_BYTE, 64), ir.VectorType(_WORD, 32), ir.VectorType(_INT, 16)
_FLOATS = ir.VectorType(_FLOAT, 16)

_OPTIONS = {"error_model": "numpy", "nogil": True}
_inline = njit(inline="always", **_OPTIONS)


# --- 64 entries at a time


class _Lanes:
    """Emits vector instructions; ``usable`` is False where the target has not got them."""

    def __init__(self, context, builder):
        self.context, self.builder = context, builder
        features = context.codegen().magic_tuple()[2].split(",")
        self.usable = all(f"+{name}" in features for name in WIDE_NEEDS)

    def starts(self, signature, arguments, moving, still):
        """Addresses: entry ``arguments[1]`` of two arrays, the start of a third."""
        nothing = ir.Constant(ir.IntType(64), 0)
        for place, at in (*((i, arguments[1]) for i in moving), (still, nothing)):
            data = self.context.make_array(signature.args[place])(self.context, self.builder, arguments[place]).data
            yield self.builder.bitcast(self.builder.gep(data, [at]), _BYTE.as_pointer())

    def load(self, pointer, at, vector):
        """``vector`` at byte ``at``."""
        place = self.builder.gep(pointer, [ir.Constant(ir.IntType(64), at)])
        return self.builder.load(self.builder.bitcast(place, vector.as_pointer()), align=1)

    def store(self, value, pointer, at):
        place = self.builder.gep(pointer, [ir.Constant(ir.IntType(64), at)])
        self.builder.store(value, self.builder.bitcast(place, value.type.as_pointer()), align=1)

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


@intrinsic
def _decode_lanes(_context, codes, at, table, scale, out):
    """out[at : at + 64] = code[codes[at : at + 64]] * scale."""

    def generate(context, builder, signature, arguments):
        lanes = _Lanes(context, builder)
        if lanes.usable:
            source, target, tables = lanes.starts(signature, arguments, (0, 4), 2)
            factor = lanes.splat(arguments[3], _FLOATS)
            index = lanes.transposed(lanes.load(source, 0, _BYTES))
            for part, values in enumerate(lanes.floats(tables, DECODE_AT, index)):
                lanes.store(builder.fmul(values, factor), target, 64 * part)
        return context.get_dummy_value()

    return types.void(codes, types.intp, table, types.float32, out), generate


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


def _encoder(keep_sign):
    """An intrinsic: codes[at : at + 64] = the nearest codes of x[at : at + 64] / scale."""

    @intrinsic
    def encode(_context, x, at, scale, data, magnitude, signs, zero, codes):
        def generate(context, builder, signature, arguments):
            lanes = _Lanes(context, builder)
            if lanes.usable:
                source, target, tables = lanes.starts(signature, arguments, (0, 7), 3)
                divisor = lanes.splat(arguments[2], _FLOATS)
                scaled = [builder.fdiv(lanes.load(source, 64 * part, _FLOATS), divisor) for part in range(4)]
                masks = (lanes.splat(builder.trunc(arguments[i], _INT), _INTS) for i in (4, 5))
                found = _nearest(lanes, tables, scaled, *masks)
                if keep_sign:
                    found = _one_below(lanes, found, scaled, builder.trunc(arguments[6], _BYTE))
                lanes.store(found, target, 0)
            return context.get_dummy_value()

        integers = [types.intp] * 3
        return types.void(x, types.intp, types.float32, data, *integers, codes), generate

    return encode


def _one_below(lanes, found, scaled, zero):
    """Negative entries that became 0 take the code below it."""
    nothing = lanes.constant(0.0, _FLOATS)
    negative = lanes.mask([lanes.builder.fcmp_ordered("<", value, nothing) for value in scaled])
    lost = lanes.builder.icmp_unsigned("==", found, lanes.splat(zero, _BYTES))
    return lanes.builder.add(found, lanes.builder.sext(lanes.builder.and_(negative, lost), _BYTES))


_encode_lanes, _encode_lanes_signed = _encoder(False), _encoder(True)


# --- blocks


@intrinsic
def _reserve(_context):
    """``PIECE`` floats in the caller's frame; nothing is left to free."""

    def generate(context, builder, _, __):
        pointer = cgutils.alloca_once(builder, _FLOAT, size=PIECE)
        pointer.align = 64
        return pointer

    return types.CPointer(types.float32)(), generate


@_inline
def _frame():
    return carray(_reserve(), (PIECE,))


@_inline
def _top(bits, n):
    """The bits of the largest magnitude: they order as integers do, and a NaN comes out on top."""
    largest = np.int32(0)
    for i in range(n):
        largest = max(largest, bits[i] & _MAGNITUDE)
    return largest


@_inline
def _decode(codes, n, scale, table, out):
    """out[:n] = code[codes] * scale."""
    done = 0
    if table.wide:
        done = n // 64 * 64
        for i in range(0, done, 64):
            _decode_lanes(codes, i, table.lanes, scale, out)
    for i in range(done, n):
        out[i] = table.code[codes[i]] * scale


@_inline
def _encode(x, n, scale, table, keep_sign, codes):
    """The nearest codes of x[:n] / scale; all of them the code of 0 where the scale is 0, infinite or NaN."""
    if not 0 < scale < np.inf:
        codes[:n] = table.zero
        return
    done = 0
    if table.wide:
        done = n // 64 * 64
        if keep_sign:
            for i in range(0, done, 64):
                _encode_lanes_signed(x, i, scale, table.lanes, table.magnitude, table.signs, table.zero, codes)
        else:
            for i in range(0, done, 64):
                _encode_lanes(x, i, scale, table.lanes, table.magnitude, table.signs, table.zero, codes)
    if done < n:
        _encode_rest(x[done:n], scale, table, keep_sign, codes[done:n])


@njit(**_OPTIONS)
def _encode_rest(x, scale, table, keep_sign, codes):
    """One entry at a time."""
    scaled = _frame()
    bits = scaled.view(np.int32)
    for i in range(x.size):
        scaled[i] = x[i] / scale
    bins = table.base.size // 2
    for i in range(x.size):
        place = max(((bits[i] & _MAGNITUDE) >> MANTISSA_SHIFT) - LOWEST_KEY + 1, 0)
        if bits[i] < 0:
            place += bins
        found = np.intp(table.base[place])
        for _ in range(table.steps):
            found += scaled[i] > table.midpoints[found]
        if keep_sign and scaled[i] < 0 and table.code[found] == 0:
            found -= 1
        codes[i] = found


@_inline
def _bounds(b, block, size):
    return b * block, min((b + 1) * block, size)


@_inline
def _share(part, parts, blocks):
    return range(blocks * part // parts, blocks * (part + 1) // parts)


@kernel(**_OPTIONS)
def quantize_part(part, parts, x, block, table, keep_sign, codes, absmax):
    """Find the scale of each block of a share, then the codes of its entries."""
    x_bits, scale_bits = x.view(np.int32), absmax.view(np.int32)
    for b in _share(part, parts, absmax.size):
        low, high = _bounds(b, block, x.size)
        scale_bits[b] = _top(x_bits[low:high], high - low)
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            _encode(x[start:stop], stop - start, absmax[b], table, keep_sign, codes[start:stop])


@kernel(**_OPTIONS)
def dequantize_part(part, parts, codes, absmax, table, block, out):
    """Values of a share of the blocks."""
    for b in _share(part, parts, absmax.size):
        low, high = _bounds(b, block, out.size)
        _decode(codes[low:high], high - low, absmax[b], table, out[low:high])


@_inline
def _moments(g, n, m_codes, m_scale, m_table, v_codes, v_scale, v_table, scalars, m, v):
    beta1, one_minus_beta1, beta2, one_minus_beta2 = scalars[:4]
    _decode(m_codes, n, m_scale, m_table, m)
    _decode(v_codes, n, v_scale, v_table, v)
    for i in range(n):
        m[i] = m[i] * beta1 + g[i] * one_minus_beta1
        v[i] = v[i] * beta2 + g[i] * g[i] * one_minus_beta2


@kernel(**_OPTIONS)
def adam_part(part, parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign):
    """One AdamW step on a share of the blocks."""
    decay, step_size, eps_hat = scalars[4:]
    m, v = _frame(), _frame()
    m_bits, v_bits = m.view(np.int32), v.view(np.int32)
    m_scale_bits, v_scale_bits = m_absmax.view(np.int32), v_absmax.view(np.int32)
    for b in _share(part, parts, m_absmax.size):
        low, high = _bounds(b, block, p.size)
        m_scale, v_scale, m_top, v_top = m_absmax[b], v_absmax[b], np.int32(0), np.int32(0)
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            n, some = stop - start, p[start:stop]
            _moments(g[start:stop], n, m_codes[start:stop], m_scale, m_table, v_codes[start:stop], v_scale, v_table,
                     scalars, m, v)
            for i in range(n):
                some[i] = some[i] * decay - m[i] / (math.sqrt(v[i]) + eps_hat) * step_size
            m_top, v_top = max(m_top, _top(m_bits, n)), max(v_top, _top(v_bits, n))
        m_scale_bits[b], v_scale_bits[b] = m_top, v_top
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            n = stop - start
            if high - low > PIECE:
                _moments(g[start:stop], n, m_codes[start:stop], m_scale, m_table, v_codes[start:stop], v_scale, v_table,
                         scalars, m, v)
            _encode(m, n, m_absmax[b], m_table, keep_sign, m_codes[start:stop])
            _encode(v, n, v_absmax[b], v_table, False, v_codes[start:stop])


@_inline
def _heavy_ball(p, g, n, m_codes, m_scale, m_table, scalars, m):
    """Unlike Adam's moments it depends on p, so a long block's p must not change before its codes are written."""
    momentum, weight_decay = scalars[1:]
    _decode(m_codes, n, m_scale, m_table, m)
    for i in range(n):
        m[i] = m[i] * momentum + (g[i] + p[i] * weight_decay)


@kernel(**_OPTIONS)
def momentum_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """One step of SGD with momentum on a share of the blocks."""
    lr = scalars[0]
    m = _frame()
    bits, scale_bits = m.view(np.int32), m_absmax.view(np.int32)
    for b in _share(part, parts, m_absmax.size):
        low, high = _bounds(b, block, p.size)
        scale, top = m_absmax[b], np.int32(0)
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            _heavy_ball(p[start:stop], g[start:stop], stop - start, m_codes[start:stop], scale, m_table, scalars, m)
            top = max(top, _top(bits, stop - start))
        scale_bits[b] = top
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            n, some = stop - start, p[start:stop]
            if high - low > PIECE:
                _heavy_ball(some, g[start:stop], n, m_codes[start:stop], scale, m_table, scalars, m)
            for i in range(n):
                some[i] = some[i] - m[i] * lr
            _encode(m, n, m_absmax[b], m_table, keep_sign, m_codes[start:stop])


@kernel(**_OPTIONS)
def lion_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """One step of Lion on a share of the blocks."""
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr = scalars
    m = _frame()
    bits, scale_bits = m.view(np.int32), m_absmax.view(np.int32)
    for b in _share(part, parts, m_absmax.size):
        low, high = _bounds(b, block, p.size)
        scale, top = m_absmax[b], np.int32(0)
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            n, some, slope = stop - start, p[start:stop], g[start:stop]
            _decode(m_codes[start:stop], n, scale, m_table, m)
            for i in range(n):
                c = m[i] * beta1 + slope[i] * one_minus_beta1
                sign = np.float32(1) if c > 0 else (np.float32(-1) if c < 0 else c)
                some[i] = some[i] * decay - sign * lr
                m[i] = m[i] * beta2 + slope[i] * one_minus_beta2
            top = max(top, _top(bits, n))
        scale_bits[b] = top
        for start in range(low, high, PIECE):
            stop = min(start + PIECE, high)
            n = stop - start
            if high - low > PIECE:
                _decode(m_codes[start:stop], n, scale, m_table, m)
                for i in range(n):
                    m[i] = m[i] * beta2 + g[start + i] * one_minus_beta2
            _encode(m, n, m_absmax[b], m_table, keep_sign, m_codes[start:stop])


# --- all blocks, a share of them for each thread


@kernel(parallel=True, **_OPTIONS)
def quantize_parallel(parts, x, block, table, keep_sign, codes, absmax):
    """The shares of :func:`quantize_part` on ``parts`` threads."""
    for part in prange(parts):
        quantize_part(part, parts, x, block, table, keep_sign, codes, absmax)


@kernel(parallel=True, **_OPTIONS)
def dequantize_parallel(parts, codes, absmax, table, block, out):
    """The shares of :func:`dequantize_part` on ``parts`` threads."""
    for part in prange(parts):
        dequantize_part(part, parts, codes, absmax, table, block, out)


@kernel(parallel=True, **_OPTIONS)
def adam_parallel(parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign):
    """The shares of :func:`adam_part` on ``parts`` threads."""
    for part in prange(parts):
        adam_part(part, parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign)


@kernel(parallel=True, **_OPTIONS)
def momentum_parallel(parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """The shares of :func:`momentum_part` on ``parts`` threads."""
    for part in prange(parts):
        momentum_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign)


@kernel(parallel=True, **_OPTIONS)
def lion_parallel(parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """The shares of :func:`lion_part` on ``parts`` threads."""
    for part in prange(parts):
        lion_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign)
