"""Speculative sampling (Leviathan et al. 2023, arXiv 2211.17192; Chen et al. 2023, arXiv 2302.01318).

A draft q proposes gamma characters, the target p reads them in one call. Character y is accepted with probability
min(1, p(y) / q(y)); the first that is rejected is drawn anew from the residual (p - q)_+ / sum (p - q)_+; where all are
accepted, the call's last distribution gives one more, the bonus. What is written is distributed as the target's own
writing. The acceptance rate at a place is sum_y min(p(y), q(y)) = 1 - TVD(p, q).

Temperature 0 is the one-hot distribution on the largest logit, for both models: acceptance is equality of argmaxes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.testbeds.decoding import Reader, probabilities, sample

Floats = NDArray[np.float64]


def acceptance(p: Tensor, q: Tensor) -> Tensor:
    """Probability that a character drawn from q is accepted, sum min(p, q) over the last axis; [...]."""
    return torch.minimum(p, q).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> Tensor:
    """TVD(p, q) = 1/2 sum |p - q| over the last axis; [...]."""
    return (p - q).abs().sum(-1) / 2


def residual(p: Tensor, q: Tensor) -> Tensor:
    """(p - q)_+, normalised over the last axis; p itself where p = q and nothing is ever rejected."""
    left = (p - q).clamp_min(0)
    mass = left.sum(-1, keepdim=True)
    return torch.where(mass > 0, left / mass, p)


def verify(p: Tensor, q: Tensor, drafts: Tensor, accept: Tensor, resample: Tensor) -> tuple[Tensor, Tensor]:
    """How many drafts are accepted, int64 [batch], and the character that follows them, int64 [batch].

    `p` [batch, gamma + 1, V] and `q` [batch, gamma, V] are probabilities, `drafts` int64 [batch, gamma], `accept`
    [batch, gamma] and `resample` [batch] uniform numbers in [0, 1). The next character is found by inverting the
    cumulated residual (or bonus) at `resample`, so that equal numbers give equal results in every implementation.
    """
    gamma = drafts.shape[1]
    at = drafts[..., None]
    p_drafted, q_drafted = p[:, :gamma].gather(-1, at)[..., 0], q.gather(-1, at)[..., 0]
    accepted = (accept * q_drafted < p_drafted).long().cumprod(1).sum(1)
    rows = torch.arange(len(p), device=p.device)
    proposed = q[rows, accepted.clamp_max(gamma - 1)]
    after = p[rows, accepted]
    # Nothing was proposed where the bonus is drawn.
    left = residual(after, torch.where((accepted < gamma)[:, None], proposed, 0.0)).cumsum(-1)
    following = torch.searchsorted(left, (resample * left[:, -1]).to(left.dtype)[:, None], right=True)[:, 0]
    return accepted, following.clamp_max(p.shape[-1] - 1)


@dataclass(frozen=True)
class Speculated:
    """Characters written, int64 [n], how often the target was called, and how many drafts each call accepted."""

    tokens: Tensor
    calls: int
    accepted: tuple[int, ...]

    @property
    def block_efficiency(self) -> float:
        """Characters per call of the target, the bonus counted: at most gamma + 1."""
        return len(self.tokens) / self.calls


def speculate(
    target: Reader,
    draft: Reader,
    prompt: Tensor,
    max_new: int,
    gamma: int,
    temperature: float = 0.0,
    random: torch.Generator | None = None,
    end: int | None = None,
) -> Speculated:
    """Continue one prompt, int64 [n], by up to `max_new` characters, ending behind the first `end`.

    Both readers serve one row. The temperature is applied to both models. Raises ValueError for gamma < 1.
    """
    if gamma < 1:
        raise ValueError(f"gamma must be at least 1, not {gamma}")
    text, begin = prompt.tolist(), len(prompt)
    known = {"draft": 0, "target": 0}  # characters of the text that each model has read
    counts: list[int] = []

    def extend(name: str, model: Reader, tokens: list[int]) -> Tensor:
        start = known[name]
        known[name] = start + len(tokens)
        return model.extend(torch.tensor([tokens]), torch.tensor([start]))[0]

    while len(text) - begin < max_new and (end is None or len(text) == begin or text[-1] != end):
        ahead = min(gamma, max_new - (len(text) - begin) - 1)
        drafts: list[int] = []
        proposed: list[Tensor] = []
        for _ in range(ahead):
            logits = extend("draft", draft, (text + drafts)[known["draft"]:])[-1]
            proposed.append(probabilities(logits, temperature))
            drafts.append(_choose(proposed[-1], temperature, random))
        unread = (text + drafts)[known["target"]:]
        p = probabilities(extend("target", target, unread)[-ahead - 1:], temperature)
        count, following = _judge(p, proposed, drafts, temperature, random)
        counts.append(count)
        text += [*drafts[:count], following]
        # What was read beyond the accepted drafts is read over.
        known = {name: min(place, len(text) - 1) for name, place in known.items()}
        if end is not None and end in text[-count - 1:]:
            text = text[: text.index(end, len(text) - count - 1) + 1]
    return Speculated(torch.tensor(text[begin:]), len(counts), tuple(counts))


def _choose(q: Tensor, temperature: float, random: torch.Generator | None) -> int:
    return int(q.argmax()) if temperature == 0.0 else int(sample(q[None], random))


def _judge(
    p: Tensor, q: list[Tensor], drafts: list[int], temperature: float, random: torch.Generator | None
) -> tuple[int, int]:
    if not drafts:
        return 0, _choose(p[0], temperature, random)
    # At temperature 0 every uniform number gives the same: none is drawn.
    uniform = torch.zeros(len(drafts) + 1) if temperature == 0.0 else torch.rand(len(drafts) + 1, generator=random)
    accepted, following = verify(
        p[None], torch.stack(q)[None], torch.tensor([drafts]), uniform[None, :-1], uniform[-1:])
    return int(accepted), int(following)


def expected_blocks(kept: Floats, lengths: NDArray[np.int64], gamma: int) -> Floats:
    """Expected number of target calls that write each given text, float64 [n].

    `kept` [n, time] is min(1, q(y) / p(y)) at each character y that the target wrote: given that y is written, this is
    the probability that it was an accepted draft, since draft and residual together write y with probability p(y) and
    the draft's share of it is min(p(y), q(y)). A block that starts at i ends behind the first character that was not
    accepted, or behind the bonus; summing over where blocks start is exact for texts of `lengths` characters, and free
    of the noise of drawing drafts.
    """
    count, time = kept.shape
    starts = np.zeros((count, time + gamma + 2))
    starts[:, 0] = 1.0
    padded = np.concatenate([kept, np.ones((count, gamma + 1))], axis=1)
    for place in range(time):
        reached = starts[:, place].copy()
        for step in range(gamma):
            accepted = padded[:, place + step]
            starts[:, place + step + 1] += reached * (1.0 - accepted)
            reached = reached * accepted
        starts[:, place + gamma + 1] += reached
    inside = np.arange(time)[None, :] < lengths[:, None]
    return (starts[:, :time] * inside).sum(axis=1)


def block_efficiency(kept: Floats, lengths: NDArray[np.int64], gamma: int) -> float:
    """Characters per expected target call over all texts."""
    return float(lengths.sum() / expected_blocks(kept, lengths, gamma).sum())


def memory_bound_speedup(block_efficiency: float, size_ratio: float, gamma: int) -> float:
    """Block efficiency over c * gamma + 1: the speed-up where a call costs what reading its weights costs.

    `size_ratio` c is the draft's size over the target's.
    """
    return block_efficiency / (size_ratio * gamma + 1.0)
