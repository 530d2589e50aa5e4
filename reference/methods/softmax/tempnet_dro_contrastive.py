"""Two views of an image, contrasted with a temperature for each anchor: SogCLR, iSogCLR and TempNet in one loss.

For an anchor i with positive similarity s_ii and negatives s_ij, d_ij = s_ij - s_ii, the robust global contrastive loss
is tau_i log mean_j exp(d_ij / tau_i) + tau_i rho (arXiv 2404.04575, section 4), the mean being over all negatives of
the data, of which a batch shows few: u_i <- (1 - gamma) u_i + gamma mean_batch exp(d_ij / tau_i) follows it. Then

    gradient for the nets: sum_j (exp(d_ij / tau_i) / u_i) grad d_ij / (B - 1),
    gradient for tau_i:    log u_i + rho - sum_j (exp(d_ij / tau_i) / u_i) (d_ij / tau_i) / (B - 1).

log u_i is kept in place of u_i, so that nothing overflows and no running maximum is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from reference.methods.softmax.tempnet_dro import PrototypeTempNet, Range
from reference.testbeds import glyph_nets, glyphs, training

GAMMA = 0.8
DIM, SIDE, WIDTH = 64, 16, 16
# turned, slanted and moved like the hard look, with less in the way: halves must be told apart at 16 pixels
LOOK = glyphs.Look(blur_px=0.4, noise=0.05, clutter=0.0, occlusion=0.0)
# wider than any good temperature here: the radius is to decide, not the range
ALLOWED = Range(0.01, 0.6)
_ISOGCLR_MOMENTUM, _ISOGCLR_CLIP = 0.5, 5.0


@dataclass(frozen=True)
class Gradients:
    """Of one side's anchors: a loss whose gradient is that of the nets (a scalar), and dF/dtau [batch], detached."""

    loss: Tensor
    tau: Tensor


class GlobalLoss:
    """The running means of one side's anchors; ``gamma`` 1 forgets all but the batch."""

    def __init__(self, anchors: int, rho: float, gamma: float = GAMMA):
        self.rho, self.gamma = rho, gamma
        self.log_mean = torch.full((anchors,), torch.nan, dtype=torch.float64)

    def __call__(self, similarity: Tensor, anchors: Tensor, tau: Tensor) -> Gradients:
        """Similarities [batch, batch], the positives on the diagonal, of anchors (int64) with temperatures ``tau``."""
        count = len(similarity)
        difference = similarity - similarity.diagonal()[:, None]
        scaled = (difference.detach() / tau.detach()[:, None]).double()
        scaled.fill_diagonal_(-torch.inf)
        batch = torch.logsumexp(scaled, 1) - math.log(count - 1)
        before = self.log_mean[anchors]
        old, new = 1 - self.gamma, self.gamma
        mixed = torch.logaddexp(before + math.log(old), batch + math.log(new)) if old > 0 else batch
        mean = torch.where(before.isnan(), batch, mixed)
        self.log_mean[anchors] = mean
        weights = (scaled - mean[:, None]).exp() / (count - 1)
        pulled = (weights * scaled.masked_fill(torch.eye(count, dtype=torch.bool), 0.0)).sum(1)
        return Gradients((weights.float() * difference).sum(1).mean(), (mean + self.rho - pulled).float())


class InBatch(nn.Module):
    """InfoNCE over the batch with one temperature (CLIP): mean cross entropy in both directions."""

    def __init__(self, tau: float):
        super().__init__()
        self.tau = tau

    def forward(self, left: Tensor, right: Tensor, anchors: Tensor) -> Tensor:
        """A scalar whose gradients are to be followed, from normalised embeddings [batch, dim] of both views."""
        logits, labels = left @ right.T / self.tau, torch.arange(len(left))
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


class Fixed(nn.Module):
    """The global loss with one temperature (SogCLR)."""

    def __init__(self, anchors: int, tau: float):
        super().__init__()
        self.tau, self.sides = tau, (GlobalLoss(anchors, 0.0), GlobalLoss(anchors, 0.0))

    def forward(self, left: Tensor, right: Tensor, anchors: Tensor) -> Tensor:
        """See `InBatch`."""
        similarity, tau = left @ right.T, torch.full((len(left),), self.tau)
        first, second = (side(s, anchors, tau) for side, s in zip(self.sides, (similarity, similarity.T), strict=True))
        return first.loss + second.loss


class Individual(nn.Module):
    """The robust loss with one learned temperature for each anchor (iSogCLR): SGD with momentum, gradients clipped."""

    def __init__(self, anchors: int, rho: float, allowed: Range, rate: float, start: float):
        super().__init__()
        self.allowed, self.rate = allowed, rate
        self.sides = (GlobalLoss(anchors, rho), GlobalLoss(anchors, rho))
        self.tau = torch.full((2, anchors), start)
        self.momentum = torch.zeros(2, anchors)

    def forward(self, left: Tensor, right: Tensor, anchors: Tensor) -> Tensor:
        """See `InBatch`; the temperatures take their step here."""
        similarity, losses = left @ right.T, []
        for index, (side, s) in enumerate(zip(self.sides, (similarity, similarity.T), strict=True)):
            tau = self.tau[index, anchors]
            found = side(s, anchors, tau)
            gradient = found.tau.clamp(-_ISOGCLR_CLIP, _ISOGCLR_CLIP)
            momentum = (1 - _ISOGCLR_MOMENTUM) * self.momentum[index, anchors] + _ISOGCLR_MOMENTUM * gradient
            self.momentum[index, anchors] = momentum
            self.tau[index, anchors] = (tau - self.rate * momentum).clamp(self.allowed.low, self.allowed.high)
            losses.append(found.loss)
        return losses[0] + losses[1]


class Predicted(nn.Module):
    """The robust loss with temperatures from a TempNet for each side, trained along with the nets."""

    def __init__(self, anchors: int, rho: float, allowed: Range, seed: int):
        super().__init__()
        self.sides = (GlobalLoss(anchors, rho), GlobalLoss(anchors, rho))
        self.nets = nn.ModuleList(PrototypeTempNet(DIM, seed + index, allowed) for index in range(2))

    def forward(self, left: Tensor, right: Tensor, anchors: Tensor) -> Tensor:
        """See `InBatch`."""
        similarity, losses = left @ right.T, []
        for side, net, s, view in zip(self.sides, self.nets, (similarity, similarity.T), (left, right), strict=True):
            tau = net(view)
            found = side(s, anchors, tau)
            losses.append(found.loss + (found.tau * tau).mean())
        return losses[0] + losses[1]


class TwoView(nn.Module):
    """A net for the left and one for the right half of an image, each half in its place, the other half blank."""

    def __init__(self, objective: nn.Module, seed: int):
        super().__init__()
        self.left = glyph_nets.embedder(seed, DIM, WIDTH, SIDE)
        self.right = glyph_nets.embedder(seed + 1, DIM, WIDTH, SIDE)
        self.objective = objective

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, 1, side, side] -> normalised embeddings [n, dim] of both halves."""
        half = images.shape[-1] // 2
        left, right = images.clone(), images.clone()
        left[..., half:] = 0
        right[..., :half] = 0
        return normalize(self.left(left), dim=1), normalize(self.right(right), dim=1)

    def loss(self, images: Tensor, anchors: Tensor) -> Tensor:
        """In training the objective; otherwise 1 - recall@1 among the batch."""
        left, right = self.embed(images)
        if self.training:
            return self.objective(left, right, anchors)
        return 1 - recall_at_1(left @ right.T)


def recall_at_1(similarity: Tensor) -> Tensor:
    """Share of rows and of columns whose largest entry lies on the diagonal, the mean of both: a scalar."""
    own = torch.arange(len(similarity))
    hits = [(matrix.argmax(1) == own).float().mean() for matrix in (similarity, similarity.T)]
    return (hits[0] + hits[1]) / 2


def long_tailed(classes: int, largest: int, exponent: float, seed: int) -> Tensor:
    """Images of the training part: class c has ``largest`` / (c + 1)^exponent of them, at least two."""
    counts = (largest / torch.arange(1, classes + 1) ** exponent).round().clamp(min=2).long()
    images, labels = glyphs.glyphs(range(classes), largest, seed, "train", LOOK, SIDE)
    order = labels.argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order)) % largest  # every class has `largest` images
    return images[place < counts[labels]]


def balanced(classes: int, per_class: int, seed: int, part: str) -> Tensor:
    """Images of a held-out part, equally many of each class."""
    return glyphs.glyphs(range(classes), per_class, seed, part, LOOK, SIDE)[0]


def halves(config: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Training, validation and test images of `classes`, the most frequent with `largest` training images."""
    classes, seed = config["classes"], config["seed"]
    return (long_tailed(classes, config["largest"], 0.7, seed), balanced(classes, 2, seed, "val"),
            balanced(classes, 2, seed, "test"))


def objective_of(arm: str, anchors: int, tuned: Mapping[str, Any], seed: int) -> nn.Module:
    """``clip`` and ``sogclr`` take ``tau``, ``isogclr`` and ``tempnet`` take ``rho``."""
    if arm == "clip":
        return InBatch(tuned["tau"])
    if arm == "sogclr":
        return Fixed(anchors, tuned["tau"])
    if arm == "isogclr":
        start = (ALLOWED.low + ALLOWED.high) / 2
        return Individual(anchors, tuned["rho"], ALLOWED, rate=0.1 * ALLOWED.high, start=start)
    return Predicted(anchors, tuned["rho"], ALLOWED, seed)


def fit(model: TwoView, images: Tensor, held_out: Tensor, steps: int, batch: int, lr: float, seed: int) -> float:
    """AdamW with 10 % warm-up and a cosine down to 10 %; the validation recall@1 among all of ``held_out``."""
    numbers = torch.arange(len(images))
    validation = (held_out, torch.arange(len(held_out)))
    batches = training.array_batches(images, numbers, batch, seed, validation, validation_batch=len(held_out))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    return 1 - training.train(model, batches, optimizer, training.warmup_cosine(steps), steps).val_loss


@torch.no_grad()
def recall(model: TwoView, images: Tensor) -> float:
    """recall@1 among ``images``, in evaluation mode."""
    model.eval()
    left, right = model.embed(images)
    return recall_at_1(left @ right.T).item()


@torch.no_grad()
def spread(model: TwoView, images: Tensor) -> dict[str, float]:
    """Mean of the temperatures, and their standard deviation within a side: over ``images``, or those learned."""
    objective = model.objective
    if isinstance(objective, Predicted):
        model.eval()
        tau = torch.stack([net(view) for net, view in zip(objective.nets, model.embed(images), strict=True)])
    else:
        tau = objective.tau if isinstance(objective, Individual) else torch.tensor([[objective.tau]])
    return {"tau_mean": tau.mean().item(), "tau_std": tau.std(1, correction=0).mean().item()}
