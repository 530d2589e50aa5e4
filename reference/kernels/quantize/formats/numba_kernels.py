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
from reference.kernels.quantize.formats.books import NF4_MIDPOINTS, NF4_SMALLEST, NF4_VALUES, NF4_ZERO
from reference.kernels.quantize.formats.cost import SCRATCH
from reference.kernels.quantize.formats.grid import SMALLEST_SCALE

F32 = np.float32
ZERO, ONE = F32(0), F32(1)
NF4_FLOATS = tuple(float(F32(value)) for value in NF4_VALUES)
NF4_FLOOR, SCALE_FLOOR, NAN = F32(NF4_SMALLEST), F32(SMALLEST_SCALE), F32(np.nan)
MAGNITUDE, INFINITE = np.int32(0x7FFFFFFF), np.int32(0x7F800000)
SIGN_SHIFT = np.int32(31)
NOTHING_LOW, NOTHING_HIGH = np.int32(0x7FFFFFFF), np.int32(-0x80000000)
# Eight bytes of one bit (four of two) times this leave their bits in the highest byte, the first byte's on top.
GATHER_BITS, TOP_BITS = np.uint64(0x8040201008040201), np.uint64(56)
GATHER_PAIRS, TOP_PAIRS = np.uint32(0x40100401), np.uint32(24)

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
def _nf4_code(_context, value):
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
def _nf4_value(_context, code):
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


@_inline
def _pack(scratch, count, each, fill, out):
    """Pack ``count`` codes of 8/each bits from ``scratch``, which is longer than that by 8, into the start of ``out``."""
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


@_inline
def _unpack(codes, entry, count, each, bits, scratch):
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


# --- NF4


@_serial
def nf4_part(part, parts, x, block, codes, scale):
    """Blocks ``part`` of ``parts`` of ``x`` into packed codes and scales."""
    blocks = scale.size
    scratch = np.empty(block + 8, np.uint8)
    scale_bits = scale.view(np.int32)
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        piece = x[b * block : min((b + 1) * block, x.size)]
        n = piece.size
        largest = np.int32(0)
        for i in range(n):
            largest = max(largest, _bits(_f32(piece[i])) & MAGNITUDE)
        scale_bits[b] = largest
        if 0 < largest < INFINITE:
            inverse = ONE / max(scale[b], NF4_FLOOR)
            for i in range(n):
                scratch[i] = _nf4_code(_f32(piece[i]) * inverse)
        else:
            scratch[:n] = NF4_ZERO
        _pack(scratch, n, 2, NF4_ZERO, codes[(b * block) >> 1 :])


@_serial
def nf4_values_part(part, parts, codes, scale, block, out):
    """The values of blocks ``part`` of ``parts``: a stretch of values first, then each block's scale."""
    blocks = scale.size
    entry, end = blocks * part // parts * block, min(blocks * (part + 1) // parts * block, out.size)
    values = np.empty(SCRATCH, np.float32)
    while entry < end:
        count = min(end - entry, SCRATCH)
        packed = codes[entry >> 1 : (entry + count + 1) >> 1]
        for i in range(packed.size):
            byte = np.int32(packed[i])
            values[2 * i] = _nf4_value(byte >> np.int32(4))
            values[2 * i + 1] = _nf4_value(byte)
        for first in range(0, count, block):
            s = scale[(entry + first) // block]
            n = min(block, count - first)
            found, piece = values[first : first + n], out[entry + first : entry + first + n]
            for i in range(n):
                piece[i] = _rounded(found[i] * s, out)
        entry += count


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
def _encode(x, noise, inverse, zero, grid, codes):
    """Codes of entries of one scale."""
    low, high, mask = grid
    if noise.size:
        for i in range(x.size):
            codes[i] = _code(_stochastic(_f32(x[i]) * inverse, noise[i]), zero, low, high) & mask
    else:
        for i in range(x.size):
            codes[i] = _code(_rint(_f32(x[i]) * inverse), zero, low, high) & mask


@_inline
def _encode_columns(x, noise, scale, zeros, grid, codes):
    """As :func:`_encode` where every entry has its own scale."""
    low, high, mask = grid
    if noise.size:
        for i in range(x.size):
            zero = F32(zeros[i]) if zeros.size else ZERO
            codes[i] = _code(_stochastic(_f32(x[i]) * (ONE / scale[i]), noise[i]), zero, low, high) & mask
    elif zeros.size:
        for i in range(x.size):
            codes[i] = _code(_rint(_f32(x[i]) * (ONE / scale[i])), F32(zeros[i]), low, high) & mask
    else:
        for i in range(x.size):
            codes[i] = _code(_rint(_f32(x[i]) * (ONE / scale[i])), ZERO, low, high) & mask


@_inline
def _extremes(x):
    """Keys of the smallest and the largest entry."""
    low_key, high_key = NOTHING_LOW, NOTHING_HIGH
    for i in range(x.size):
        key = _key(_f32(x[i]))
        low_key, high_key = min(low_key, key), max(high_key, key)
    return low_key, high_key


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
    row, run = entry // length, entry % length // group
    index = (row * runs_per_row + (0 if columns else run)) % period
    while entry < end:
        start = row * length + run * group
        row_end = (row + 1) * length
        stop = row_end if columns else min(start + group, row_end)
        if fit:
            low_key, high_key = _extremes(x[start:stop])
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
            piece, draws = x[entry : entry + count], noise[entry : entry + count]
            into = scratch[fill : fill + count]
            if columns:
                at = index + entry - row * length
                _encode_columns(piece, draws, scale[at : at + count], zeros[at : at + count], grid, into)
            else:
                _encode(piece, draws, inverse, zero, grid, into)
            fill, entry = fill + count, entry + count
            if fill == SCRATCH:
                _pack(scratch, fill, each, 0, codes[place:])
                place, fill = place + SCRATCH // each, 0
        row, run, index = _next_run(row, run, index, stop == row_end, runs_per_row, period, columns)
    _pack(scratch, fill, each, 0, codes[place:])


@_inline
def _next_run(row, run, index, row_ends, runs_per_row, period, columns):
    """Row, run in the row and scale of the next run; with columns, the next row and the scale of its first entry."""
    if row_ends:
        row, run = row + 1, 0
        index = row * runs_per_row % period if columns else index + 1
    else:
        run, index = run + 1, index + 1
    return row, run, index if index < period else 0


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
            piece = x[entry:until]
            low, high = lows[column : column + piece.size], highs[column : column + piece.size]
            for i in range(piece.size):
                key = _key(_f32(piece[i]))
                low[i], high[i] = min(low[i], key), max(high[i], key)
        else:
            run = column // group
            until = min(row * length + (run + 1) * group, (row + 1) * length, end)
            index = (row * runs_per_row + run) % period
            low_key, high_key = _extremes(x[entry:until])
            lows[index], highs[index] = min(lows[index], low_key), max(highs[index], high_key)
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
def _signed(code, shift):
    """A code in two's complement, widened by moving it to the top of a byte and back."""
    return F32(np.int8(np.int8(code << np.uint8(shift)) >> shift))


@_serial
def uniform_values_part(part, parts, codes, scale, zeros, layout, each, bits, out):
    """The values of a share of the entries, rounded to the type of ``out``."""
    length, group, runs_per_row, period = layout
    entry, end = codes.size * part // parts * each, min(codes.size * (part + 1) // parts * each, out.size)
    scratch = np.empty(SCRATCH + 16, np.uint8)
    shift = np.int8(8 - bits if each > 1 else 0)
    columns = group == 1
    row, run = entry // length, entry % length // group
    index = (row * runs_per_row + (0 if columns else run)) % period
    while entry < end:
        stretch = min(end - entry, SCRATCH)
        _unpack(codes, entry, stretch, each, bits, scratch)
        done = 0
        while done < stretch:
            row_end = (row + 1) * length
            stop = row_end if columns else min(row * length + (run + 1) * group, row_end)
            count = min(stop - entry - done, stretch - done)
            found, piece = scratch[done : done + count], out[entry + done : entry + done + count]
            if columns:
                at = index + entry + done - row * length
                _decode_columns(found, shift, scale[at : at + count], zeros[at : at + count], zeros.size > 0, piece)
            elif zeros.size:
                s, zero = scale[index], F32(zeros[index])
                for i in range(count):
                    piece[i] = _rounded((F32(found[i]) - zero) * s, out)
            else:
                s = scale[index]
                for i in range(count):
                    piece[i] = _rounded(_signed(found[i], shift) * s, out)
            done += count
            if entry + done == stop:
                row, run, index = _next_run(row, run, index, stop == row_end, runs_per_row, period, columns)
        entry += stretch


@_inline
def _decode_columns(codes, shift, scale, zeros, asymmetric, out):
    """Values of entries that have a scale each."""
    if asymmetric:
        for i in range(codes.size):
            out[i] = _rounded((F32(codes[i]) - F32(zeros[i])) * scale[i], out)
    else:
        for i in range(codes.size):
            out[i] = _rounded(_signed(codes[i], shift) * scale[i], out)


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
        piece = x[entry : entry + count]
        for i in range(count):
            value = _f32(piece[i])
            code = np.int32(base[(_bits(value) & MAGNITUDE) >> shift])
            code += np.int32(value < thresholds[code])
            scratch[i] = levels if value < ZERO else code
        _pack(scratch, count, each, 0, codes[place:])
        entry, place = entry + count, place + SCRATCH // each


@_serial
def table_values_part(part, parts, codes, table, each, bits, out):
    """``table[code]`` for a share of the entries."""
    entry, end = codes.size * part // parts * each, min(codes.size * (part + 1) // parts * each, out.size)
    scratch = np.empty(SCRATCH + 16, np.uint8)
    while entry < end:
        count = min(end - entry, SCRATCH)
        _unpack(codes, entry, count, each, bits, scratch)
        piece = out[entry : entry + count]
        for i in range(count):
            piece[i] = _rounded(table[scratch[i]], out)
        entry += count


# --- ternary


@_inline
def _add_magnitudes(x, threshold, sums):
    """Add the |x| of at least ``threshold`` to 32 sums in float64, the way it vectorises."""
    for row in range(x.size // 32):
        piece = x[32 * row : 32 * row + 32]
        for i in range(32):
            magnitude = abs(_f32(piece[i]))
            sums[i] += np.float64(ZERO if magnitude < threshold else magnitude)
    rest = x[x.size // 32 * 32 :]
    for i in range(rest.size):
        magnitude = abs(_f32(rest[i]))
        sums[i] += np.float64(ZERO if magnitude < threshold else magnitude)


@_serial
def magnitudes_part(part, parts, x, totals):
    """The sum of |x| of a share, in float64, into ``totals[part]``."""
    sums = np.zeros(32, np.float64)
    _add_magnitudes(x[x.size * part // parts : x.size * (part + 1) // parts], ZERO, sums)
    totals[part] = sums.sum()


@_serial
def ternary_part(part, parts, x, threshold, mask, sign, counts, totals):
    """Bytes ``part`` of ``parts`` of both planes; how many are kept, and the sum of their magnitudes in float64."""
    first_byte, last_byte = mask.size * part // parts, mask.size * (part + 1) // parts
    entry, end, place = first_byte * 8, min(last_byte * 8, x.size), first_byte
    keep, negative = np.empty(SCRATCH + 8, np.uint8), np.empty(SCRATCH + 8, np.uint8)
    sums, kept = np.zeros(32, np.float64), 0
    while entry < end:
        count = min(end - entry, SCRATCH)
        piece, found = x[entry : entry + count], np.int32(0)
        for i in range(count):
            value = _f32(piece[i])
            large = np.int32((abs(value) >= threshold) & (value != ZERO))
            found += large
            keep[i] = large
        for i in range(count):
            value = _f32(piece[i])
            negative[i] = (abs(value) >= threshold) & (value < ZERO)
        kept += found
        _add_magnitudes(piece, threshold, sums)
        _pack(keep, count, 8, 0, mask[place:])
        _pack(negative, count, 8, 0, sign[place:])
        entry, place = entry + count, place + SCRATCH // 8
    counts[part], totals[part] = kept, sums.sum()


@_serial
def ternary_values_part(part, parts, mask, sign, scale, bits, out):
    """scale * {-1, 0, 1} for a share of the bytes; ``bits`` float32[256, 8] holds the bits of a byte, the highest first."""
    for byte in range(mask.size * part // parts, mask.size * (part + 1) // parts):
        keep, negative = bits[mask[byte]], bits[sign[byte]]
        piece = out[8 * byte : min(8 * byte + 8, out.size)]
        if piece.size == 8:
            for i in range(8):
                piece[i] = _rounded((keep[i] - F32(2) * negative[i]) * scale, out)
        else:
            for i in range(piece.size):
                piece[i] = _rounded((keep[i] - F32(2) * negative[i]) * scale, out)


# --- all parts at once


@_parallel
def nf4_parallel(parts, x, block, codes, scale):
    """:func:`nf4_part` for all parts, a thread each."""
    for part in prange(parts):
        nf4_part(part, parts, x, block, codes, scale)


@_parallel
def nf4_values_parallel(parts, codes, scale, block, out):
    """:func:`nf4_values_part` for all parts."""
    for part in prange(parts):
        nf4_values_part(part, parts, codes, scale, block, out)


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
def ternary_values_parallel(parts, mask, sign, scale, bits, out):
    """:func:`ternary_values_part` for all parts."""
    for part in prange(parts):
        ternary_values_part(part, parts, mask, sign, scale, bits, out)
