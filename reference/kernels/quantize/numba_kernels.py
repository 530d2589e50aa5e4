"""The compiled side of the Numba backend: blocks are dequantised, updated and requantised while in the nearest cache.

Codes are found and decoded in one of two ways, with equal results: 64 entries at a time (:mod:`numba_lanes`) where the
CPU and the map allow it, else one at a time from a :class:`maps.SearchTable`. Blocks of up to ``PIECE`` entries keep
their moments in the frame between the update and requantisation; of longer ones the moments are computed twice. No
fast-math: every operation is rounded by itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numba import njit, prange

from reference.kernels.jit import kernel
from reference.kernels.quantize import numba_lanes, numba_pointers
from reference.kernels.quantize.maps import BINS, LOWEST_KEY, MANTISSA_SHIFT
from reference.kernels.quantize.numba_lanes import decode, decode_past_caches, encode, encode_keeping_sign, fence
from reference.kernels.quantize.numba_pointers import PIECE, at, bits, frame, is_aligned, moved

# Results of this many bytes are written past the caches: they would not stay there anyway.
STREAM_FROM = 2**25

_MAGNITUDE = np.int32(0x7FFFFFFF)
_OPTIONS = {"error_model": "numpy", "nogil": True}
_SOURCES = (Path(numba_lanes.__file__), Path(numba_pointers.__file__))

_inline = njit(inline="always", **_OPTIONS)
_part = kernel(sources=_SOURCES, **_OPTIONS)
_parallel = kernel(sources=_SOURCES, parallel=True, **_OPTIONS)


class Table(NamedTuple):
    """What the kernels need of a map: arrays outside, pointers inside. ``zero`` is the code of 0."""

    code: Any
    base: Any
    midpoints: Any
    lanes: Any
    steps: int
    zero: int
    magnitude: int
    signs: int
    wide: bool


@_inline
def _pointed(table):
    return Table(at(table.code, 0), at(table.base, 0), at(table.midpoints, 0), at(table.lanes, 0),
                 table.steps, table.zero, table.magnitude, table.signs, table.wide)


@_inline
def _top(x, n):
    """The bits of the largest magnitude: they order as integers do, and a NaN comes out on top."""
    patterns, largest = bits(x), np.int32(0)
    for i in range(n):
        largest = max(largest, patterns[i] & _MAGNITUDE)
    return largest


@_inline
def _decode(codes, n, scale, table, out, stream):
    """out[:n] = code[codes[:n]] * scale."""
    done = n // 64 * 64 if table.wide else 0
    if stream:
        for i in range(0, done, 64):
            decode_past_caches(moved(codes, i), table.lanes, scale, moved(out, i))
    else:
        for i in range(0, done, 64):
            decode(moved(codes, i), table.lanes, scale, moved(out, i))
    for i in range(done, n):
        out[i] = table.code[codes[i]] * scale


@_inline
def _encode(x, n, scale, table, keep_sign, codes):
    """The nearest codes of x[:n] / scale; all of them the code of 0 where the scale is 0, infinite or NaN."""
    if not 0 < scale < np.inf:
        for i in range(n):
            codes[i] = table.zero
        return
    done = n // 64 * 64 if table.wide else 0
    if keep_sign:
        for i in range(0, done, 64):
            encode_keeping_sign(
                moved(x, i), scale, table.lanes, table.magnitude, table.signs, table.zero, moved(codes, i))
    else:
        for i in range(0, done, 64):
            encode(moved(x, i), scale, table.lanes, table.magnitude, table.signs, table.zero, moved(codes, i))
    if done < n:
        _encode_one_by_one(moved(x, done), n - done, scale, table, keep_sign, moved(codes, done))


@njit(**_OPTIONS)
def _encode_one_by_one(x, n, scale, table, keep_sign, codes):
    scaled = frame()
    patterns = bits(scaled)
    for i in range(n):
        scaled[i] = x[i] / scale
    for i in range(n):
        # Without a branch: negative entries find their bins after the others.
        place = max(((patterns[i] & _MAGNITUDE) >> MANTISSA_SHIFT) - LOWEST_KEY + 1, 0) + (patterns[i] >> 31 & BINS)
        found = np.int32(table.base[place])
        codes[i] = found + (scaled[i] > table.midpoints[found])
    if table.steps > 1:
        for i in range(n):
            found = np.int32(codes[i])
            for _ in range(table.steps - 1):
                found += scaled[i] > table.midpoints[found]
            codes[i] = found
    if keep_sign:
        for i in range(n):
            codes[i] -= (scaled[i] < 0) & (codes[i] == table.zero)


@_inline
def _share(part, parts, blocks):
    return range(blocks * part // parts, blocks * (part + 1) // parts)


@_part
def quantize_part(part, parts, x, block, table, keep_sign, codes, absmax):
    """Find the scale of each block of a share, then the codes of its entries."""
    tables, scales, scale_bits = _pointed(table), at(absmax, 0), bits(at(absmax, 0))
    for b in _share(part, parts, absmax.size):
        start, size = b * block, min(block, x.size - b * block)
        scale_bits[b] = _top(at(x, start), size)
        for i in range(0, size, PIECE):
            _encode(at(x, start + i), min(PIECE, size - i), scales[b], tables, keep_sign, at(codes, start + i))


@_part
def dequantize_part(part, parts, codes, absmax, table, block, out):
    """Values of a share of the blocks."""
    tables, scales = _pointed(table), at(absmax, 0)
    stream = out.size * 4 >= STREAM_FROM and block % 64 == 0 and is_aligned(at(out, 0))
    for b in _share(part, parts, absmax.size):
        start = b * block
        _decode(at(codes, start), min(block, out.size - start), scales[b], tables, at(out, start), stream)
    if stream:
        fence()


@_inline
def _moments(g, n, m_codes, m_scale, m_table, v_codes, v_scale, v_table, scalars, m, v):
    """Adam's, from their codes."""
    beta1, one_minus_beta1, beta2, one_minus_beta2 = scalars[:4]
    _decode(m_codes, n, m_scale, m_table, m, False)
    _decode(v_codes, n, v_scale, v_table, v, False)
    for i in range(n):
        m[i] = m[i] * beta1 + g[i] * one_minus_beta1
        v[i] = v[i] * beta2 + g[i] * g[i] * one_minus_beta2


@_part
def adam_part(part, parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign):
    """One AdamW step on a share of the blocks."""
    decay, step_size, eps_hat = scalars[4:]
    m, v, m_map, v_map = frame(), frame(), _pointed(m_table), _pointed(v_table)
    m_scales, v_scales = at(m_absmax, 0), at(v_absmax, 0)
    for b in _share(part, parts, m_absmax.size):
        start, size = b * block, min(block, p.size - b * block)
        m_scale, v_scale, m_top, v_top = m_scales[b], v_scales[b], np.int32(0), np.int32(0)
        for i in range(start, start + size, PIECE):
            n, some = min(PIECE, start + size - i), at(p, i)
            _moments(at(g, i), n, at(m_codes, i), m_scale, m_map, at(v_codes, i), v_scale, v_map, scalars, m, v)
            for k in range(n):
                some[k] = some[k] * decay - m[k] / (math.sqrt(v[k]) + eps_hat) * step_size
            m_top, v_top = max(m_top, _top(m, n)), max(v_top, _top(v, n))
        bits(m_scales)[b], bits(v_scales)[b] = m_top, v_top
        for i in range(start, start + size, PIECE):
            n = min(PIECE, start + size - i)
            if size > PIECE:
                _moments(at(g, i), n, at(m_codes, i), m_scale, m_map, at(v_codes, i), v_scale, v_map, scalars, m, v)
            _encode(m, n, m_scales[b], m_map, keep_sign, at(m_codes, i))
            _encode(v, n, v_scales[b], v_map, False, at(v_codes, i))


@_inline
def _heavy_ball(p, g, n, m_codes, m_scale, m_map, scalars, m):
    """Momentum from its codes. It depends on p, so p must not change before the codes are final."""
    momentum, weight_decay = scalars[1:]
    _decode(m_codes, n, m_scale, m_map, m, False)
    for i in range(n):
        m[i] = m[i] * momentum + (g[i] + p[i] * weight_decay)


@_part
def momentum_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """One step of SGD with momentum on a share of the blocks."""
    lr, m, m_map, scales = scalars[0], frame(), _pointed(m_table), at(m_absmax, 0)
    for b in _share(part, parts, m_absmax.size):
        start, size, scale, top = b * block, min(block, p.size - b * block), scales[b], np.int32(0)
        for i in range(start, start + size, PIECE):
            n = min(PIECE, start + size - i)
            _heavy_ball(at(p, i), at(g, i), n, at(m_codes, i), scale, m_map, scalars, m)
            top = max(top, _top(m, n))
        bits(scales)[b] = top
        for i in range(start, start + size, PIECE):
            n, some = min(PIECE, start + size - i), at(p, i)
            if size > PIECE:
                _heavy_ball(some, at(g, i), n, at(m_codes, i), scale, m_map, scalars, m)
            for k in range(n):
                some[k] = some[k] - m[k] * lr
            _encode(m, n, scales[b], m_map, keep_sign, at(m_codes, i))


@_inline
def _average(g, n, m_codes, m_scale, m_map, beta, one_minus_beta, m):
    """Lion's momentum from its codes, after the step."""
    _decode(m_codes, n, m_scale, m_map, m, False)
    for i in range(n):
        m[i] = m[i] * beta + g[i] * one_minus_beta


@_part
def lion_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """One step of Lion on a share of the blocks."""
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr = scalars
    m, m_map, scales = frame(), _pointed(m_table), at(m_absmax, 0)
    for b in _share(part, parts, m_absmax.size):
        start, size, scale, top = b * block, min(block, p.size - b * block), scales[b], np.int32(0)
        for i in range(start, start + size, PIECE):
            n, some, slope = min(PIECE, start + size - i), at(p, i), at(g, i)
            _decode(at(m_codes, i), n, scale, m_map, m, False)
            for k in range(n):
                c = m[k] * beta1 + slope[k] * one_minus_beta1
                sign = np.float32(1) if c > 0 else (np.float32(-1) if c < 0 else c)
                some[k] = some[k] * decay - sign * lr
                m[k] = m[k] * beta2 + slope[k] * one_minus_beta2
            top = max(top, _top(m, n))
        bits(scales)[b] = top
        for i in range(start, start + size, PIECE):
            n = min(PIECE, start + size - i)
            if size > PIECE:
                _average(at(g, i), n, at(m_codes, i), scale, m_map, beta2, one_minus_beta2, m)
            _encode(m, n, scales[b], m_map, keep_sign, at(m_codes, i))


# --- all blocks, a share of them for each thread


@_parallel
def quantize_parallel(parts, x, block, table, keep_sign, codes, absmax):
    """The shares of :func:`quantize_part` on ``parts`` threads."""
    for part in prange(parts):
        quantize_part(part, parts, x, block, table, keep_sign, codes, absmax)


@_parallel
def dequantize_parallel(parts, codes, absmax, table, block, out):
    """The shares of :func:`dequantize_part` on ``parts`` threads."""
    for part in prange(parts):
        dequantize_part(part, parts, codes, absmax, table, block, out)


@_parallel
def adam_parallel(parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign):
    """The shares of :func:`adam_part` on ``parts`` threads."""
    for part in prange(parts):
        adam_part(part, parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign)


@_parallel
def momentum_parallel(parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """The shares of :func:`momentum_part` on ``parts`` threads."""
    for part in prange(parts):
        momentum_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign)


@_parallel
def lion_parallel(parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    """The shares of :func:`lion_part` on ``parts`` threads."""
    for part in prange(parts):
        lion_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign)
