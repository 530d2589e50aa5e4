"""Cost models of the formats: bytes that must move, FLOPs, and what a call allocates beyond its results.

``item`` is the input's (or output's) bytes an entry: 4 for float32, 2 for the half types. Comparisons and conversions
count as no FLOP.
"""

from __future__ import annotations

FP32 = 4
NF4_BITS = 4
# The Numba kernels hold a piece of codes before they are packed.
SCRATCH = 4096


def nf4_bytes(n: int, block: int, item: int = FP32) -> float:
    """4.5 + 4/block bytes an entry in float32: x, half a byte of code, a scale a block. The same to dequantise."""
    return (item + NF4_BITS / 8 + FP32 / block) * n


def nf4_bits(block: int) -> float:
    """Bits an entry takes at rest: 4 + 32/block, 4.5 for blocks of 64."""
    return NF4_BITS + 8 * FP32 / block


def nf4_flops(n: int, block: int) -> float:
    """The product with 1/N_b, and that division once a block. Dequantising is one product."""
    return n + n / block


def uniform_bytes(n: int, bits: int, scales: int, symmetric: bool = True, item: int = FP32, passes: int = 1) -> float:
    """x, the codes, and scales of 4 bytes (5 with zero point).

    ``passes`` over x: 1 for groups, whose range is found in cache; 2 where a scale spans more than the cache.
    """
    return passes * item * n + code_bytes(n, bits) + scales * (FP32 + (not symmetric))


def uniform_bits(bits: int, group: int, symmetric: bool = True) -> float:
    """Bits an entry takes at rest: 4.25 for 4 bits in symmetric groups of 128."""
    return 8 * code_bytes(8, bits) / 8 + 8 * (FP32 + (not symmetric)) / group


def uniform_flops(n: int, scales: int, symmetric: bool = True) -> float:
    """A product and a rounding an entry (and the zero point's sum), two divisions a scale (three)."""
    return (2 + (not symmetric)) * n + (2 + (not symmetric)) * scales


def log_bytes(n: int, bits: int = 8, item: int = FP32) -> float:
    """x and the codes: 5 bytes an entry in float32, 4.5 where 4-bit codes are packed. No FLOPs, only comparisons."""
    return item * n + code_bytes(n, bits)


def ternary_bytes(n: int, item: int = FP32, passes: int = 1) -> float:
    """x and two bits an entry; the default threshold takes one more pass over x."""
    return passes * item * n + 2 * code_bytes(n, 1)


def ternary_flops(n: int) -> int:
    """A sum an entry, for the mean of what is kept."""
    return n


def code_bytes(n: int, bits: int) -> int:
    """Bytes of ``n`` codes: packed for 1, 2 and 4 bits, else a byte each."""
    return -(-n * bits // 8) if bits in {1, 2, 4} else n


def workspace_bytes(threads: int = 1, shared_scales: int = 0) -> int:
    """What a call of the Numba backend allocates at most, and frees.

    A thread has room for ``SCRATCH`` float32; where several threads look for the range of ``shared_scales`` scales, per
    tensor or channel, each keeps two numbers a scale. The eager backend allocates whole tensors, Triton and CUDA a few
    bytes a program for ternary sums, and nothing else.
    """
    return threads * FP32 * (SCRATCH + 2 * shared_scales)
