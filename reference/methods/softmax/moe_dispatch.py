"""Four ways to send tokens to their experts, with equal results as long as nothing is dropped.

y_n = sum over the k chosen experts e of gate_ne down_e(GELU(up_e(x_n))). B tokens, E experts, d = width, h = hidden:

- ``masked``: every expert sees every token, gates of experts that were not chosen are 0: B E rows of work;
- ``looped``: for each expert the rows that chose it are selected, the results added to their places: B k rows;
- ``padded``: each expert has a buffer of ``capacity`` rows, calls beyond it are dropped (Lepikhin et al. 2020, GShard,
  arXiv 2006.16668, section 2.2: first choices come before second ones): E capacity rows;
- ``grouped``: calls are sorted by expert, each segment is one multiplication of its own length: B k rows, none dropped.
  ``grouped_numba`` sorts, gathers and adds up in compiled loops, ``grouped_mm`` multiplies all segments in one call.

Shapes: x [B, d], chosen int64 [B, k], gates [B, k]; all return [B, d].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import gelu

from reference.kernels.jit import kernel

_compiled = kernel(error_model="numpy", nogil=True)


@dataclass(frozen=True)
class Experts:
    """The matrices of all experts: up [E, d, h] and down [E, h, d]."""

    up: Tensor
    down: Tensor

    @property
    def count(self) -> int:
        """E."""
        return len(self.up)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's two matrices."""
        return (self.up[0].numel() + self.down[0].numel()) * self.up.element_size()


def masked(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor) -> Tensor:
    """All experts on all tokens."""
    weights = x.new_zeros(len(x), experts.count).scatter_(1, chosen, gates)
    y = torch.zeros_like(x)
    for expert in range(experts.count):
        y += weights[:, expert, None] * (gelu(x @ experts.up[expert]) @ experts.down[expert])
    return y


def looped(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor) -> Tensor:
    """One expert after the other on the tokens that chose it."""
    y = torch.zeros_like(x)
    for expert in range(experts.count):
        rows, choice = (chosen == expert).nonzero(as_tuple=True)
        if len(rows):
            out = gelu(x[rows] @ experts.up[expert]) @ experts.down[expert]
            y.index_add_(0, rows, out * gates[rows, choice, None])
    return y


def padded(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor, capacity: int) -> Tensor:
    """Buffers of ``capacity`` rows for each expert, multiplied as one batch; what finds no room adds nothing."""
    place, fits = places(chosen, experts.count, capacity)
    slot = (chosen * capacity + place)[fits]
    token = torch.arange(len(x), device=x.device)[:, None].expand_as(chosen)[fits]
    buffers = x.new_zeros(experts.count * capacity, x.shape[1])
    buffers[slot] = x[token]
    hidden = gelu(torch.bmm(buffers.view(experts.count, capacity, -1), experts.up))
    out = torch.bmm(hidden, experts.down).flatten(0, 1)
    every_slot = torch.where(fits, chosen * capacity + place, 0)
    return (out[every_slot] * torch.where(fits, gates, 0.0)[..., None]).sum(1)


def grouped(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor) -> Tensor:
    """Calls sorted by expert, one multiplication for each segment."""
    k = chosen.shape[1]
    calls = chosen.flatten()
    order = calls.argsort(stable=True)
    ends = torch.bincount(calls, minlength=experts.count).cumsum(0).tolist()
    out = _segments(x[order // k], experts, ends)
    called = torch.empty_like(out)
    called[order] = out
    return (called.view(len(x), k, -1) * gates[..., None]).sum(1)


def grouped_numba(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor) -> Tensor:
    """As ``grouped``, on the CPU, sorted by counting; no intermediate result is larger than the segments."""
    rows = torch.empty(chosen.numel(), x.shape[1])
    slots, ends = np.empty(chosen.shape, np.int64), np.zeros(experts.count, np.int64)
    _sort_and_gather(x.numpy(), chosen.numpy(), rows.numpy(), slots, ends)
    out = _segments(rows, experts, ends.tolist())
    y = torch.empty_like(x)
    _add_up(out.numpy(), slots, gates.numpy(), y.numpy())
    return y


def grouped_mm(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor) -> Tensor:
    """As ``grouped``, all segments in one call of torch's grouped multiplication."""
    k = chosen.shape[1]
    calls = chosen.flatten()
    order = calls.argsort(stable=True)
    ends = torch.bincount(calls, minlength=experts.count).cumsum(0).int()
    hidden = gelu(torch.nn.functional.grouped_mm(x[order // k], experts.up, offs=ends))
    out = torch.nn.functional.grouped_mm(hidden, experts.down, offs=ends)
    called = torch.empty_like(out)
    called[order] = out
    return (called.view(len(x), k, -1) * gates[..., None]).sum(1)


def in_steps(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor, step: int) -> Tensor:
    """``grouped`` on ``step`` tokens at a time, as a decoder with that many sequences would ask for them."""
    parts = zip(x.split(step), chosen.split(step), gates.split(step), strict=True)
    return torch.cat([grouped(tokens, experts, calls, weights) for tokens, calls, weights in parts])


def places(chosen: Tensor, experts: int, capacity: int) -> tuple[Tensor, Tensor]:
    """The row of each call in its expert's buffer, and whether it fits: int64 and bool, both [B, k].

    All first choices come before all second ones, tokens in their order.
    """
    calls = chosen.T.flatten()
    order = calls.argsort(stable=True)
    starts = torch.bincount(calls, minlength=experts).cumsum(0) - torch.bincount(calls, minlength=experts)
    place = torch.empty_like(calls)
    place[order] = torch.arange(len(calls), device=calls.device) - starts[calls[order]]
    by_token = place.view(chosen.shape[1], len(chosen)).T
    return by_token, by_token < capacity


def capacity_of(tokens: int, k: int, experts: int, factor: float) -> int:
    """Rows of a buffer: ``factor`` times the calls that an expert gets on average, rounded up."""
    return max(1, math.ceil(factor * tokens * k / experts))


def largest_load(chosen: Tensor, experts: int) -> int:
    """The calls of the busiest expert: the smallest capacity that drops nothing."""
    return int(torch.bincount(chosen.flatten(), minlength=experts).max())


def expected_distinct(tokens: float, k: int, experts: int) -> float:
    """How many of E experts B tokens touch when each draws k of them evenly: E (1 - (1 - k/E)^B)."""
    return experts * (1 - (1 - k / experts) ** tokens)


def zipf_routes(tokens: int, experts: int, k: int, skew: float, random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Synthetic routes: k different experts for each token, drawn one after the other in proportion to 1 / rank^skew.

    Gates are a softmax of normal logits; ranks are given to experts at random.
    """
    popularity = random.permutation(-skew * np.log(np.arange(1, experts + 1)))
    # the k largest of log p + Gumbel noise are k draws without replacement (Vieira 2014)
    noisy = popularity + random.gumbel(size=(tokens, experts))
    chosen = np.argsort(-noisy, axis=1)[:, :k]
    logits = torch.from_numpy(random.standard_normal((tokens, k)).astype(np.float32))
    return torch.from_numpy(np.ascontiguousarray(chosen)), logits.softmax(-1)


def exact(x: Tensor, experts: Experts, chosen: Tensor, gates: Tensor) -> np.ndarray:
    """The definition, token by token of each expert, in float64."""
    y = torch.zeros_like(x, dtype=torch.float64)
    for expert in range(experts.count):
        rows, choice = (chosen == expert).nonzero(as_tuple=True)
        hidden = x[rows].double() @ experts.up[expert].double()
        out = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))) @ experts.down[expert].double()
        y[rows] += out * gates[rows, choice, None].double()
    return y.numpy()


def _segments(rows: Tensor, experts: Experts, ends: list[int]) -> Tensor:
    """Row i through the expert whose segment it lies in; expert e owns rows ends[e - 1] to ends[e]."""
    hidden = rows.new_empty(len(rows), experts.up.shape[2])
    out = torch.empty_like(rows)
    begin = 0
    for expert, end in enumerate(ends):
        if end > begin:
            torch.mm(rows[begin:end], experts.up[expert], out=hidden[begin:end])
            torch.mm(gelu(hidden[begin:end]), experts.down[expert], out=out[begin:end])
        begin = end
    return out


@_compiled
def _sort_and_gather(x, chosen, rows, slots, ends):
    """Counting sort: ``slots`` [B, k] are the calls' rows, ``ends`` [E] where segments end, ``rows`` the tokens."""
    tokens, k = chosen.shape
    experts, width = ends.size, x.shape[1]
    following = np.zeros(experts, np.int64)
    for n in range(tokens):
        for j in range(k):
            ends[chosen[n, j]] += 1
    total = 0
    for e in range(experts):
        following[e] = total
        total += ends[e]
        ends[e] = total
    for n in range(tokens):
        for j in range(k):
            slot = following[chosen[n, j]]
            following[chosen[n, j]] = slot + 1
            slots[n, j] = slot
            for i in range(width):
                rows[slot, i] = x[n, i]


@_compiled
def _add_up(out, slots, gates, y):
    """y_n = sum_j gates_nj out[slots_nj]."""
    tokens, k = slots.shape
    width = out.shape[1]
    for n in range(tokens):
        for i in range(width):
            y[n, i] = gates[n, 0] * out[slots[n, 0], i]
        for j in range(1, k):
            for i in range(width):
                y[n, i] += gates[n, j] * out[slots[n, j], i]
