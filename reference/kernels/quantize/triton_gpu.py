"""Block-wise quantisation and the fused 8-bit optimizer steps in Triton.

Codes and scales equal the eager backend's bit for bit. Blocks of 64, 128, ... 4096 entries, and one block of any size
up to 4096, take one pass over memory; other blocks take two, in pieces.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from reference.kernels.quantize import gpu_book, triton_kernels
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

Tensor = torch.Tensor
State = tuple[Tensor, Tensor, Tensor]

BLOCKS = tuple(2**exponent for exponent in range(6, 13))
TILE, TILE_WARPS = 2048, 8  # entries of a program, where a block is not larger
PIECES = (256, 4096)
DEQUANTIZED, DEQUANTIZE_WARPS = 4096, 8  # entries of a program
# Products and sums are rounded one by one. Given its own choice, ptxas spills registers to have more threads at once.
OPTIONS = {"enable_fp_fusion": False, "maxnreg": 128}
ONE_BLOCK = 62  # shifts every index to 0

_ADAM = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "step_size", "eps_hat")
_LION = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "lr")
_MOMENTUM = ("lr", "momentum", "weight_decay")


@dataclass(frozen=True)
class Plan:
    """``rows`` blocks of ``block`` entries a program in one pass; with ``rows`` 0, pieces of ``block`` in two."""

    rows: int
    block: int
    grid: int
    warps: int


@lru_cache(maxsize=1024)
def plan(n: int, block: int) -> Plan:
    """The launch on ``n`` >= 1 entries in blocks of ``block`` >= 1."""
    if block >= n:  # one block, which may as well be a ragged one of the next size
        block = max(BLOCKS[0], 1 << (n - 1).bit_length())
    if block in BLOCKS:
        rows = max(1, TILE // block)
        return Plan(rows, block, -(-n // (rows * block)), TILE_WARPS)
    piece = PIECES[0] if block <= PIECES[0] else PIECES[1]
    pieces = -(-n // block) * -(-min(block, n) // piece)
    return Plan(0, piece, pieces, piece // 256)


def quantize(x: Tensor, code: Tensor, block: int, codes: Tensor, absmax: Tensor, keep_sign: bool = False) -> None:
    """Fill ``codes`` (uint8[N]) and ``absmax`` (float32[blocks]) from ``x`` (float32[N])."""
    chosen, state = plan(x.numel(), block), (codes, absmax, gpu_book.on_device(code, keep_sign))
    with _current(x):
        if chosen.rows:
            _launch(triton_kernels.quantize_tiles, chosen, x, *state, x.numel(), ROWS=chosen.rows, BLOCK=chosen.block)
            return
        absmax.zero_()
        for finish in (False, True):
            _launch(
                triton_kernels.quantize_pieces, chosen, x, *state, x.numel(), block, _each(x.numel(), block, chosen),
                PIECE=chosen.block, FINISH=finish,
            )


def dequantize(codes: Tensor, absmax: Tensor, code: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` (float32[N]) with ``code[codes] * absmax``."""
    n, shift = out.numel(), block.bit_length() - 1
    shift = ONE_BLOCK if block >= n else shift
    with _current(out):
        triton_kernels.dequantize_entries[(-(-n // DEQUANTIZED),)](
            codes, absmax, code, out, n, block, shift, SHIFTED=block >= n or block == 1 << shift, ENTRIES=DEQUANTIZED,
            num_warps=DEQUANTIZE_WARPS, **OPTIONS,
        )


def adam(p: Tensor, g: Tensor, m_state: State, v_state: State, block: int, settings: AdamSettings) -> None:
    """One AdamW step on flat ``p``; a state is (codes, absmax, map) and is rewritten in place."""
    kernels = triton_kernels.adam_tiles, triton_kernels.adam_pieces
    _step(kernels, p, g, ((m_state, settings.keep_sign), (v_state, False)), block, _scalars(settings, _ADAM))


def momentum(p: Tensor, g: Tensor, m_state: State, block: int, settings: MomentumSettings) -> None:
    """One step of SGD with momentum on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    kernels = triton_kernels.momentum_tiles, triton_kernels.momentum_pieces
    _step(kernels, p, g, ((m_state, settings.keep_sign),), block, _scalars(settings, _MOMENTUM))


def lion(p: Tensor, g: Tensor, m_state: State, block: int, settings: LionSettings) -> None:
    """One step of Lion on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    kernels = triton_kernels.lion_tiles, triton_kernels.lion_pieces
    _step(kernels, p, g, ((m_state, settings.keep_sign),), block, _scalars(settings, _LION))


def _step(kernels: tuple[Any, Any], p: Tensor, g: Tensor, states: tuple[tuple[State, bool], ...], block: int,
          scalars: tuple[float, ...]) -> None:
    """``kernels`` for tiles and for pieces; ``states`` with their keep_sign."""
    n, chosen = p.numel(), plan(p.numel(), block)
    held = [item for state, keep_sign in states for item in (*state, gpu_book.on_device(state[2], keep_sign))]
    with _current(p):
        if chosen.rows:
            _launch(kernels[0], chosen, p, g, *held, n, *scalars, ROWS=chosen.rows, BLOCK=chosen.block)
            return
        # The old scales are needed until the second pass has ended.
        absmaxes = [state[1] for state, _ in states]
        blocks = absmaxes[0].numel()
        fresh = torch.zeros(len(states) * blocks, dtype=torch.float32, device=p.device)
        for finish in (False, True):
            _launch(
                kernels[1], chosen, p, g, *held, fresh, n, block, _each(n, block, chosen), blocks, *scalars,
                PIECE=chosen.block, FINISH=finish,
            )
        for absmax, scales in zip(absmaxes, fresh.view(len(states), blocks), strict=True):
            absmax.copy_(scales)


def _launch(kernel: Any, chosen: Plan, *arguments: Any, **constants: Any) -> None:
    kernel[(chosen.grid,)](*arguments, **constants, num_warps=chosen.warps, **OPTIONS)


def _each(n: int, block: int, chosen: Plan) -> int:
    """Pieces of a block."""
    return -(-min(block, n) // chosen.block)


def _scalars(settings: object, names: tuple[str, ...]) -> tuple[float, ...]:
    return tuple(getattr(settings, name) for name in names)


def _current(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
