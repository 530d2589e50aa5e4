"""Block-wise quantisation and the fused 8-bit optimizer steps by the kernels of ``quantize.cu``.

Codes, scales and parameters are those of IEEE operations in the eager backend's order. Blocks of 64, 128, ... 4096
entries, and one block of any size up to 4096, take one pass over memory; other blocks, and memory that is not aligned,
take two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from reference.kernels import driver, target
from reference.kernels.quantize import gpu_book
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

Tensor = torch.Tensor
State = tuple[Tensor, Tensor, Tensor]

SOURCE = Path(__file__).with_name("quantize.cu")
BLOCKS = tuple(2**exponent for exponent in range(6, 13))
# As in quantize.cu: threads of a CUDA block, the entries of a tile that each of them holds, the entries of a piece.
TILE_THREADS, PIECE_THREADS, PIECE = 512, 256, 4096
ENTRIES = {"quantize": 16, "dequantize": 16, "adam": 8, "momentum": 8, "lion": 8}
STATES = {"quantize": 0, "dequantize": 0, "adam": 2, "momentum": 1, "lion": 1}
# So many CUDA blocks run at once on a multiprocessor; more would only read the books again.
TILES_AT_ONCE = {"quantize": 2, "dequantize": 4, "adam": 2, "momentum": 2, "lion": 2}
PIECES_AT_ONCE = 4
ONE_BLOCK = 62  # shifts every index to 0

_ADAM = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "step_size", "eps_hat")
_LION = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "lr")
_MOMENTUM = ("lr", "momentum", "weight_decay")


@dataclass(frozen=True)
class Plan:
    """How one call is launched: ``tiled`` in one pass, else in pieces; CUDA blocks and threads of each.

    ``shift`` is log2 of the threads that hold a block of a tile; to dequantise, log2 of the block's entries.
    """

    tiled: bool
    grid: int
    threads: int
    shift: int


@lru_cache(maxsize=1024)
def plan(op: str, n: int, block: int, aligned: bool, multiprocessors: int) -> Plan:
    """The launch of ``op`` (a key of ``ENTRIES``) on ``n`` >= 1 entries in blocks of ``block`` >= 1.

    ``aligned`` says that float32 tensors begin at multiples of 16 bytes and codes at multiples of 4.
    """
    if block >= n:  # one block, which may as well be a ragged one of the next size
        block = max(BLOCKS[0], 1 << (n - 1).bit_length())
    exponent = block.bit_length() - 1
    if op == "dequantize":
        tiled, shift = block == 1 << exponent and block >= 4, ONE_BLOCK if block >= n else exponent
    else:
        tiled, shift = block in BLOCKS, exponent - (ENTRIES[op].bit_length() - 1)
    if tiled and aligned:
        tiles = -(-n // (TILE_THREADS * ENTRIES[op]))
        return Plan(True, min(tiles, TILES_AT_ONCE[op] * multiprocessors), TILE_THREADS, shift)
    pieces = -(-n // block) * -(-min(block, n) // PIECE)
    warps = PIECE_THREADS // 32
    return Plan(False, min(-(-pieces // warps), PIECES_AT_ONCE * multiprocessors), PIECE_THREADS, 0)


def quantize(x: Tensor, code: Tensor, block: int, codes: Tensor, absmax: Tensor, keep_sign: bool = False) -> None:
    """Fill ``codes`` (uint8[N]) and ``absmax`` (float32[blocks]) from ``x`` (float32[N])."""
    _step("quantize", (x,), ((codes, absmax, gpu_book.on_device(code, keep_sign)),), block, ())


def dequantize(codes: Tensor, absmax: Tensor, code: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` (float32[N]) with ``code[codes] * absmax``."""
    n = out.numel()
    chosen = plan("dequantize", n, block, _aligned((out,), (codes,)), target.width(out.device).multiprocessors)
    name, last = ("quads", np.int32(chosen.shift)) if chosen.tiled else ("pieces", np.int64(block))
    arguments = (codes, absmax, code, out, np.int64(n), last)
    driver.kernel(SOURCE, f"dequantize_{name}", out.device).launch(chosen.grid, chosen.threads, arguments)


def adam(p: Tensor, g: Tensor, m_state: State, v_state: State, block: int, settings: AdamSettings) -> None:
    """One AdamW step on flat ``p``; a state is (codes, absmax, map) and is rewritten in place."""
    states = (_with_book(m_state, settings.keep_sign), _with_book(v_state, False))
    _step("adam", (p, g), states, block, _scalars(settings, _ADAM))


def momentum(p: Tensor, g: Tensor, m_state: State, block: int, settings: MomentumSettings) -> None:
    """One step of SGD with momentum on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    _step("momentum", (p, g), (_with_book(m_state, settings.keep_sign),), block, _scalars(settings, _MOMENTUM))


def lion(p: Tensor, g: Tensor, m_state: State, block: int, settings: LionSettings) -> None:
    """One step of Lion on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    _step("lion", (p, g), (_with_book(m_state, settings.keep_sign),), block, _scalars(settings, _LION))


def _step(op: str, tensors: tuple[Tensor, ...], states: tuple[State, ...], block: int,
          scalars: tuple[np.float32, ...]) -> None:
    """Launch ``op``; a state is (codes, absmax, book)."""
    device, n = tensors[0].device, tensors[0].numel()
    aligned = _aligned(tensors, [state[0] for state in states])
    chosen = plan(op, n, block, aligned, target.width(device).multiprocessors)
    held = [item for state in states for item in (*state, np.int32(state[2].numel() // 4))]
    shared_bytes = sum(4 * state[2].numel() for state in states)
    if chosen.tiled:
        arguments = (*tensors, *held, np.int64(n), np.int32(chosen.shift), *scalars)
        driver.kernel(SOURCE, f"{op}_tiles", device).launch(chosen.grid, chosen.threads, arguments, shared_bytes)
        return
    # The old scales are needed until the second pass has ended; where there are none, the new ones take their place.
    scales = _fresh_scales(states, device) if op != "quantize" else states[0][1].zero_()
    arguments = (*tensors, *held, scales, np.int64(n), np.int64(block), *scalars)
    for stage in ("largest", "finish"):
        driver.kernel(SOURCE, f"{op}_{stage}", device).launch(chosen.grid, chosen.threads, arguments, shared_bytes)
    if op != "quantize":
        for state, fresh in zip(states, scales.view(len(states), -1), strict=True):
            state[1].copy_(fresh)


def workspace_bytes(op: str, n: int, block: int, aligned: bool = True) -> int:
    """Device memory for new scales, where the old ones are needed until the end; kept for later calls of the stream."""
    states = STATES[op]
    if not states or plan(op, n, block, aligned, 1).tiled:
        return 0
    return states * -(-n // block) * 4


def _fresh_scales(states: Sequence[State], device: torch.device) -> Tensor:
    entries = len(states) * states[0][1].numel()
    return target.workspace(device, 4 * entries)[: 4 * entries].view(torch.float32).zero_()


def _with_book(state: State, keep_sign: bool) -> State:
    codes, absmax, code = state
    return codes, absmax, gpu_book.on_device(code, keep_sign)


def _scalars(settings: object, names: tuple[str, ...]) -> tuple[np.float32, ...]:
    return tuple(np.float32(getattr(settings, name)) for name in names)


def _aligned(floats: Sequence[Tensor], codes: Sequence[Tensor]) -> bool:
    addresses = [tensor.data_ptr() for tensor in floats] + [4 * tensor.data_ptr() for tensor in codes]
    return all(address % 16 == 0 for address in addresses)

