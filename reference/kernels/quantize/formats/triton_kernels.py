"""The Triton kernels behind ``triton_gpu.py``.

Operations, their order and rounding are the eager backend's: divisions are IEEE and the launches forbid fused
multiply-adds, so codes and scales are equal bit for bit. Inputs are widened to float32 as they are loaded. An index is
64 bits wide only where ``WIDE`` says that the tensor needs it: 64-bit divisions are slow.
"""

from __future__ import annotations

import triton
import triton.language as tl

from reference.kernels.quantize.formats import books, grid

_MIDPOINTS = tl.constexpr(books.NF4_MIDPOINTS)
_VALUES = tl.constexpr(books.NF4_VALUES)
_NF4_ZERO = tl.constexpr(books.NF4_ZERO)
_NF4_SMALLEST = tl.constexpr(books.NF4_SMALLEST)
_SMALLEST_SCALE = tl.constexpr(grid.SMALLEST_SCALE)
_MAGNITUDE, _INFINITE = tl.constexpr(0x7FFFFFFF), tl.constexpr(0x7F800000)
# Adding and subtracting 1.5 * 2^23 rounds to an integer, half to even, up to 2^22; codes lie within +-BEYOND.
_ROUND, _BEYOND = tl.constexpr(12582912.0), tl.constexpr(512.0)


@triton.jit
def _places(count: tl.constexpr, WIDE: tl.constexpr):
    first = tl.program_id(0).to(tl.int64) * count if WIDE else tl.program_id(0) * count
    return first + tl.arange(0, count)


# --- NF4


@triton.jit
def _nf4_code(x):
    """How many midpoints are below ``x``, by bisection."""
    m: tl.constexpr = _MIDPOINTS
    a = x > m[7]
    b = x > tl.where(a, m[11], m[3])
    c = x > tl.where(a, tl.where(b, m[13], m[9]), tl.where(b, m[5], m[1]))
    high = tl.where(b, tl.where(c, m[14], m[12]), tl.where(c, m[10], m[8]))
    low = tl.where(b, tl.where(c, m[6], m[4]), tl.where(c, m[2], m[0]))
    d = x > tl.where(a, high, low)
    return a.to(tl.int32) * 8 + b.to(tl.int32) * 4 + c.to(tl.int32) * 2 + d.to(tl.int32)


@triton.jit
def _nf4_value(code):
    v: tl.constexpr = _VALUES
    a, b, c, d = (code & 8) > 0, (code & 4) > 0, (code & 2) > 0, (code & 1) > 0
    top = tl.where(c, tl.where(d, v[15], v[14]), tl.where(d, v[13], v[12]))
    upper = tl.where(c, tl.where(d, v[11], v[10]), tl.where(d, v[9], v[8]))
    lower = tl.where(c, tl.where(d, v[7], v[6]), tl.where(d, v[5], v[4]))
    bottom = tl.where(c, tl.where(d, v[3], v[2]), tl.where(d, v[1], v[0]))
    return tl.where(a, tl.where(b, top, upper), tl.where(b, lower, bottom))


@triton.jit
def nf4_tiles(x, codes, scale, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """``ROWS`` blocks a program, in one read."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = rows[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    # Magnitudes order as their bits do, and a NaN comes out on top.
    largest = tl.max(value.to(tl.int32, bitcast=True) & _MAGNITUDE, axis=1)
    tl.store(scale + rows, largest.to(tl.float32, bitcast=True), mask=rows * BLOCK < n)
    finite = largest < _INFINITE
    usable = tl.where(finite, largest.to(tl.float32, bitcast=True), 1.0)
    inverse = tl.div_rn(1.0, tl.maximum(usable, _NF4_SMALLEST))
    code = tl.where(finite[:, None], _nf4_code(value * inverse[:, None]), _NF4_ZERO)
    first, second = tl.split(tl.reshape(code, [ROWS, BLOCK // 2, 2]))
    byte = rows[:, None] * (BLOCK // 2) + tl.arange(0, BLOCK // 2)[None, :]
    tl.store(codes + byte, (first * 16 + second).to(tl.uint8), mask=byte * 2 < n)


@triton.jit
def nf4_values(codes, scale, out, n, shift, BYTES: tl.constexpr, WIDE: tl.constexpr):
    """Two entries from each of ``BYTES`` bytes; a block has 2^shift entries."""
    byte = _places(BYTES, WIDE)
    packed = tl.load(codes + byte, mask=byte * 2 < n, other=0).to(tl.int32)
    s = tl.load(scale + (byte >> (shift - 1)), mask=byte * 2 < n, other=0.0)
    pair = tl.interleave(_nf4_value(packed >> 4) * s, _nf4_value(packed) * s)
    at = _places(BYTES * 2, WIDE)
    tl.store(out + at, pair.to(out.dtype.element_ty), mask=at < n)


# --- uniform


@triton.jit
def _clip(value, low, high):
    """Within low..high; NaN gives ``low``."""
    value = tl.where(value > low, value, low)
    return tl.where(value < high, value, high)


@triton.jit
def _rint(value):
    return (_clip(value, -_BEYOND, _BEYOND) + _ROUND) - _ROUND


@triton.jit
def _float_of_key(key):
    return (key ^ ((key >> 31) & _MAGNITUDE)).to(tl.float32, bitcast=True)


@triton.jit
def groups_tiles(x, codes, scale, zeros, n, low, high, mask, ROWS: tl.constexpr, GROUP: tl.constexpr,
                 EACH: tl.constexpr, SYMMETRIC: tl.constexpr):
    """``ROWS`` groups a program: their ranges, scales and codes in one read."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows * GROUP < n
    at = rows[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    bits = value.to(tl.int32, bitcast=True)
    # An int32 that orders as the float32 does, NaN beyond the infinity of its sign.
    key = bits ^ ((bits >> 31) & _MAGNITUDE)
    low_key, high_key = tl.min(key, axis=1), tl.max(key, axis=1)
    finite = (low_key > -_INFINITE - 1) & (high_key < _INFINITE)
    smallest = tl.where(finite, tl.minimum(_float_of_key(tl.minimum(low_key, 0)), 0.0), 0.0)
    largest = tl.where(finite, _float_of_key(tl.maximum(high_key, 0)), 0.0)
    low, high = low.to(tl.float32), high.to(tl.float32)
    wide = tl.zeros_like(largest) + high
    if SYMMETRIC:
        s = tl.div_rn(tl.maximum(largest, -smallest), wide)
    else:
        s = tl.div_rn(largest, wide) - tl.div_rn(smallest, wide)
    s = tl.maximum(s, _SMALLEST_SCALE)
    inverse = tl.div_rn(1.0, s)
    tl.store(scale + rows, tl.where(finite, s, float("nan")), mask=live)
    code = _rint(value * inverse[:, None])
    if not SYMMETRIC:
        zero = _clip(_rint(-smallest * inverse), low, high)
        tl.store(zeros + rows, tl.where(finite, zero, 0.0).to(tl.uint8), mask=live)
        code += zero[:, None]
    code = tl.where(finite[:, None], _clip(code, low, high), low).to(tl.int32) & mask
    if EACH > 1:
        first, second = tl.split(tl.reshape(code, [ROWS, GROUP // 2, 2]))
        code = first * (16 if EACH == 2 else 4) + second
    if EACH == 4:
        first, second = tl.split(tl.reshape(code, [ROWS, GROUP // 4, 2]))
        code = first * 16 + second
    byte = rows[:, None] * (GROUP // EACH) + tl.arange(0, GROUP // EACH)[None, :]
    tl.store(codes + byte, code.to(tl.uint8), mask=byte * EACH < n)


@triton.jit
def _scale_index(at, length, group, runs_per_row, period):
    row = at // length
    return (row * runs_per_row + (at - row * length) // group) % period


@triton.jit
def encode(x, noise, scale, zeros, codes, n, length, group, runs_per_row, period, low, high, mask,
           EACH: tl.constexpr, NOISE: tl.constexpr, SYMMETRIC: tl.constexpr, BYTES: tl.constexpr, WIDE: tl.constexpr):
    """``BYTES`` bytes of codes a program, with scales that are known; any layout."""
    byte = _places(BYTES, WIDE)
    low, high = low.to(tl.float32), high.to(tl.float32)
    packed = tl.zeros([BYTES], tl.int32)
    for place in tl.static_range(EACH):
        at = byte * EACH + place
        live = at < n
        index = _scale_index(at, length, group, runs_per_row, period)
        value = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
        value = value * tl.div_rn(1.0, tl.load(scale + index, mask=live, other=1.0))
        if NOISE:
            value = _clip(value, -_BEYOND, _BEYOND)
            whole = tl.floor(value)
            value = whole + (tl.load(noise + at, mask=live, other=0.0) < value - whole).to(tl.float32)
        else:
            value = _rint(value)
        if not SYMMETRIC:
            value += tl.load(zeros + index, mask=live, other=0).to(tl.float32)
        code = _clip(value, low, high).to(tl.int32) & mask
        packed = packed * (256 >> (8 - 8 // EACH)) + tl.where(live, code, 0)
    tl.store(codes + byte, packed.to(tl.uint8), mask=byte * EACH < n)


@triton.jit
def decode(codes, scale, zeros, out, n, length, group, runs_per_row, period, EACH: tl.constexpr,
           SYMMETRIC: tl.constexpr, ENTRIES: tl.constexpr, WIDE: tl.constexpr):
    """``ENTRIES`` entries a program; any layout."""
    at = _places(ENTRIES, WIDE)
    live = at < n
    index = _scale_index(at, length, group, runs_per_row, period)
    code = _unpacked(codes, at, live, EACH)
    if SYMMETRIC:
        # Two's complement, widened by moving it to the top of a word and back.
        value = ((code << (32 - 8 // EACH)) >> (32 - 8 // EACH)).to(tl.float32)
    else:
        value = code.to(tl.float32) - tl.load(zeros + index, mask=live, other=0).to(tl.float32)
    value = value * tl.load(scale + index, mask=live, other=0.0)
    tl.store(out + at, value.to(out.dtype.element_ty), mask=live)


@triton.jit
def _unpacked(codes, at, live, EACH: tl.constexpr):
    """The codes, int32, of entries ``at``."""
    byte = tl.load(codes + at // EACH, mask=live, other=0).to(tl.int32)
    if EACH > 1:
        shift = (EACH - 1 - at % EACH).to(tl.int32) * (8 // EACH)
        byte = (byte >> shift) & ((256 >> (8 - 8 // EACH)) - 1)
    return byte


# --- logarithmic


@triton.jit
def log_codes(x, thresholds, codes, n, STEPS: tl.constexpr, EACH: tl.constexpr, BYTES: tl.constexpr,
              WIDE: tl.constexpr):
    """How many of the 2^STEPS - 1 descending thresholds are above each entry."""
    byte = _places(BYTES, WIDE)
    packed = tl.zeros([BYTES], tl.int32)
    for place in tl.static_range(EACH):
        at = byte * EACH + place
        value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
        found = tl.zeros([BYTES], tl.int32)
        for step in tl.static_range(STEPS):
            ahead = found + (1 << (STEPS - 1 - step))
            found = tl.where(tl.load(thresholds + ahead - 1) > value, ahead, found)
        packed = packed * (256 >> (8 - 8 // EACH)) + tl.where(at < n, found, 0)
    tl.store(codes + byte, packed.to(tl.uint8), mask=byte * EACH < n)


@triton.jit
def table_values(codes, table, out, n, EACH: tl.constexpr, ENTRIES: tl.constexpr, WIDE: tl.constexpr):
    """``table[code]``."""
    at = _places(ENTRIES, WIDE)
    value = tl.load(table + _unpacked(codes, at, at < n, EACH))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)


# --- ternary


@triton.jit
def ternary_planes(x, mask, sign, counts, totals, n, threshold, BYTES: tl.constexpr):
    """Both planes; how many entries each program keeps, and the sum of their magnitudes in float64."""
    byte = tl.program_id(0).to(tl.int64) * BYTES + tl.arange(0, BYTES)
    at = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    value = tl.load(x + at, mask=at < n, other=0.0).to(tl.float32)
    magnitude = tl.abs(value)
    keep = (magnitude >= threshold) & (magnitude > 0)
    bit = 1 << (7 - tl.arange(0, 8))[None, :]
    kept = tl.sum(tl.where(keep, bit, 0), axis=1)
    negative = tl.sum(tl.where(keep & (value < 0), bit, 0), axis=1)
    tl.store(mask + byte, kept.to(tl.uint8), mask=byte * 8 < n)
    tl.store(sign + byte, negative.to(tl.uint8), mask=byte * 8 < n)
    tl.store(counts + tl.program_id(0), tl.sum(tl.sum(keep.to(tl.int32), axis=1), axis=0))
    sums = tl.sum(tl.where(keep, magnitude, 0.0).to(tl.float64), axis=1)
    tl.store(totals + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
def ternary_values(mask, sign, out, n, scale, ENTRIES: tl.constexpr, WIDE: tl.constexpr):
    """scale * {-1, 0, 1}."""
    at = _places(ENTRIES, WIDE)
    keep, negative = _unpacked(mask, at, at < n, 8), _unpacked(sign, at, at < n, 8)
    value = (keep - 2 * negative).to(tl.float32) * scale
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < n)
