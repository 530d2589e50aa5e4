"""Numba fast path of VQ-Logits on CPUs: code logits scattered to all words, a read of the map and a write each."""

from __future__ import annotations

import numpy as np
from numba import prange

from reference.kernels.jit import kernel

_UINT16_CODES = 2**16


def compact_map(code_of: np.ndarray, count: int) -> np.ndarray:
    """The map in the smallest type that the kernel reads: uint16 up to 65536 codes, int32 beyond."""
    return np.ascontiguousarray(code_of, dtype=np.uint16 if count <= _UINT16_CODES else np.int32)


def scatter(code_logits: np.ndarray, code_of: np.ndarray, out: np.ndarray, threads: int = 1) -> None:
    """out[b, i] = code_logits[b, code_of[i]] for float32 [rows, K] and [rows, V]; codes must lie below K.

    With several threads, whole rows are shared among them, or pieces of the rows where these are fewer.
    """
    if threads == 1:
        _scatter(code_logits, code_of, out)
    else:
        _scatter_parallel(code_logits, code_of, out, threads)


@kernel(boundscheck=False)
def _scatter(code_logits: np.ndarray, code_of: np.ndarray, out: np.ndarray) -> None:
    for b in range(out.shape[0]):
        row, written = code_logits[b], out[b]
        for i in range(code_of.shape[0]):
            written[i] = row[code_of[i]]


@kernel(boundscheck=False, parallel=True)
def _scatter_parallel(code_logits: np.ndarray, code_of: np.ndarray, out: np.ndarray, threads: int) -> None:
    rows, words = out.shape
    pieces = 1 if rows >= threads else threads
    for part in prange(rows * pieces):
        row, written = code_logits[part // pieces], out[part // pieces]
        piece = part % pieces
        for i in range(words * piece // pieces, words * (piece + 1) // pieces):
            written[i] = row[code_of[i]]
