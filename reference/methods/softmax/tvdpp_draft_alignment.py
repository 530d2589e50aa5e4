"""Losses that align a draft q with a target p for speculative decoding (arXiv 2403.00858), TVD++ among them.

The acceptance rate of speculative sampling is 1 - TVD(p, q), TVD(p, q) = 1/2 sum_y |p(y) - q(y)|, and

    grad TVD = E_{y ~ q}[ grad log q(y) * (-r(y)) ],   r(y) = 1{p(y) > q(y)},

a policy gradient with reward r. TVD++ replaces r by the advantage A = (r - mean) / std, mean and std taken over the
batch, all places and samples together. Rewards and advantages are constants for the gradient.

Both can be taken as the expectation over the whole vocabulary, or with y drawn from q. Over the whole vocabulary a
constant baseline cancels, since sum_y q(y) grad log q(y) = 0: TVD++ is then TVD over std, the same direction.
The paper's public text does not say which one the authors take; `samples` chooses.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from reference.methods.softmax.speculative import total_variation
from reference.testbeds.decoding import sample

EPS = 1e-6  # where the draft matches the target, all rewards are equal and std is 0

Loss = Callable[[Tensor, Tensor, Tensor, torch.Generator], Tensor]


def reward(p: Tensor, q: Tensor) -> Tensor:
    """r(y) = 1 where the target gives y more than the draft does; as p, [..., V]."""
    return (p > q).to(p.dtype)


def advantages(rewards: Tensor, weights: Tensor | None = None, eps: float = EPS) -> Tensor:
    """(r - mean) / (std + eps) over all entries; `weights` q(y) [..., V] per place where rewards are not sampled."""
    if weights is None:
        return (rewards - rewards.mean()) / (rewards.std(correction=0) + eps)
    mean = (weights * rewards).sum(-1).mean()
    variance = (weights * (rewards - mean).square()).sum(-1).mean()
    return (rewards - mean) / (variance.sqrt() + eps)


def policy_loss(
    p: Tensor,
    logits: Tensor,
    *,
    advantage: bool,
    samples: int | None = None,
    random: torch.Generator | None = None,
    eps: float = EPS,
) -> Tensor:
    """A scalar whose gradient is that of TVD (`advantage` False) or TVD++, meaned over places; its value means nothing.

    `p` [n, V] are the target's probabilities, `logits` [n, V] the draft's. Without `samples` it is
    -sum_y stopgrad(q(y) A(y)) log q(y); with it, -A(y) log q(y) for that many y ~ q at each place, drawn by `random`.
    """
    log_q = logits.log_softmax(-1)
    q = log_q.detach().exp()
    if samples is None:
        rewards = reward(p, q)
        chosen = advantages(rewards, q, eps) if advantage else rewards
        return -(q * chosen * log_q).sum(-1).mean()
    y = torch.stack([sample(q, random) for _ in range(samples)], dim=-1)
    rewards = reward(p.gather(-1, y), q.gather(-1, y))
    chosen = advantages(rewards, eps=eps) if advantage else rewards
    return -(chosen * log_q.gather(-1, y)).mean()


def forward_kl(p: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) meaned over places, DistillSpec's FKL (Zhou et al. 2024, arXiv 2310.08461) and the paper's KLD."""
    return (torch.xlogy(p, p) - p * logits.log_softmax(-1)).sum(-1).mean()


def reverse_kl(p: Tensor, logits: Tensor, floor: float = 1e-12) -> Tensor:
    """KL(q || p) meaned over places, DistillSpec's RKL."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - p.clamp_min(floor).log())).sum(-1).mean()


def jensen_shannon(p: Tensor, logits: Tensor, floor: float = 1e-12) -> Tensor:
    """(KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, meaned over places: DistillSpec's JSD at 1/2."""
    q = logits.softmax(-1)
    log_m = ((p + q) / 2).clamp_min(floor).log()
    return (torch.xlogy(p, p) - p * log_m + torch.xlogy(q, q) - q * log_m).sum(-1).mean() / 2


def distance(p: Tensor, logits: Tensor) -> Tensor:
    """TVD(p, q) itself, meaned over places, differentiated by autograd; what `policy_loss` must agree with."""
    return total_variation(p, logits.softmax(-1)).mean()


# Every loss takes (p [n, V], the draft's logits [n, V], the characters that were written [n], randomness).
LOSSES: dict[str, Loss] = {
    "ce": lambda p, logits, y, random: cross_entropy(logits, y),
    "kld": lambda p, logits, y, random: forward_kl(p, logits),
    "rkl": lambda p, logits, y, random: reverse_kl(p, logits),
    "jsd": lambda p, logits, y, random: jensen_shannon(p, logits),
    "tvd_full": lambda p, logits, y, random: policy_loss(p, logits, advantage=False),
    "tvdpp_full": lambda p, logits, y, random: policy_loss(p, logits, advantage=True),
    "tvd_sampled": lambda p, logits, y, random: policy_loss(p, logits, advantage=False, samples=1, random=random),
    "tvdpp_sampled": lambda p, logits, y, random: policy_loss(p, logits, advantage=True, samples=1, random=random),
}


def gradient_spread(gradients: Tensor, exact: Tensor) -> tuple[float, float]:
    """Total variance of sampled gradients [draws, parameters] once scaled to `exact`, and the scale divided out.

    The scale c = <mean gradient, exact> / |exact|^2 is what the sampled estimator multiplies the exact gradient by;
    without dividing by it an estimator that is merely smaller would look less noisy.
    """
    scale = float(gradients.mean(0) @ exact / exact.square().sum())
    total = float(gradients.var(0, correction=1).sum())
    return total / scale**2, scale
