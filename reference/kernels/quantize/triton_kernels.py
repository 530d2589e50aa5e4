"""The Triton kernels behind ``triton_gpu.py``.

Operations, their order and rounding are the eager backend's: divisions and roots are IEEE, and the launches forbid
fused multiply-adds, so codes, scales and parameters are those of the CUDA kernels bit for bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from reference.kernels.quantize import gpu_book

_CODE_BITS = tl.constexpr(gpu_book.BIN_BITS)
_MIDPOINTS = tl.constexpr(gpu_book.MIDPOINTS)
_HEADER = tl.constexpr(gpu_book.HEADER)
_BINS = tl.constexpr(gpu_book.BINS)
_INFINITE = tl.constexpr(0x7F800000)
_ONE = tl.constexpr(0x3F800000)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)


# --- the nearest code


@triton.jit
def _magnitude(x):
    """Magnitudes order as their bits do, and a NaN comes out on top."""
    return x.to(tl.int32, bitcast=True) & _MAGNITUDE


@triton.jit
def _encode(x, bits, book):
    """The codes, uint8, of ``x`` in blocks whose scale has the bits ``bits``."""
    usable = (bits > 0) & (bits < _INFINITE)
    quotient = tl.where(usable, tl.div_rn(x, tl.where(usable, bits, _ONE).to(tl.float32, bitcast=True)), 0.0)
    if tl.load(book + _HEADER + 3) > 0:
        key = (quotient + 0.0).to(tl.int32, bitcast=True)  # -0 becomes +0
        sign = key >> 31
        key = key ^ (sign & _MAGNITUDE)
        centre = tl.minimum(tl.maximum(key, tl.load(book + _HEADER)), tl.load(book + _HEADER + 1))
        place = key - centre + sign + (tl.load(book + _HEADER + 2) << _CODE_BITS)
        word = tl.load(book + _BINS + (place >> _CODE_BITS))
        found = (word + (place & 0xFFFF)) >> _CODE_BITS
    else:
        found = tl.zeros_like(bits) + tl.zeros(quotient.shape, tl.int32)
        for halving in range(8):
            ahead = found + (128 >> halving)
            midpoint = tl.load(book + _MIDPOINTS + ahead - 1).to(tl.float32, bitcast=True)
            found = tl.where(quotient > midpoint, ahead, found)
    return found.to(tl.uint8)


@triton.jit
def _decode(codes, scale, code):
    """float32 values of ``codes``, uint8."""
    return tl.load(code + codes.to(tl.int32)) * scale


# --- what is computed for one entry


@triton.jit
def _adam(p, g, m, v, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat):
    m = m * beta1 + g * one_minus_beta1
    v = v * beta2 + g * g * one_minus_beta2
    update = tl.div_rn(m, tl.sqrt_rn(v) + eps_hat)
    return p * decay - update * step_size, m, v


@triton.jit
def _momentum(p, g, m, lr, momentum, weight_decay):
    m = m * momentum + (g + p * weight_decay)
    return p - m * lr, m


@triton.jit
def _lion(p, g, m, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr):
    c = m * beta1 + g * one_minus_beta1
    sign = tl.where(c > 0, 1.0, tl.where(c < 0, -1.0, tl.where(c == 0, 0.0, c)))
    return p * decay - sign * lr, m * beta2 + g * one_minus_beta2


# --- tiles: a program holds whole blocks, a row each


@triton.jit
def _places(n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    at = rows[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    return rows, rows * BLOCK < n, at, at < n


@triton.jit
def _restore(codes, absmax, code, rows, exists, at, inside):
    scale = tl.load(absmax + rows, mask=exists, other=0.0)
    return _decode(tl.load(codes + at, mask=inside, other=0), scale[:, None], code)


@triton.jit
def _keep(value, codes, absmax, book, rows, exists, at, inside):
    value = tl.where(inside, value, 0.0)
    bits = tl.max(_magnitude(value), axis=1)
    tl.store(absmax + rows, bits.to(tl.float32, bitcast=True), mask=exists)
    tl.store(codes + at, _encode(value, bits[:, None], book), mask=inside)


@triton.jit
def quantize_tiles(x, codes, absmax, book, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Codes and scales of ``x``; a program for ROWS blocks."""
    rows, exists, at, inside = _places(n, ROWS, BLOCK)
    _keep(tl.load(x + at, mask=inside, other=0.0), codes, absmax, book, rows, exists, at, inside)


@triton.jit
def adam_tiles(
    p, g, m_codes, m_absmax, m_code, m_book, v_codes, v_absmax, v_code, v_book, n,
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """A step of AdamW; a program for ROWS blocks."""
    rows, exists, at, inside = _places(n, ROWS, BLOCK)
    m = _restore(m_codes, m_absmax, m_code, rows, exists, at, inside)
    v = _restore(v_codes, v_absmax, v_code, rows, exists, at, inside)
    old_p, d = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    new_p, m, v = _adam(
        old_p, d, m, v, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat
    )
    tl.store(p + at, new_p, mask=inside)
    _keep(m, m_codes, m_absmax, m_book, rows, exists, at, inside)
    _keep(v, v_codes, v_absmax, v_book, rows, exists, at, inside)


@triton.jit
def momentum_tiles(
    p, g, m_codes, m_absmax, m_code, m_book, n, lr, momentum, weight_decay, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    """A step of SGD with momentum; a program for ROWS blocks."""
    rows, exists, at, inside = _places(n, ROWS, BLOCK)
    m = _restore(m_codes, m_absmax, m_code, rows, exists, at, inside)
    old_p, d = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    new_p, m = _momentum(old_p, d, m, lr, momentum, weight_decay)
    tl.store(p + at, new_p, mask=inside)
    _keep(m, m_codes, m_absmax, m_book, rows, exists, at, inside)


@triton.jit
def lion_tiles(
    p, g, m_codes, m_absmax, m_code, m_book, n, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):
    """A step of Lion; a program for ROWS blocks."""
    rows, exists, at, inside = _places(n, ROWS, BLOCK)
    m = _restore(m_codes, m_absmax, m_code, rows, exists, at, inside)
    old_p, d = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    new_p, m = _lion(old_p, d, m, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr)
    tl.store(p + at, new_p, mask=inside)
    _keep(m, m_codes, m_absmax, m_book, rows, exists, at, inside)


# --- pieces: a program holds a part of one block. The first pass (FINISH False) finds the scales, the second computes
# again and writes.


@triton.jit
def _piece(n, block, each, PIECE: tl.constexpr):
    piece = tl.program_id(0).to(tl.int64)
    row = piece // each
    inside_block = (piece % each) * PIECE + tl.arange(0, PIECE)
    at = row * block + inside_block
    return row, at, (inside_block < block) & (at < n)


@triton.jit
def _pass(value, codes, fresh, book, at, inside, FINISH: tl.constexpr):
    if FINISH:
        bits = tl.load(fresh).to(tl.int32, bitcast=True)
        tl.store(codes + at, _encode(value, bits, book), mask=inside)
    else:
        largest = tl.max(tl.where(inside, _magnitude(value), 0), axis=0)
        tl.atomic_max(fresh.to(tl.pointer_type(tl.int32), bitcast=True), largest)


@triton.jit
def quantize_pieces(x, codes, absmax, book, n, block, each, PIECE: tl.constexpr, FINISH: tl.constexpr):
    """Scales (``absmax`` starts as 0), then codes of ``x``; a program for PIECE entries of a block."""
    row, at, inside = _piece(n, block, each, PIECE)
    _pass(tl.load(x + at, mask=inside, other=0.0), codes, absmax + row, book, at, inside, FINISH)


@triton.jit
def adam_pieces(
    p, g, m_codes, m_absmax, m_code, m_book, v_codes, v_absmax, v_code, v_book, fresh, n, block, each, blocks,
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat,
    PIECE: tl.constexpr, FINISH: tl.constexpr,
):
    """``fresh`` takes the scales of m, then those of v."""
    row, at, inside = _piece(n, block, each, PIECE)
    m = _decode(tl.load(m_codes + at, mask=inside, other=0), tl.load(m_absmax + row), m_code)
    v = _decode(tl.load(v_codes + at, mask=inside, other=0), tl.load(v_absmax + row), v_code)
    old_p, d = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    new_p, m, v = _adam(
        old_p, d, m, v, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat
    )
    if FINISH:
        tl.store(p + at, new_p, mask=inside)
    _pass(m, m_codes, fresh + row, m_book, at, inside, FINISH)
    _pass(v, v_codes, fresh + blocks + row, v_book, at, inside, FINISH)


@triton.jit
def momentum_pieces(
    p, g, m_codes, m_absmax, m_code, m_book, fresh, n, block, each, blocks, lr, momentum, weight_decay,
    PIECE: tl.constexpr, FINISH: tl.constexpr,
):
    """As :func:`adam_pieces`, with one state."""
    row, at, inside = _piece(n, block, each, PIECE)
    m = _decode(tl.load(m_codes + at, mask=inside, other=0), tl.load(m_absmax + row), m_code)
    old_p, d = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    new_p, m = _momentum(old_p, d, m, lr, momentum, weight_decay)
    if FINISH:
        tl.store(p + at, new_p, mask=inside)
    _pass(m, m_codes, fresh + row, m_book, at, inside, FINISH)


@triton.jit
def lion_pieces(
    p, g, m_codes, m_absmax, m_code, m_book, fresh, n, block, each, blocks,
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr, PIECE: tl.constexpr, FINISH: tl.constexpr,
):
    """As :func:`adam_pieces`, with one state."""
    row, at, inside = _piece(n, block, each, PIECE)
    m = _decode(tl.load(m_codes + at, mask=inside, other=0), tl.load(m_absmax + row), m_code)
    old_p, d = tl.load(p + at, mask=inside, other=0.0), tl.load(g + at, mask=inside, other=0.0)
    new_p, m = _lion(old_p, d, m, beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr)
    if FINISH:
        tl.store(p + at, new_p, mask=inside)
    _pass(m, m_codes, fresh + row, m_book, at, inside, FINISH)


@triton.jit
def dequantize_entries(codes, absmax, code, out, n, block, shift, SHIFTED: tl.constexpr, ENTRIES: tl.constexpr):
    """out = code[codes] * absmax; SHIFTED says that the block is 2^shift entries."""
    at = tl.program_id(0).to(tl.int64) * ENTRIES + tl.arange(0, ENTRIES)
    inside = at < n
    row = at >> shift if SHIFTED else at // block
    scale = tl.load(absmax + row, mask=inside, other=0.0)
    tl.store(out + at, _decode(tl.load(codes + at, mask=inside, other=0), scale, code), mask=inside)
