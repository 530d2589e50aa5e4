"""Attacks inside an l_inf ball, for images in 0..1: PGD, APGD, and the worst of several.

A `Predict` maps images float [n, ...] to scores [n, classes] (logits or log-probabilities) with gradients; whoever
attacks a network puts it into evaluation mode first. All attacks return images that lie in the ball and in 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

Predict = Callable[[Tensor], Tensor]
# (scores [n, classes], labels [n]) -> what the attacker raises, [n]
Objective = Callable[[Tensor, Tensor], Tensor]
# (images, labels, random) -> attacked images
Attack = Callable[[Tensor, Tensor, torch.Generator], Tensor]

_MOMENTUM = 0.75
_RHO = 0.75  # the share of steps that must have helped for the step size to stay


def cross_entropy_objective(scores: Tensor, y: Tensor) -> Tensor:
    """Cross entropy in nats, per image."""
    return cross_entropy(scores, y, reduction="none")


def margin_objective(scores: Tensor, y: Tensor) -> Tensor:
    """The best wrong score minus the right one, per image: positive where the prediction is wrong."""
    right = scores.gather(1, y[:, None]).squeeze(1)
    return scores.scatter(1, y[:, None], -torch.inf).max(1).values - right


def targeted_objective(rank: int, clean_scores: Tensor) -> Objective:
    """Score of one wrong class minus the right one's: the class that is `rank`-th (from 0) among the wrong at first."""

    def objective(scores: Tensor, y: Tensor) -> Tensor:
        wrong = clean_scores.scatter(1, y[:, None], -torch.inf)
        target = wrong.topk(rank + 1, dim=1).indices[:, rank:]
        return (scores.gather(1, target) - scores.gather(1, y[:, None])).squeeze(1)

    return objective


def project(x_adv: Tensor, x: Tensor, eps: float) -> Tensor:
    """The nearest image within `eps` of `x` in every pixel, and in 0..1."""
    return torch.minimum(torch.maximum(x_adv, x - eps), x + eps).clamp(0.0, 1.0)


def random_start(x: Tensor, eps: float, random: torch.Generator) -> Tensor:
    """Uniform in the ball, then projected."""
    return project(x + eps * (2 * torch.rand(x.shape, generator=random).to(x.device, x.dtype) - 1), x, eps)


def value_and_gradient(predict: Predict, x: Tensor, y: Tensor, objective: Objective) -> tuple[Tensor, Tensor, Tensor]:
    """(objective [n], its gradient by the images, whether each image is predicted wrongly [n])."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        scores = predict(leaf)
        values = objective(scores, y)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient, scores.detach().argmax(1) != y


def pgd(
    predict: Predict, x: Tensor, y: Tensor, eps: float, *, steps: int, step_size: float, start: Tensor,
    objective: Objective = cross_entropy_objective,
) -> Tensor:
    """Projected steps of `step_size` along the gradient's sign, from `start` (Madry et al. 2018, arXiv 1706.06083)."""
    x_adv = start
    for _ in range(steps):
        _, gradient, _ = value_and_gradient(predict, x_adv, y, objective)
        x_adv = project(x_adv + step_size * gradient.sign(), x, eps)
    return x_adv.detach()


def checkpoints(steps: int) -> list[int]:
    """After how many steps APGD looks at its progress: p_0 = 0, p_1 = 0.22, then gaps that shrink by 0.03 to 0.06."""
    shares = [0.0, 0.22]
    while shares[-1] < 1.0:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({min(steps, math.ceil(share * steps - 1e-9)) for share in shares[1:]})


@dataclass
class _Progress:
    """What APGD remembers of each image."""

    best_x: Tensor
    best_gradient: Tensor
    best: Tensor  # largest objective so far
    fooled: Tensor
    fooling_x: Tensor

    def see(self, x: Tensor, values: Tensor, gradient: Tensor, wrong: Tensor) -> Tensor:
        """Keep what is better; where the objective rose above its best."""
        first = wrong & ~self.fooled
        self.fooling_x = torch.where(_as(first, x), x, self.fooling_x)
        self.fooled = self.fooled | wrong
        rose = values > self.best
        self.best_x = torch.where(_as(rose, x), x, self.best_x)
        self.best_gradient = torch.where(_as(rose, x), gradient, self.best_gradient)
        self.best = torch.where(rose, values, self.best)
        return rose


def apgd(
    predict: Predict, x: Tensor, y: Tensor, eps: float, *, steps: int, start: Tensor,
    objective: Objective = cross_entropy_objective,
) -> Tensor:
    """Auto-PGD (Croce & Hein 2020, arXiv 2003.01690, algorithm 1): momentum 0.75, step sizes that halve by themselves.

    The step begins at 2 eps. At a checkpoint an image's step is halved, and its search goes on from its best point so
    far, when fewer than 75 % of the steps since the last checkpoint raised the objective, or when neither step size nor
    best value changed since then. Returns the first point found that is predicted wrongly, else that of largest
    objective.
    """
    values, gradient, wrong = value_and_gradient(predict, start, y, objective)
    seen = _Progress(start, gradient, values, wrong, start)
    before = current = start
    step = torch.full_like(values, 2 * eps)
    raised = torch.zeros_like(values)
    last_best, halved_before, last = values, torch.zeros_like(wrong), 0
    due = set(checkpoints(steps))
    for index in range(steps):
        moved = project(current + _as(step, x) * gradient.sign(), x, eps)
        if index:
            moved = project(current + _MOMENTUM * (moved - current) + (1 - _MOMENTUM) * (current - before), x, eps)
        before, current = current, moved
        earlier = values
        values, gradient, wrong = value_and_gradient(predict, current, y, objective)
        raised = raised + (values > earlier)
        seen.see(current, values, gradient, wrong)
        if index + 1 in due:
            rarely = raised < _RHO * (index + 1 - last)
            stuck = ~halved_before & (seen.best <= last_best)
            halve = rarely | stuck
            step = torch.where(halve, step / 2, step)
            current = torch.where(_as(halve, x), seen.best_x, current)
            gradient = torch.where(_as(halve, x), seen.best_gradient, gradient)
            values = torch.where(halve, seen.best, values)
            last_best, halved_before, last = seen.best, halve, index + 1
            raised = torch.zeros_like(raised)
    return torch.where(_as(seen.fooled, x), seen.fooling_x, seen.best_x).detach()


def apgd_attack(
    predict: Predict, eps: float, steps: int, restarts: int = 1, objective: Objective = cross_entropy_objective
) -> list[Attack]:
    """APGD from `restarts` random starts, as that many attacks."""

    def attack(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
        return apgd(predict, x, y, eps, steps=steps, start=random_start(x, eps, random), objective=objective)

    return [attack] * restarts


def targeted_attack(predict: Predict, eps: float, steps: int, targets: int) -> list[Attack]:
    """APGD towards each of the `targets` most likely wrong classes."""

    def attack(rank: int) -> Attack:
        def run(x: Tensor, y: Tensor, random: torch.Generator) -> Tensor:
            with torch.no_grad():
                objective = targeted_objective(rank, predict(x))
            return apgd(predict, x, y, eps, steps=steps, start=random_start(x, eps, random), objective=objective)

        return run

    return [attack(rank) for rank in range(targets)]


def worst_case(
    predict: Predict, x: Tensor, y: Tensor, attacks: Iterable[Attack], random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(images, whether `predict` still gets them right): the attacks in turn, each on what the earlier ones left right.

    An image that no attack turns is returned as it is. An attack may aim at another model; what counts is `predict`.
    """
    with torch.no_grad():
        right = predict(x).argmax(1) == y
    attacked = x.clone()
    for attack in attacks:
        rows = right.nonzero().squeeze(1)
        if not len(rows):
            break
        tried = attack(x[rows], y[rows], random)
        with torch.no_grad():
            turned = predict(tried).argmax(1) != y[rows]
        attacked[rows[turned]] = tried[turned]
        right[rows[turned]] = False
    return attacked, right


def _as(per_image: Tensor, x: Tensor) -> Tensor:
    """[n] -> [n, 1, ...], to broadcast over images."""
    return per_image.view(-1, *[1] * (x.ndim - 1))
