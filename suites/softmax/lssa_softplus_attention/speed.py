"""The speed experiment: one forward pass of causal attention, both stages against softmax."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.declare.suite import Arm, Problem
from reference.methods.softmax.lssa_softplus_attention import Rows, lssar_rows, softmax_rows
from reference.methods.softmax.lssa_softplus_attention_numba import lssar_attention

WIDTH = 64
# operations for a weight: softplus, sums, power 15 by squaring and two divisions; exp, sum and a division
PER_WEIGHT = {"lssar": 40.0, "softmax": 10.0}

Found = tuple[np.ndarray, str]


def error_of(found: Found, truth: dict[str, np.ndarray]) -> float:
    """The largest error over the largest entry."""
    output, which = found
    return float(np.abs(output - truth[which]).max() / np.abs(truth[which]).max())


def forward_problem(length: int, heads: int) -> Problem:
    """Queries, keys and values N(0, 1), float32 [heads, length, 64]."""
    size = 4.0 * heads * length * WIDTH

    def draw(rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (torch.from_numpy(rng.standard_normal((heads, length, WIDTH), dtype=np.float32)) for _ in range(3))
        return q, k, v

    def truth(q: Tensor, k: Tensor, v: Tensor) -> dict[str, np.ndarray]:
        exact = [part.double() for part in (q, k, v)]
        return {name: (rows(exact[0], exact[1]) @ exact[2]).numpy()
                for name, rows in (("lssar", lssar_rows), ("softmax", softmax_rows))}

    def arm(which: str, run: Callable[[Tensor, Tensor, Tensor], Tensor], weights_moved: float) -> Arm:
        pairs = heads * length * (length + 1) / 2
        return Arm(lambda q, k, v: (run(q, k, v).numpy(), which),
                   bytes_moved=4 * size + 4.0 * weights_moved * heads * length**2,
                   flops=pairs * (4 * WIDTH + PER_WEIGHT[which]))

    def eager(rows: Rows) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda q, k, v: rows(q, k) @ v

    def compiled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        lssar_attention(q.numpy(), k.numpy(), v.numpy(), out.numpy())
        return out

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True)[0]

    return Problem(
        inputs=draw,
        buffers=lambda *_: (),
        truth=truth,
        error=error_of,
        arms={
            "lssar_numba": arm("lssar", compiled, 0.0),  # its tile of weights stays in cache
            "lssar_eager": arm("lssar", eager(lssar_rows), 18.0),  # each step reads and writes the whole matrix
            "softmax_eager": arm("softmax", eager(softmax_rows), 8.0),
            "softmax_torch": arm("softmax", fused, 0.0),
        },
        input_bytes=int(3 * size),
        tolerance=1e-3,
    )
