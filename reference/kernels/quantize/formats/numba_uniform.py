"""Uniform codes compiled by Numba: each ``*_part`` does a thread's share, each ``*_parallel`` runs them all.

Loops are written for LLVM to vectorise: codes go to a short scratch of bytes first and are packed from there, and are
unpacked into one before they become values, since loops over single groups are too short to start cheaply.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from reference.kernels.quantize.formats.cost import SCRATCH
from reference.kernels.quantize.formats.grid import SMALLEST_SCALE
from reference.kernels.quantize.formats.numba_elements import (
    F32,
    INFINITE,
    MAGNITUDE,
    ONE,
    ZERO,
    bits_of,
    f32,
    float_of,
    floor,
    inline,
    pack,
    parallel,
    rint,
    rounded,
    serial,
    unpack,
)

SCALE_FLOOR, NAN = F32(SMALLEST_SCALE), F32(np.nan)
SIGN_SHIFT = np.int32(31)
NOTHING_LOW, NOTHING_HIGH = np.int32(0x7FFFFFFF), np.int32(-0x80000000)


@inline
def _key(value):
    """An int32 that orders as the float32 does, NaN beyond the infinity of its sign."""
    bits = bits_of(value)
    return bits ^ ((bits >> SIGN_SHIFT) & MAGNITUDE)


@inline
def _fit(low_key, high_key, low, high, asymmetric):
    """(scale, zero point) of a run from the keys of its extremes; (NaN, 0) where one is not finite."""
    if low_key <= _key(-F32(np.inf)) or high_key >= INFINITE:
        return NAN, ZERO
    smallest = min(float_of(low_key ^ ((low_key >> SIGN_SHIFT) & MAGNITUDE)), ZERO)
    largest = max(float_of(high_key ^ ((high_key >> SIGN_SHIFT) & MAGNITUDE)), ZERO)
    if not asymmetric:
        return max(max(largest, -smallest) / high, SCALE_FLOOR), ZERO
    scale = max(largest / high - smallest / high, SCALE_FLOOR)
    return scale, min(max(rint(-smallest * (ONE / scale)), low), high)


@inline
def _code(value, zero, low, high):
    """The code of a rounded value; NaN gives ``low``."""
    shifted = value + zero
    shifted = shifted if shifted > low else low
    return np.int32(shifted if shifted < high else high)


@inline
def _stochastic(value, noise):
    whole = floor(value)
    return whole + (ONE if noise < value - whole else ZERO)


@inline
def _encode(x, noise, inverse, zero, grid, codes):
    """Codes of entries of one scale."""
    low, high, mask = grid
    if noise.size:
        for i in range(x.size):
            codes[i] = _code(_stochastic(f32(x[i]) * inverse, noise[i]), zero, low, high) & mask
    else:
        for i in range(x.size):
            codes[i] = _code(rint(f32(x[i]) * inverse), zero, low, high) & mask


@inline
def _encode_columns(x, noise, scale, zeros, grid, codes):
    """As :func:`_encode` where every entry has its own scale."""
    low, high, mask = grid
    if noise.size:
        for i in range(x.size):
            zero = F32(zeros[i]) if zeros.size else ZERO
            codes[i] = _code(_stochastic(f32(x[i]) * (ONE / scale[i]), noise[i]), zero, low, high) & mask
    elif zeros.size:
        for i in range(x.size):
            codes[i] = _code(rint(f32(x[i]) * (ONE / scale[i])), F32(zeros[i]), low, high) & mask
    else:
        for i in range(x.size):
            codes[i] = _code(rint(f32(x[i]) * (ONE / scale[i])), ZERO, low, high) & mask


@inline
def _extremes(x):
    """Keys of the smallest and the largest entry."""
    low_key, high_key = NOTHING_LOW, NOTHING_HIGH
    for i in range(x.size):
        key = _key(f32(x[i]))
        low_key, high_key = min(low_key, key), max(high_key, key)
    return low_key, high_key


@serial
def uniform_part(part, parts, x, noise, layout, grid, each, fit, codes, scale, zeros):
    """Bytes ``part`` of ``parts`` of the codes of ``x``; with ``fit`` each run's scale is found on the way.

    ``layout`` is (length, group, runs a row, period), ``grid`` (low, high, mask of a code's bits); ``noise`` and
    ``zeros`` are empty where there are none. A run that reaches into two parts is fitted in both and stored by the
    first.
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
                pack(scratch, fill, each, 0, codes[place:])
                place, fill = place + SCRATCH // each, 0
        row, run, index = _next_run(row, run, index, stop == row_end, runs_per_row, period, columns)
    pack(scratch, fill, each, 0, codes[place:])


@inline
def _next_run(row, run, index, row_ends, runs_per_row, period, columns):
    """Row, run in the row and scale of the next run; with columns, the next row and the scale of its first entry."""
    if row_ends:
        row, run = row + 1, 0
        index = row * runs_per_row % period if columns else index + 1
    else:
        run, index = run + 1, index + 1
    return row, run, index if index < period else 0


@serial
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
                key = _key(f32(piece[i]))
                low[i], high[i] = min(low[i], key), max(high[i], key)
        else:
            run = column // group
            until = min(row * length + (run + 1) * group, (row + 1) * length, end)
            index = (row * runs_per_row + run) % period
            low_key, high_key = _extremes(x[entry:until])
            lows[index], highs[index] = min(lows[index], low_key), max(highs[index], high_key)
        entry = until


@serial
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


@inline
def _signed(code, shift):
    """A code in two's complement, widened by moving it to the top of a byte and back."""
    return F32(np.int8(np.int8(code << np.uint8(shift)) >> shift))


@serial
def uniform_values_part(part, parts, codes, scale, zeros, layout, each, bits, out):
    """The values of a share of the bytes' entries, rounded to the type of ``out``."""
    length, group, runs_per_row, period = layout
    entry, end = codes.size * part // parts * each, min(codes.size * (part + 1) // parts * each, out.size)
    scratch = np.empty(SCRATCH + 16, np.uint8)
    shift = np.int8(8 - bits if each > 1 else 0)
    columns = group == 1
    row, run = entry // length, entry % length // group
    index = (row * runs_per_row + (0 if columns else run)) % period
    while entry < end:
        stretch = min(end - entry, SCRATCH)
        unpack(codes, entry, stretch, each, bits, scratch)
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
                    piece[i] = rounded((F32(found[i]) - zero) * s, out)
            else:
                s = scale[index]
                for i in range(count):
                    piece[i] = rounded(_signed(found[i], shift) * s, out)
            done += count
            if entry + done == stop:
                row, run, index = _next_run(row, run, index, stop == row_end, runs_per_row, period, columns)
        entry += stretch


@inline
def _decode_columns(codes, shift, scale, zeros, asymmetric, out):
    """Values of entries that have a scale each."""
    if asymmetric:
        for i in range(codes.size):
            out[i] = rounded((F32(codes[i]) - F32(zeros[i])) * scale[i], out)
    else:
        for i in range(codes.size):
            out[i] = rounded(_signed(codes[i], shift) * scale[i], out)




@parallel
def uniform_parallel(parts, x, noise, layout, grid, each, fit, codes, scale, zeros):
    """:func:`uniform_part` for all parts."""
    for part in prange(parts):
        uniform_part(part, parts, x, noise, layout, grid, each, fit, codes, scale, zeros)


@parallel
def extremes_parallel(parts, x, layout, low_keys, high_keys):
    """:func:`extremes_part` for all parts."""
    for part in prange(parts):
        extremes_part(part, parts, x, layout, low_keys, high_keys)


@parallel
def uniform_values_parallel(parts, codes, scale, zeros, layout, each, bits, out):
    """:func:`uniform_values_part` for all parts."""
    for part in prange(parts):
        uniform_values_part(part, parts, codes, scale, zeros, layout, each, bits, out)
