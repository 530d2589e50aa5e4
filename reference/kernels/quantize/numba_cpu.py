"""Block-wise quantisation and the fused 8-bit optimizer steps on the CPU, parallel over blocks.

One pass over the blocks: a block's states are dequantised into scratch, updated, used for the parameters and
requantised while they are still in the nearest cache. No fast-math: codes and scales equal the eager backend's.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba import njit, prange

from reference.kernels.quantize.maps import LOWEST_KEY, MANTISSA_SHIFT, search_table
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

Array = np.ndarray
Tensor = torch.Tensor
State = tuple[Tensor, Tensor, Tensor]

# Below this many entries starting the threads costs more than they save.
PARALLEL_FROM = 2**16

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITE = np.int32(0x7F800000)


@njit(inline="always")
def _scale(bits, n, absmax_bits, b):
    """Store max |x| of a block; False where it is 0, infinite or NaN.

    It is found on the bit patterns: magnitudes order as integers do, and a NaN comes out on top.
    """
    largest = np.int32(0)
    for i in range(n):
        largest = max(largest, bits[i] & _MAGNITUDE)
    absmax_bits[b] = largest
    return 0 < largest < _INFINITE


@njit(inline="always")
def _encode(x, bits, n, table, keep_sign, codes, absmax, b):
    """Requantise the block held in scratch ``x`` (``bits`` is the same memory as int32); ``x`` is used up."""
    code, base, midpoints, steps, zero, shift, lowest = table
    if not _scale(bits, n, absmax.view(np.int32), b):
        codes[:n] = zero
        return
    x_max = absmax[b]
    for i in range(n):
        x[i] = x[i] / x_max
    bins = base.size // 2
    for i in range(n):
        place = max(((bits[i] & _MAGNITUDE) >> shift) - lowest + 1, 0)
        if bits[i] < 0:
            place += bins
        found = np.intp(base[place])
        for _ in range(steps):
            found += x[i] > midpoints[found]
        if keep_sign and x[i] < 0 and code[found] == 0:
            found -= 1
        codes[i] = found


@njit(inline="always")
def _decode(codes, n, scale, code, out):
    for i in range(n):
        out[i] = code[codes[i]] * scale


@njit(nogil=True, cache=True)
def _quantize_part(part, parts, x, block, table, keep_sign, codes, absmax):
    blocks = absmax.size
    scratch = np.empty(min(block, x.size), np.float32)
    bits = scratch.view(np.int32)
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low, high = b * block, min((b + 1) * block, x.size)
        scratch[: high - low] = x[low:high]
        _encode(scratch, bits, high - low, table, keep_sign, codes[low:high], absmax, b)


@njit(nogil=True, cache=True)
def _dequantize_part(part, parts, codes, absmax, code, block, out):
    blocks = absmax.size
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low, high = b * block, min((b + 1) * block, out.size)
        _decode(codes[low:high], high - low, absmax[b], code, out[low:high])


@njit(nogil=True, cache=True)
def _adam_part(part, parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign):
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, step_size, eps_hat = scalars
    blocks = m_absmax.size
    m, v = np.empty(min(block, p.size), np.float32), np.empty(min(block, p.size), np.float32)
    m_bits, v_bits = m.view(np.int32), v.view(np.int32)
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low, high = b * block, min((b + 1) * block, p.size)
        n, p_block, g_block = high - low, p[low:high], g[low:high]
        _decode(m_codes[low:high], n, m_absmax[b], m_table[0], m)
        _decode(v_codes[low:high], n, v_absmax[b], v_table[0], v)
        for i in range(n):
            m[i] = m[i] * beta1 + g_block[i] * one_minus_beta1
        for i in range(n):
            v[i] = v[i] * beta2 + g_block[i] * g_block[i] * one_minus_beta2
        for i in range(n):
            p_block[i] = p_block[i] * decay - m[i] / (math.sqrt(v[i]) + eps_hat) * step_size
        _encode(m, m_bits, n, m_table, keep_sign, m_codes[low:high], m_absmax, b)
        _encode(v, v_bits, n, v_table, False, v_codes[low:high], v_absmax, b)


@njit(nogil=True, cache=True)
def _momentum_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    lr, momentum, weight_decay = scalars
    blocks = m_absmax.size
    m = np.empty(min(block, p.size), np.float32)
    bits = m.view(np.int32)
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low, high = b * block, min((b + 1) * block, p.size)
        n, p_block, g_block = high - low, p[low:high], g[low:high]
        _decode(m_codes[low:high], n, m_absmax[b], m_table[0], m)
        for i in range(n):
            m[i] = m[i] * momentum + (g_block[i] + p_block[i] * weight_decay)
        for i in range(n):
            p_block[i] = p_block[i] - m[i] * lr
        _encode(m, bits, n, m_table, keep_sign, m_codes[low:high], m_absmax, b)


@njit(nogil=True, cache=True)
def _lion_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    beta1, one_minus_beta1, beta2, one_minus_beta2, decay, lr = scalars
    blocks = m_absmax.size
    m = np.empty(min(block, p.size), np.float32)
    bits = m.view(np.int32)
    for b in range(blocks * part // parts, blocks * (part + 1) // parts):
        low, high = b * block, min((b + 1) * block, p.size)
        n, p_block, g_block = high - low, p[low:high], g[low:high]
        _decode(m_codes[low:high], n, m_absmax[b], m_table[0], m)
        for i in range(n):
            c = m[i] * beta1 + g_block[i] * one_minus_beta1
            sign = np.float32(1) if c > 0 else (np.float32(-1) if c < 0 else c)
            p_block[i] = p_block[i] * decay - sign * lr
            m[i] = m[i] * beta2 + g_block[i] * one_minus_beta2
        _encode(m, bits, n, m_table, keep_sign, m_codes[low:high], m_absmax, b)


@njit(parallel=True, nogil=True, cache=True)
def _quantize_parallel(parts, x, block, table, keep_sign, codes, absmax):
    for part in prange(parts):
        _quantize_part(part, parts, x, block, table, keep_sign, codes, absmax)


@njit(parallel=True, nogil=True, cache=True)
def _dequantize_parallel(parts, codes, absmax, code, block, out):
    for part in prange(parts):
        _dequantize_part(part, parts, codes, absmax, code, block, out)


@njit(parallel=True, nogil=True, cache=True)
def _adam_parallel(parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign):
    for part in prange(parts):
        _adam_part(part, parts, p, g, m_codes, m_absmax, m_table, v_codes, v_absmax, v_table, block, scalars, keep_sign)


@njit(parallel=True, nogil=True, cache=True)
def _momentum_parallel(parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    for part in prange(parts):
        _momentum_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign)


@njit(parallel=True, nogil=True, cache=True)
def _lion_parallel(parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign):
    for part in prange(parts):
        _lion_part(part, parts, p, g, m_codes, m_absmax, m_table, block, scalars, keep_sign)


def quantize(x: Tensor, code: Tensor, block: int, codes: Tensor, absmax: Tensor, keep_sign: bool = False) -> None:
    """Fill ``codes`` (uint8[N]) and ``absmax`` (float32[blocks]) from ``x`` (float32[N])."""
    arguments = (x.numpy(), block, _kernel_table(code), keep_sign, codes.numpy(), absmax.numpy())
    _run(_quantize_part, _quantize_parallel, x.numel(), arguments)


def dequantize(codes: Tensor, absmax: Tensor, code: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` (float32[N]) with ``code[codes] * absmax``."""
    arguments = (codes.numpy(), absmax.numpy(), code.numpy(), block, out.numpy())
    _run(_dequantize_part, _dequantize_parallel, out.numel(), arguments)


def adam(p: Tensor, g: Tensor, m_state: State, v_state: State, block: int, settings: AdamSettings) -> None:
    """One AdamW step on flat ``p``; a state is (codes, absmax, map) and is rewritten in place."""
    names = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "step_size", "eps_hat")
    scalars = tuple(np.float32(getattr(settings, name)) for name in names)
    arguments = (p.numpy(), g.numpy(), *_arrays(m_state), *_arrays(v_state), block, scalars, settings.keep_sign)
    _run(_adam_part, _adam_parallel, p.numel(), arguments)


def momentum(p: Tensor, g: Tensor, m_state: State, block: int, settings: MomentumSettings) -> None:
    """One step of SGD with momentum on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    scalars = tuple(np.float32(value) for value in (settings.lr, settings.momentum, settings.weight_decay))
    arguments = (p.numpy(), g.numpy(), *_arrays(m_state), block, scalars, settings.keep_sign)
    _run(_momentum_part, _momentum_parallel, p.numel(), arguments)


def lion(p: Tensor, g: Tensor, m_state: State, block: int, settings: LionSettings) -> None:
    """One step of Lion on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    names = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "lr")
    scalars = tuple(np.float32(getattr(settings, name)) for name in names)
    arguments = (p.numpy(), g.numpy(), *_arrays(m_state), block, scalars, settings.keep_sign)
    _run(_lion_part, _lion_parallel, p.numel(), arguments)


def _run(part: Any, parallel: Any, n: int, arguments: tuple[Any, ...]) -> None:
    """Use as many threads as torch does, for tensors that are worth it."""
    threads = torch.get_num_threads()
    if threads == 1 or n < PARALLEL_FROM:
        part(0, 1, *arguments)
        return
    parallel(threads, *arguments)
    # Numba resets OpenMP's thread count for the whole process when its threads first start.
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def _arrays(state: State) -> tuple[Array, Array, tuple[Any, ...]]:
    return state[0].numpy(), state[1].numpy(), _kernel_table(state[2])


def _kernel_table(code: Tensor) -> tuple[Any, ...]:
    return _cached_table(code, code._version)


@lru_cache(maxsize=32)
def _cached_table(code: Tensor, version: int) -> tuple[Any, ...]:
    table = search_table(code)
    zero = int(np.searchsorted(table.midpoints[:-1], np.float32(0), side="left"))
    return code.numpy(), table.base, table.midpoints, table.steps, zero, MANTISSA_SHIFT, LOWEST_KEY
