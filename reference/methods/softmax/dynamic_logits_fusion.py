"""Dynamic logits fusion (arXiv 2406.15480): a large model steered at each character by what tuning did to small ones.

With M_L the large base, M_S the small base and M_St the small expert of task t, as log-probabilities of one vocabulary,

    P~ = softmax(M_L + sum_t alpha_t D_t),   D_t = M_St - M_S.

Static fusion fixes alpha (1 in proxy tuning and DExperts). Dynamic fusion chooses it at every step, so that the large
model is shifted as far as tuning shifted the small one,

    alpha* = argmin ( KL(P~_alpha || P_L) - KL(P_St || P_S) )^2,   alpha in [0, 2].

KL(P~_alpha || P_L) = alpha E_alpha[D] - log Z_alpha with Z_alpha = E_L[exp(alpha D)]; its derivative is
alpha Var_alpha(D) >= 0, so one task has one root, found by bisection. Where the target is beyond the cap, alpha is the
cap; where expert and small base agree, alpha is 0 by convention.

Several tasks: minimise sum_t (KL(P~ || P_L) - K_t)^2, K_t = KL(P_St || P_S), over all alphas, most of them 0. This
objective sees the alphas through the one number KL(P~ || P_L): it is least wherever that equals the mean of the K_t,
along each expert alike, so that which expert is taken is decided by the grid's rounding. The paper's own objective and
grid could not be verified; `sparse_grid` is this form, `largest_shift` a choice that does tell experts apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

CAP = 2.0
STEP = 0.1
_BISECTIONS = 40


@dataclass(frozen=True)
class Alphas:
    """Weights [..., batch] and whether the shift that was asked for is out of reach below the cap, bool alike."""

    values: Tensor
    capped: Tensor


def kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of log-probabilities over the last axis, in nats; [...]."""
    p = log_p.exp()
    return torch.where(p > 0, p * (log_p - log_q), 0.0).sum(-1).clamp_min(0)


def fused(log_large: Tensor, shifts: Tensor, alphas: Tensor) -> Tensor:
    """log P~ [batch, V] from the large model [batch, V], shifts D [tasks, batch, V] and alphas [tasks, batch]."""
    return (log_large + (alphas[..., None] * shifts).sum(0)).log_softmax(-1)


def fused_kl(log_large: Tensor, shift: Tensor, alpha: Tensor) -> Tensor:
    """KL(P~_alpha || P_L) of one expert, [batch]."""
    return kl((log_large + alpha[..., None] * shift).log_softmax(-1), log_large)


def alpha_by_bisection(
    log_large: Tensor, shift: Tensor, target: Tensor, cap: float = CAP, iterations: int = _BISECTIONS
) -> Alphas:
    """The root of KL(P~_alpha || P_L) = target on [0, cap] for each row; `target` [batch] in nats."""
    low, high = torch.zeros_like(target), torch.full_like(target, cap)
    capped = fused_kl(log_large, shift, high) < target
    for _ in range(iterations):
        middle = (low + high) / 2
        below = fused_kl(log_large, shift, middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return Alphas(torch.where(target <= 0, 0.0, torch.where(capped, cap, (low + high) / 2)), capped)


def alpha_by_grid(
    log_large: Tensor, shift: Tensor, target: Tensor, cap: float = CAP, step: float = STEP
) -> Alphas:
    """The point of the grid step, 2 step, ..., cap, and 0, with the least squared difference; the first of equals."""
    grid = torch.arange(round(cap / step) + 1, dtype=target.dtype, device=target.device) * step
    found = torch.stack([fused_kl(log_large, shift, torch.full_like(target, float(alpha))) for alpha in grid])
    best = (found - target).square().argmin(0)
    return Alphas(torch.where(target <= 0, 0.0, grid[best]), found[-1] < target)


def sparse_grid(
    log_large: Tensor, shifts: Tensor, targets: Tensor, cap: float = CAP, step: float = STEP
) -> Alphas:
    """The paper's joint objective over alphas with one expert at most, `shifts` [tasks, batch, V] -> [tasks, batch]."""
    grid = torch.arange(round(cap / step) + 1, dtype=targets.dtype, device=targets.device) * step
    found = torch.stack([torch.stack([fused_kl(log_large, shift, torch.full_like(targets[0], float(alpha)))
                                      for alpha in grid]) for shift in shifts])  # [tasks, grid, batch]
    objective = (found[:, :, None] - targets).square().sum(2)
    best = objective.flatten(0, 1).argmin(0)
    expert, point = best // len(grid), best % len(grid)
    tasks = torch.arange(len(shifts), device=targets.device)[:, None]
    return Alphas(torch.where(tasks == expert, grid[point], 0.0), (found[:, -1] < targets) & (tasks == expert))


def largest_shift(log_large: Tensor, shifts: Tensor, targets: Tensor, cap: float = CAP) -> Alphas:
    """The expert with the largest K_t alone, its shift matched exactly; `targets` [tasks, batch] -> [tasks, batch]."""
    found = alpha_by_bisection(log_large.expand_as(shifts), shifts, targets, cap)
    chosen = torch.arange(len(shifts), device=targets.device)[:, None] == targets.argmax(0)
    return Alphas(torch.where(chosen, found.values, 0.0), found.capped & chosen)
