"""The formats compiled by Numba: each ``*_part`` does a thread's share, each ``*_parallel`` runs them all.

Half types come as their bits: int16 arrays are float16, uint16 ones bfloat16; all arithmetic is float32, with neither
contraction nor reassociation, so codes equal the eager backend's. Loops are written for LLVM to vectorise: codes go to a
short scratch of bytes first and are packed from there. Everything is in one file because Numba's disk cache is keyed by
the file of the outermost function.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import float32, int16, int32, prange, types, uint16
from numba.extending import intrinsic

from reference.kernels.jit import kernel
from reference.kernels.quantize.formats.books import NF4_MIDPOINTS, NF4_SMALLEST, NF4_ZERO
from reference.kernels.quantize.formats.cost import SCRATCH
from reference.kernels.quantize.formats.grid import SMALLEST_SCALE

F32 = np.float32
ZERO, ONE = F32(0), F32(1)
NF4_FLOOR, SCALE_FLOOR, NAN = F32(NF4_SMALLEST), F32(SMALLEST_SCALE), F32(np.nan)
MAGNITUDE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
SIGN_SHIFT = np.int32(31)
NOTHING_LOW, NOTHING_HIGH = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
# Eight bytes of 0 or 1 times this leave their bits in the highest byte, the first byte's bit on top.
GATHER_BITS = np.uint64(0x8040201008040201)
TOP_BYTE = np.uint64(56)

_OPTIONS = {"error_model": "numpy", "nogil": True}
_inline = kernel(inline="always", **_OPTIONS)
_serial = kernel(**_OPTIONS)
_parallel = kernel(parallel=True, **_OPTIONS)


@intrinsic
def _f32(_context, value):
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
def _rounded(_context, value, array):
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
def _bits(_context, value):
    return int32(float32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.IntType(32))


@intrinsic
def _float_of(_context, bits):
    return float32(int32), lambda _, builder, __, arguments: builder.bitcast(arguments[0], ir.FloatType())


def _llvm(name):
    @intrinsic
    def call(_context, value):
        def generate(_, builder, __, arguments):
            return builder.call(builder.module.declare_intrinsic(name, [ir.FloatType()]), arguments)

        return float32(float32), generate

    return call


_rint, _floor = _llvm("llvm.rint"), _llvm("llvm.floor")


@intrinsic
def _midpoints_below(_context, value):
    """How many midpoints of NF4 are below a float32; 0 for NaN."""

    def generate(_, builder, __, arguments):
        total = ir.Constant(ir.IntType(32), 0)
        for midpoint in NF4_MIDPOINTS:
            above = builder.fcmp_ordered(">", arguments[0], ir.Constant(ir.FloatType(), midpoint))
            total = builder.add(total, builder.zext(above, ir.IntType(32)))
        return total

    return int32(float32), generate


@_inline
def _pack(scratch, count, each, fill, out, place):
    """Pack ``count`` codes of 8/each bits from ``scratch`` (longer than that by 8) into bytes from ``place`` on."""
    for i in range(count, -(-count // each) * each):
        scratch[i] = fill
    if each == 1:
        for i in range(count):
            out[place + i] = scratch[i]
    elif each == 2:
        for i in range((count + 1) >> 1):
            out[place + i] = (scratch[2 * i] << 4) | scratch[2 * i + 1]
    elif each == 4:
        for i in range((count + 3) >> 2):
            out[place + i] = (
                (scratch[4 * i] << 6) | (scratch[4 * i + 1] << 4) | (scratch[4 * i + 2] << 2) | scratch[4 * i + 3]
            )
    else:
        words = scratch.view(np.uint64)
        for i in range((count + 7) >> 3):
            out[place + i] = (words[i] * GATHER_BITS) >> TOP_BYTE


# --- NF4


@_serial
def nf4_part(part, parts, x, block, codes, scale):
    """Blocks ``part`` of ``parts`` of ``x`` into packed codes and scales."""
    blocks = scale.size
    scratch = np.empty(block + 8, np.uint8)
    scale_bits = scale.view(np.int32)
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low = b * block
        n = min(block, x.size - low)
        largest = np.int32(0)
        for i in range(n):
            largest = max(largest, _bits(_f32(x[low + i])) & MAGNITUDE)
        scale_bits[b] = largest
        if 0 < largest < INFINITE:
            inverse = ONE / max(scale[b], NF4_FLOOR)
            for i in range(n):
                scratch[i] = _midpoints_below(_f32(x[low + i]) * inverse)
        else:
            scratch[:n] = NF4_ZERO
        _pack(scratch, n, 2, NF4_ZERO, codes, low // 2)


@_serial
def nf4_values_part(part, parts, codes, scale, block, pairs, out):
    """The values of blocks ``part`` of ``parts``; ``pairs`` float32[256, 2] holds the two values of a byte."""
    blocks = scale.size
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low = b * block
        n = min(block, out.size - low)
        s = scale[b]
        for i in range(n >> 1):
            byte = codes[(low >> 1) + i]
            out[low + 2 * i] = _rounded(pairs[byte, 0] * s, out)
            out[low + 2 * i + 1] = _rounded(pairs[byte, 1] * s, out)
        if n & 1:
            out[low + n - 1] = _rounded(pairs[codes[(low + n) >> 1], 0] * s, out)


# --- uniform


@_inline
def _key(value):
    """An int32 that orders as the float32 does, NaN beyond the infinity of its sign."""
    bits = _bits(value)
    return bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE)


@_inline
def _fit(low_key, high_key, low, high, asymmetric):
    """(scale, zero point) of a run from the keys of its extremes; (NaN, 0) where one is not finite."""
    if low_key <= _key(-F32(np.inf)) or high_key >= INFINITE:
        return NAN, ZERO
    smallest = min(_float_of(low_key ^ ((low_key >> SIGN_SHIFT) & MAGNITUDE)), ZERO)
    largest = max(_float_of(high_key ^ ((high_key >> SIGN_SHIFT) & MAGNITUDE)), ZERO)
    if not asymmetric:
        return max(max(largest, -smallest) / high, SCALE_FLOOR), ZERO
    scale = max(largest / high - smallest / high, SCALE_FLOOR)
    return scale, min(max(_rint(-smallest * (ONE / scale)), low), high)


@_inline
def _code(value, zero, low, high):
    """The code of a rounded value; NaN gives ``low``."""
    shifted = value + zero
    shifted = shifted if shifted > low else low
    return np.int32(shifted if shifted < high else high)


@_inline
def _stochastic(value, noise):
    whole = _floor(value)
    return whole + (ONE if noise < value - whole else ZERO)


@_inline
def _encode(x, entry, count, noise, inverse, zero, grid, scratch, fill):
    """Codes of ``count`` entries of one scale, into ``scratch`` from ``fill`` on."""
    low, high, mask = grid
    if noise.size:
        for i in range(count):
            value = _stochastic(_f32(x[entry + i]) * inverse, noise[entry + i])
            scratch[fill + i] = _code(value, zero, low, high) & mask
    else:
        for i in range(count):
            scratch[fill + i] = _code(_rint(_f32(x[entry + i]) * inverse), zero, low, high) & mask


@_inline
def _encode_columns(x, entry, count, noise, scale, zeros, column, grid, scratch, fill):
    """As :func:`_encode` where every entry of a row has its own scale, from ``column`` on."""
    low, high, mask = grid
    for i in range(count):
        value = _f32(x[entry + i]) * (ONE / scale[column + i])
        value = _stochastic(value, noise[entry + i]) if noise.size else _rint(value)
        zero = F32(zeros[column + i]) if zeros.size else ZERO
        scratch[fill + i] = _code(value, zero, low, high) & mask


@_serial
def uniform_part(part, parts, x, noise, layout, grid, each, fit, codes, scale, zeros):
    """Bytes ``part`` of ``parts`` of the codes of ``x``; with ``fit`` each run's scale is found on the way.

    ``layout`` is (length, group, runs a row, period), ``grid`` (low, high, mask of a code's bits); ``noise`` and
    ``zeros`` are empty where there are none. A run that reaches into two parts is fitted in both, and stored by the first.
    """
    length, group, runs_per_row, period = layout
    low, high, _ = grid
    first_byte, last_byte = codes.size * part // parts, codes.size * (part + 1) // parts
    entry, end = first_byte * each, min(last_byte * each, x.size)
    begin, place, fill = entry, first_byte, 0
    scratch = np.empty(SCRATCH + 8, np.uint8)
    columns = group == 1 and not fit
    while entry < end:
        row, column = entry // length, entry % length
        run = column // group
        start = row * length + run * group
        stop = (row + 1) * length if columns else min(start + group, (row + 1) * length)
        index = (row * runs_per_row + run) % period
        if fit:
            low_key, high_key = NOTHING_LOW, NOTHING_HIGH
            for i in range(start, stop):
                key = _key(_f32(x[i]))
                low_key, high_key = min(low_key, key), max(high_key, key)
            s, zero = _fit(low_key, high_key, low, high, zeros.size > 0)
            if start >= begin:
                scale[index] = s
                if zeros.size:
                    zeros[index] = np.uint8(zero)
        else:
            s, zero = scale[index], F32(zeros[index]) if zeros.size else ZERO
        inverse = ONE / s
        until = min(stop, end)
        while entry < until:
            count = min(until - entry, SCRATCH - fill)
            if columns:
                _encode_columns(x, entry, count, noise, scale, zeros, entry % length, grid, scratch, fill)
            else:
                _encode(x, entry, count, noise, inverse, zero, grid, scratch, fill)
            fill, entry = fill + count, entry + count
            if fill == SCRATCH:
                _pack(scratch, fill, each, 0, codes, place)
                place, fill = place + SCRATCH // each, 0
    _pack(scratch, fill, each, 0, codes, place)


@_serial
def extremes_part(part, parts, x, layout, low_keys, high_keys):
    """Keys of the smallest and largest entry of each scale, int32[parts, period], from a share of ``x``."""
    length, group, runs_per_row, period = layout
    entry, end = x.size * part // parts, x.size * (part + 1) // parts
    lows, highs = low_keys[part], high_keys[part]
    lows[:], highs[:] = NOTHING_LOW, NOTHING_HIGH
    while entry < end:
        row, column = entry // length, entry % length
        if group == 1:
            until = min((row + 1) * length, end)
            for i in range(until - entry):
                key = _key(_f32(x[entry + i]))
                lows[column + i], highs[column + i] = min(lows[column + i], key), max(highs[column + i], key)
        else:
            run = column // group
            until = min(row * length + (run + 1) * group, (row + 1) * length, end)
            index = (row * runs_per_row + run) % period
            low_key, high_key = lows[index], highs[index]
            for i in range(entry, until):
                key = _key(_f32(x[i]))
                low_key, high_key = min(low_key, key), max(high_key, key)
            lows[index], highs[index] = low_key, high_key
        entry = until


@_serial
def fit_scales(low_keys, high_keys, grid, scale, zeros):
    """Scales and zero points from the keys that all parts found."""
    low, high, _ = grid
    for index in range(scale.size):
        low_key, high_key = low_keys[0, index], high_keys[0, index]
        for part in range(1, low_keys.shape[0]):
            low_key = min(low_key, low_keys[part, index])
            high_key = max(high_key, high_keys[part, index])
        s, zero = _fit(low_key, high_key, low, high, zeros.size > 0)
        scale[index] = s
        if zeros.size:
            zeros[index] = np.uint8(zero)


@_inline
def _unpack(codes, entry, count, each, bits, scratch):
    """Codes of ``count`` entries from ``entry`` on, as bytes."""
    if each == 1:
        for i in range(count):
            scratch[i] = codes[entry + i]
    else:
        mask, last = np.uint8(2**bits - 1), each - 1
        shift = 1 if each == 2 else 2 if each == 4 else 3
        for i in range(count):
            at = entry + i
            scratch[i] = (codes[at >> shift] >> np.uint8((last - (at & last)) * bits)) & mask


@_serial
def uniform_values_part(part, parts, codes, scale, zeros, layout, each, bits, out):
    """The values of a share of the entries, rounded to the type of ``out``."""
    length, group, runs_per_row, period = layout
    entry, end = out.size * part // parts, out.size * (part + 1) // parts
    scratch = np.empty(SCRATCH, np.uint8)
    # Two's complement of so many bits, widened by moving it to the top of a byte and back.
    shift = np.int8(8 - bits if each > 1 else 0)
    while entry < end:
        row, column = entry // length, entry % length
        run = column // group
        stop = (row + 1) * length if group == 1 else min(row * length + (run + 1) * group, (row + 1) * length)
        index = (row * runs_per_row + run) % period
        count = min(min(stop, end) - entry, SCRATCH)
        _unpack(codes, entry, count, each, bits, scratch)
        if group == 1 and zeros.size:
            for i in range(count):
                at = (index + i) % period
                out[entry + i] = _rounded((F32(scratch[i]) - F32(zeros[at])) * scale[at], out)
        elif group == 1:
            for i in range(count):
                whole = np.int8(np.int8(scratch[i] << np.uint8(shift)) >> shift)
                out[entry + i] = _rounded(F32(whole) * scale[(index + i) % period], out)
        elif zeros.size:
            s, zero = scale[index], F32(zeros[index])
            for i in range(count):
                out[entry + i] = _rounded((F32(scratch[i]) - zero) * s, out)
        else:
            s = scale[index]
            for i in range(count):
                whole = np.int8(np.int8(scratch[i] << np.uint8(shift)) >> shift)
                out[entry + i] = _rounded(F32(whole) * s, out)
        entry += count


# --- logarithmic


@_serial
def log_part(part, parts, x, base, thresholds, shift, each, codes):
    """Bytes ``part`` of ``parts`` of the logarithmic codes of ``x``."""
    first_byte, last_byte = codes.size * part // parts, codes.size * (part + 1) // parts
    entry, end = first_byte * each, min(last_byte * each, x.size)
    scratch = np.empty(SCRATCH + 8, np.uint8)
    place, levels = first_byte, np.int32(thresholds.size - 1)
    while entry < end:
        count = min(end - entry, SCRATCH)
        for i in range(count):
            value = _f32(x[entry + i])
            code = np.int32(base[(_bits(value) & MAGNITUDE) >> shift])
            code += np.int32(value < thresholds[code])
            scratch[i] = levels if value < ZERO else code
        _pack(scratch, count, each, 0, codes, place)
        entry, place = entry + count, place + SCRATCH // each


@_serial
def table_values_part(part, parts, codes, table, each, bits, out):
    """``table[code]`` for a share of the entries."""
    entry, end = out.size * part // parts, out.size * (part + 1) // parts
    scratch = np.empty(SCRATCH, np.uint8)
    while entry < end:
        count = min(end - entry, SCRATCH)
        _unpack(codes, entry, count, each, bits, scratch)
        for i in range(count):
            out[entry + i] = _rounded(table[scratch[i]], out)
        entry += count


# --- ternary


@_serial
def magnitudes_part(part, parts, x, totals):
    """The sum of |x| of a share, in float64, into ``totals[part]``."""
    sums = np.zeros(32, np.float64)
    entry, end = x.size * part // parts, x.size * (part + 1) // parts
    while entry + 32 <= end:
        for i in range(32):
            sums[i] += np.float64(abs(_f32(x[entry + i])))
        entry += 32
    for i in range(end - entry):
        sums[i] += np.float64(abs(_f32(x[entry + i])))
    totals[part] = sums.sum()


@_serial
def ternary_part(part, parts, x, threshold, mask, sign, counts, totals):
    """Bytes ``part`` of ``parts`` of both planes; how many are kept, and the sum of their magnitudes in float64."""
    first_byte, last_byte = mask.size * part // parts, mask.size * (part + 1) // parts
    entry, end, place = first_byte * 8, min(last_byte * 8, x.size), first_byte
    keep, negative = np.empty(SCRATCH + 8, np.uint8), np.empty(SCRATCH + 8, np.uint8)
    kept, total = 0, 0.0
    sums = np.zeros(32, np.float64)
    while entry < end:
        count = min(end - entry, SCRATCH)
        for i in range(count):
            value = _f32(x[entry + i])
            large = (abs(value) >= threshold) & (value != ZERO)
            keep[i] = large
            negative[i] = large & (value < ZERO)
        found = np.int32(0)
        for i in range(count):
            found += np.int32(keep[i])
        kept += found
        for i in range(count // 32 * 32, count):
            total += np.float64(abs(_f32(x[entry + i]))) if keep[i] else 0.0
        for row in range(count // 32):
            for i in range(32):
                at = 32 * row + i
                sums[i] += np.float64(abs(_f32(x[entry + at])) if keep[at] else ZERO)
        _pack(keep, count, 8, 0, mask, place)
        _pack(negative, count, 8, 0, sign, place)
        entry, place = entry + count, place + SCRATCH // 8
    counts[part], totals[part] = kept, total + sums.sum()


@_serial
def ternary_values_part(part, parts, mask, sign, scale, out):
    """scale * {-1, 0, 1} for a share of the bytes."""
    for byte in range(mask.size * part // parts, mask.size * (part + 1) // parts):
        keep, negative = np.int32(mask[byte]), np.int32(sign[byte])
        for i in range(min(8, out.size - 8 * byte)):
            shift = np.int32(7 - i)
            whole = ((keep >> shift) & np.int32(1)) - np.int32(2) * ((negative >> shift) & np.int32(1))
            out[8 * byte + i] = _rounded(F32(whole) * scale, out)


# --- all parts at once


@_parallel
def nf4_parallel(parts, x, block, codes, scale):
    """:func:`nf4_part` for all parts, a thread each."""
    for part in prange(parts):
        nf4_part(part, parts, x, block, codes, scale)


@_parallel
def nf4_values_parallel(parts, codes, scale, block, pairs, out):
    """:func:`nf4_values_part` for all parts."""
    for part in prange(parts):
        nf4_values_part(part, parts, codes, scale, block, pairs, out)


@_parallel
def uniform_parallel(parts, x, noise, layout, grid, each, fit, codes, scale, zeros):
    """:func:`uniform_part` for all parts."""
    for part in prange(parts):
        uniform_part(part, parts, x, noise, layout, grid, each, fit, codes, scale, zeros)


@_parallel
def extremes_parallel(parts, x, layout, low_keys, high_keys):
    """:func:`extremes_part` for all parts."""
    for part in prange(parts):
        extremes_part(part, parts, x, layout, low_keys, high_keys)


@_parallel
def uniform_values_parallel(parts, codes, scale, zeros, layout, each, bits, out):
    """:func:`uniform_values_part` for all parts."""
    for part in prange(parts):
        uniform_values_part(part, parts, codes, scale, zeros, layout, each, bits, out)


@_parallel
def log_parallel(parts, x, base, thresholds, shift, each, codes):
    """:func:`log_part` for all parts."""
    for part in prange(parts):
        log_part(part, parts, x, base, thresholds, shift, each, codes)


@_parallel
def table_values_parallel(parts, codes, table, each, bits, out):
    """:func:`table_values_part` for all parts."""
    for part in prange(parts):
        table_values_part(part, parts, codes, table, each, bits, out)


@_parallel
def magnitudes_parallel(parts, x, totals):
    """:func:`magnitudes_part` for all parts."""
    for part in prange(parts):
        magnitudes_part(part, parts, x, totals)


@_parallel
def ternary_parallel(parts, x, threshold, mask, sign, counts, totals):
    """:func:`ternary_part` for all parts."""
    for part in prange(parts):
        ternary_part(part, parts, x, threshold, mask, sign, counts, totals)


@_parallel
def ternary_values_parallel(parts, mask, sign, scale, out):
    """:func:`ternary_values_part` for all parts."""
    for part in prange(parts):
        ternary_values_part(part, parts, mask, sign, scale, out)
