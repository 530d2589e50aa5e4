"""The Numba backend on CPUs, parallel over blocks: which kernel runs on how many threads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from reference.kernels.quantize import numba_kernels as kernels
from reference.kernels.quantize import numba_lanes
from reference.kernels.quantize.maps import lane_table, search_table
from reference.kernels.quantize.numba_kernels import Table
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

Array = np.ndarray
Tensor = torch.Tensor
State = tuple[Tensor, Tensor, Tensor]

# Below this many entries starting the threads costs more than they save.
PARALLEL_FROM = 2**16


def quantize(x: Tensor, code: Tensor, block: int, codes: Tensor, absmax: Tensor, keep_sign: bool = False) -> None:
    """Fill ``codes`` (uint8[N]) and ``absmax`` (float32[blocks]) from ``x`` (float32[N])."""
    table = _table(code)
    arguments = (x.numpy(), block, table, _keeps(keep_sign, table), codes.numpy(), absmax.numpy())
    _run(kernels.quantize_part, kernels.quantize_parallel, x.numel(), arguments)


def dequantize(codes: Tensor, absmax: Tensor, code: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` (float32[N]) with ``code[codes] * absmax``."""
    arguments = (codes.numpy(), absmax.numpy(), _table(code), block, out.numpy())
    _run(kernels.dequantize_part, kernels.dequantize_parallel, out.numel(), arguments)


def adam(p: Tensor, g: Tensor, m_state: State, v_state: State, block: int, settings: AdamSettings) -> None:
    """One AdamW step on flat ``p``; a state is (codes, absmax, map) and is rewritten in place."""
    names = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "step_size", "eps_hat")
    arguments = (*_arrays(m_state), *_arrays(v_state), block, _scalars(settings, names))
    _step(kernels.adam_part, kernels.adam_parallel, p, g, m_state, arguments, settings.keep_sign)


def momentum(p: Tensor, g: Tensor, m_state: State, block: int, settings: MomentumSettings) -> None:
    """One step of SGD with momentum on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    arguments = (*_arrays(m_state), block, _scalars(settings, ("lr", "momentum", "weight_decay")))
    _step(kernels.momentum_part, kernels.momentum_parallel, p, g, m_state, arguments, settings.keep_sign)


def lion(p: Tensor, g: Tensor, m_state: State, block: int, settings: LionSettings) -> None:
    """One step of Lion on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    names = ("beta1", "one_minus_beta1", "beta2", "one_minus_beta2", "decay", "lr")
    arguments = (*_arrays(m_state), block, _scalars(settings, names))
    _step(kernels.lion_part, kernels.lion_parallel, p, g, m_state, arguments, settings.keep_sign)


def _step(
    part: Any, parallel: Any, p: Tensor, g: Tensor, m_state: State, arguments: tuple[Any, ...], keep_sign: bool
) -> None:
    _run(part, parallel, p.numel(), (p.numpy(), g.numpy(), *arguments, _keeps(keep_sign, _table(m_state[2]))))


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


@lru_cache(maxsize=32)
def _scalars(settings: Any, names: tuple[str, ...]) -> tuple[np.float32, ...]:
    return tuple(np.float32(getattr(settings, name)) for name in names)


def _arrays(state: State) -> tuple[Array, Array, Table]:
    return state[0].numpy(), state[1].numpy(), _table(state[2])


def _keeps(keep_sign: bool, table: Table) -> bool:
    """Whether there is a code below 0 that a lost negative entry can take."""
    return keep_sign and table.zero > 0 and bool(table.code[table.zero] == 0)


def _table(code: Tensor) -> Table:
    return _cached_table(code, code._version, can_go_wide())


@lru_cache(maxsize=32)
def _cached_table(code: Tensor, version: int, wide: bool) -> Table:
    search, lanes = search_table(code), lane_table(code) if wide else None
    zero = int(np.searchsorted(search.midpoints[:-1], np.float32(0)))
    data, masks = (np.empty(1, np.uint8), (0, 0)) if lanes is None else (lanes.data, (lanes.magnitude, lanes.signs))
    return Table(code.numpy(), search.base, search.midpoints, data, search.steps, zero, *masks, lanes is not None)


@lru_cache(maxsize=1)
def can_go_wide() -> bool:
    """Whether the kernels are compiled for a CPU that looks bytes up in whole registers."""
    features = config.CPU_FEATURES if config.CPU_FEATURES is not None else get_host_cpu_features()
    return all(f"+{name}" in features.split(",") for name in numba_lanes.NEEDS)
