"""Softplus attention with re-weighting (Gao et al. 2025, arXiv 2501.13428), and what it is compared with.

Causal row i of a head of width d sees N_i = i tokens. Stage 1 (LSSA), with rows of Q and K of unit length:

    A = softplus(log(d) log(N_i) Q K^T) on the visible tokens, 0 elsewhere;    A_i <- A_i / sum(A_i)

Stage 2 (LSSAR) sharpens: A <- ReLU(A N_i - O)^p with O = 1, and O = 0 in rows 1 to 3; A_i <- A_i / sum(A_i).

All functions take queries and keys [..., time, d] after the rotation and give the weights [..., time, time].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, softplus

from reference.methods.rope import THETA, rotate
from reference.testbeds import char_lm

Rows = Callable[[Tensor, Tensor], Tensor]

EPS = 1e-8
POWER = 15
UNSHARPENED_ROWS = 3  # O = 0 there: rows so short that A N_i - 1 may leave nothing


def visible_counts(time: int, like: Tensor) -> Tensor:
    """N_i = 1, 2, ..., [time, 1]: how many tokens each row sees, which is not the length of the text."""
    return torch.arange(1, time + 1, device=like.device, dtype=like.dtype)[:, None]


def _causal(time: int, like: Tensor) -> Tensor:
    return torch.ones(time, time, dtype=torch.bool, device=like.device).tril()


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """Q K^T / sqrt(d), -inf above the diagonal."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~_causal(q.shape[-2], q), -math.inf)


def softmax_rows(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d))."""
    return scaled_scores(q, k).softmax(-1)


def lssa_rows(q: Tensor, k: Tensor) -> Tensor:
    """Stage 1. There is no 1 / sqrt(d): rows of unit length keep the products within [-1, 1]."""
    d, time = q.shape[-1], q.shape[-2]
    products = normalize(q, dim=-1) @ normalize(k, dim=-1).mT
    weights = softplus(math.log(d) * visible_counts(time, q).log() * products) * _causal(time, q)
    return weights / weights.sum(-1, keepdim=True)


def reweight(weights: Tensor, power: int = POWER, offset: float = 1.0) -> Tensor:
    """Stage 2 on normalised rows [..., time, time].

    Rows are divided by their maximum before the power, which changes nothing afterwards and keeps x^15 finite. A row
    that is exactly uniform has nothing above its mean: it becomes 0, not 0/0.
    """
    counts = visible_counts(weights.shape[-1], weights)
    raised = (weights * counts - offset * (counts > UNSHARPENED_ROWS)).relu()
    raised = (raised / raised.amax(-1, keepdim=True).detach().clamp_min(EPS)) ** power
    return raised / (raised.sum(-1, keepdim=True) + EPS)


def lssar_rows(q: Tensor, k: Tensor, power: int = POWER) -> Tensor:
    """Both stages."""
    return reweight(lssa_rows(q, k), power)


def softmax_reweighted_rows(q: Tensor, k: Tensor, power: int = POWER) -> Tensor:
    """Stage 2 on top of softmax."""
    return reweight(softmax_rows(q, k), power)


POSITIVE_MAPS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp, "softplus": softplus, "sigmoid": torch.sigmoid, "relu": torch.relu,
}


def mapped_rows(q: Tensor, k: Tensor, positive_map: str, l1: bool) -> Tensor:
    """One of ``POSITIVE_MAPS`` of Q K^T / sqrt(d) on the visible tokens, rows divided by their sums (``l1``) or by N_i.

    exp with l1 is softmax, and computed as such.
    """
    if positive_map == "exp" and l1:
        return softmax_rows(q, k)
    time = q.shape[-2]
    weights = POSITIVE_MAPS[positive_map](q @ k.mT / math.sqrt(q.shape[-1])) * _causal(time, q)
    if not l1:
        return weights / visible_counts(time, q)
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)  # rows of ReLU may be all 0


class LogNSoftmax(nn.Module):
    """softmax(s log(N_i) Q K^T / sqrt(d)) with a learned s for each head, as in Scalable-Softmax (arXiv 2501.19399).

    s begins at 1 / log(length), where a row of that length is plain softmax.
    """

    def __init__(self, heads: int, length: int):
        super().__init__()
        self.scale = nn.Parameter(torch.full((heads, 1, 1), 1 / math.log(length)))

    def forward(self, q: Tensor, k: Tensor) -> Tensor:
        """[batch, heads, time, d] -> [batch, heads, time, time]."""
        return softmax_rows(self.scale * visible_counts(q.shape[-2], q).log() * q, k)


def alibi_rows(q: Tensor, k: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d) - m_h (i - j)), m_h = 2^(-8 h / heads) for head h = 1, 2, ... (arXiv 2108.12409)."""
    heads, time = q.shape[-3], q.shape[-2]
    slopes = 2.0 ** (-8 * torch.arange(1, heads + 1, device=q.device, dtype=q.dtype) / heads)
    counts = visible_counts(time, q)
    return (scaled_scores(q, k) - slopes[:, None, None] * (counts - counts.mT)).softmax(-1)


class RowAttention(nn.Module):
    """Causal attention around the four matrices of another, its weights made by ``rows``.

    ``theta`` is RoPE's base; None leaves queries and keys as they are.
    """

    def __init__(self, attention: char_lm.Attention, rows: Rows, theta: float | None = THETA):
        super().__init__()
        self.heads, self.theta = attention.heads, theta
        self.query, self.key = attention.query, attention.key
        self.value, self.output = attention.value, attention.output
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> the same shape."""
        projections = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (projection.unflatten(-1, (self.heads, -1)).transpose(1, 2) for projection in projections)
        if self.theta is not None:
            q, k = rotate(q, self.theta), rotate(k, self.theta)
        return self.output((self.rows(q, k) @ v).transpose(1, 2).flatten(2))


ROWS: Mapping[str, Rows] = {
    "softmax": softmax_rows,
    "alibi": alibi_rows,
    "lssa": lssa_rows,
    "lssar": lssar_rows,
    "lssar_p3": partial(lssar_rows, power=3),
    "softmax_reweighted": softmax_reweighted_rows,
    **{f"{name}_{'l1' if l1 else 'count'}": partial(mapped_rows, positive_map=name, l1=l1)
       for name in POSITIVE_MAPS for l1 in (True, False)},
}
VARIANTS = (*ROWS, "log_n")


def with_attention(model: char_lm.CharLM, variant: str, length: int) -> char_lm.CharLM:
    """``model`` with every attention replaced by a variant, and with RoPE, or ALiBi, for its learned positions.

    The position embedding is set to 0 and frozen. ``length`` is the training length, which ``log_n`` starts from.
    Raises KeyError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise KeyError(f"no attention {variant!r}; there are {', '.join(VARIANTS)}")
    nn.init.zeros_(model.position_embedding.weight)
    model.position_embedding.weight.requires_grad_(False)
    for block in model.blocks:
        rows = LogNSoftmax(block.attention.heads, length) if variant == "log_n" else ROWS[variant]
        block.attention = RowAttention(block.attention, rows, None if variant == "alibi" else THETA)
    return model
