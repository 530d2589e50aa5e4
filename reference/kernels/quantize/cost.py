"""Cost models: the bytes that must move and the FLOPs that must be done for one call."""

from __future__ import annotations

FP32 = 4
CODE = 1
PIECE = 4096
_PIECES = {"quantize": 1, "dequantize": 0, "adam": 3, "momentum": 2, "lion": 2}


def adam_fp32_bytes(n: int) -> int:
    """28 bytes a parameter: read p, g, m, v; write p, m, v."""
    return 7 * FP32 * n


def adam8bit_bytes(n: int, block: int) -> float:
    """16 + 16/block bytes a parameter: read p, g and both codes, write p and both codes; both scales both ways."""
    return (3 * FP32 + 4 * CODE + 4 * FP32 / block) * n


def momentum_fp32_bytes(n: int) -> int:
    """20 bytes a parameter: read p, g, m; write p, m."""
    return 5 * FP32 * n


def momentum8bit_bytes(n: int, block: int) -> float:
    """14 + 8/block bytes a parameter."""
    return (3 * FP32 + 2 * CODE + 2 * FP32 / block) * n


def lion_fp32_bytes(n: int) -> int:
    """20 bytes a parameter, as momentum."""
    return momentum_fp32_bytes(n)


def lion8bit_bytes(n: int, block: int) -> float:
    """14 + 8/block bytes a parameter, as momentum."""
    return momentum8bit_bytes(n, block)


def quantize_bytes(n: int, block: int) -> float:
    """5 + 4/block bytes an entry: read x, write the code and the block's scale. Dequantising moves as many."""
    return (FP32 + CODE + FP32 / block) * n


def adam_flops(n: int) -> int:
    """12 a parameter: 3 for m, 4 for v, 5 for p (root, sum, division, and a multiply-subtract counted as two)."""
    return 12 * n


def adam8bit_flops(n: int) -> int:
    """The step's, a product each to dequantise and a division each to requantise; comparisons are not counted."""
    return adam_flops(n) + 4 * n


def lion_flops(n: int) -> int:
    """9 a parameter: 3 for the direction, 3 for m, 3 for p; the sign is not counted."""
    return 9 * n


def lion8bit_flops(n: int) -> int:
    """The step's, a product to dequantise and a division to requantise."""
    return lion_flops(n) + 2 * n


def workspace_bytes(op: str, threads: int = 1) -> int:
    """What the Numba backend takes for ``op`` whatever the size: pieces of 4096 float32 in the frames of each thread.

    The eager backend allocates several whole tensors; ``cuda_gpu.workspace_bytes`` says what CUDA takes.
    """
    return _PIECES[op] * PIECE * FP32 * threads


def adam_state_bytes(n: int, block: int | None) -> float:
    """Optimizer state: 8 bytes a parameter in float32 (``block`` None), else 2 + 8/block."""
    return 2.0 * FP32 * n if block is None else (2 * CODE + 2 * FP32 / block) * n
