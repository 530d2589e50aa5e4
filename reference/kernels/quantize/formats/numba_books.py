"""NF4, logarithmic and ternary codes compiled by Numba: ``*_part`` is a thread's share, ``*_parallel`` all of them."""

from __future__ import annotations

import numpy as np
from numba import prange

from reference.kernels.quantize.formats.books import NF4_SMALLEST, NF4_ZERO
from reference.kernels.quantize.formats.cost import SCRATCH
from reference.kernels.quantize.formats.numba_elements import (
    F32,
    INFINITE,
    MAGNITUDE,
    ONE,
    ZERO,
    bits_of,
    f32,
    inline,
    nf4_code,
    nf4_value,
    pack,
    parallel,
    rounded,
    serial,
    unpack,
)

NF4_FLOOR = F32(NF4_SMALLEST)

# --- NF4


@serial
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
            largest = max(largest, bits_of(f32(piece[i])) & MAGNITUDE)
        scale_bits[b] = largest
        if 0 < largest < INFINITE:
            inverse = ONE / max(scale[b], NF4_FLOOR)
            for i in range(n):
                scratch[i] = nf4_code(f32(piece[i]) * inverse)
        else:
            scratch[:n] = NF4_ZERO
        pack(scratch, n, 2, NF4_ZERO, codes[(b * block) >> 1 :])


@serial
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
            values[2 * i] = nf4_value(byte >> np.int32(4))
            values[2 * i + 1] = nf4_value(byte)
        for first in range(0, count, block):
            s = scale[(entry + first) // block]
            n = min(block, count - first)
            found, piece = values[first : first + n], out[entry + first : entry + first + n]
            for i in range(n):
                piece[i] = rounded(found[i] * s, out)
        entry += count


# --- logarithmic


@serial
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
            value = f32(piece[i])
            code = np.int32(base[(bits_of(value) & MAGNITUDE) >> shift])
            code += np.int32(value < thresholds[code])
            scratch[i] = levels if value < ZERO else code
        pack(scratch, count, each, 0, codes[place:])
        entry, place = entry + count, place + SCRATCH // each


@serial
def table_values_part(part, parts, codes, table, each, bits, out):
    """``table[code]`` for a share of the entries."""
    entry, end = codes.size * part // parts * each, min(codes.size * (part + 1) // parts * each, out.size)
    scratch = np.empty(SCRATCH + 16, np.uint8)
    while entry < end:
        count = min(end - entry, SCRATCH)
        unpack(codes, entry, count, each, bits, scratch)
        piece = out[entry : entry + count]
        for i in range(count):
            piece[i] = rounded(table[scratch[i]], out)
        entry += count


# --- ternary


@inline
def _add_magnitudes(x, threshold, sums):
    """Add the |x| of at least ``threshold`` to 32 sums in float64, the way it vectorises."""
    for row in range(x.size // 32):
        piece = x[32 * row : 32 * row + 32]
        for i in range(32):
            magnitude = abs(f32(piece[i]))
            sums[i] += np.float64(ZERO if magnitude < threshold else magnitude)
    rest = x[x.size // 32 * 32 :]
    for i in range(rest.size):
        magnitude = abs(f32(rest[i]))
        sums[i] += np.float64(ZERO if magnitude < threshold else magnitude)


@serial
def magnitudes_part(part, parts, x, totals):
    """The sum of |x| of a share, in float64, into ``totals[part]``."""
    sums = np.zeros(32, np.float64)
    _add_magnitudes(x[x.size * part // parts : x.size * (part + 1) // parts], ZERO, sums)
    totals[part] = sums.sum()


@serial
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
            value = f32(piece[i])
            large = np.int32((abs(value) >= threshold) & (value != ZERO))
            found += large
            keep[i] = large
        for i in range(count):
            value = f32(piece[i])
            negative[i] = (abs(value) >= threshold) & (value < ZERO)
        kept += found
        _add_magnitudes(piece, threshold, sums)
        pack(keep, count, 8, 0, mask[place:])
        pack(negative, count, 8, 0, sign[place:])
        entry, place = entry + count, place + SCRATCH // 8
    counts[part], totals[part] = kept, sums.sum()


@serial
def ternary_values_part(part, parts, mask, sign, scale, bits, out):
    """scale * {-1, 0, 1} for a share of the bytes.

    ``bits`` float32[256, 8] holds the bits of each byte, the highest first.
    """
    for byte in range(mask.size * part // parts, mask.size * (part + 1) // parts):
        keep, negative = bits[mask[byte]], bits[sign[byte]]
        piece = out[8 * byte : min(8 * byte + 8, out.size)]
        if piece.size == 8:
            for i in range(8):
                piece[i] = rounded((keep[i] - F32(2) * negative[i]) * scale, out)
        else:
            for i in range(piece.size):
                piece[i] = rounded((keep[i] - F32(2) * negative[i]) * scale, out)


# --- all parts at once


@parallel
def nf4_parallel(parts, x, block, codes, scale):
    """:func:`nf4_part` for all parts, a thread each."""
    for part in prange(parts):
        nf4_part(part, parts, x, block, codes, scale)


@parallel
def nf4_values_parallel(parts, codes, scale, block, out):
    """:func:`nf4_values_part` for all parts."""
    for part in prange(parts):
        nf4_values_part(part, parts, codes, scale, block, out)


@parallel
def log_parallel(parts, x, base, thresholds, shift, each, codes):
    """:func:`log_part` for all parts."""
    for part in prange(parts):
        log_part(part, parts, x, base, thresholds, shift, each, codes)


@parallel
def table_values_parallel(parts, codes, table, each, bits, out):
    """:func:`table_values_part` for all parts."""
    for part in prange(parts):
        table_values_part(part, parts, codes, table, each, bits, out)


@parallel
def magnitudes_parallel(parts, x, totals):
    """:func:`magnitudes_part` for all parts."""
    for part in prange(parts):
        magnitudes_part(part, parts, x, totals)


@parallel
def ternary_parallel(parts, x, threshold, mask, sign, counts, totals):
    """:func:`ternary_part` for all parts."""
    for part in prange(parts):
        ternary_part(part, parts, x, threshold, mask, sign, counts, totals)


@parallel
def ternary_values_parallel(parts, mask, sign, scale, bits, out):
    """:func:`ternary_values_part` for all parts."""
    for part in prange(parts):
        ternary_values_part(part, parts, mask, sign, scale, bits, out)
