"""Temperatures for each token as distributionally robust optimisation, and a small network that predicts them.

Qiu et al. 2024 (arXiv 2404.04575). For logits h over V words and the label y the worst case over distributions p near
the uniform u is

    max_p sum_j p_j (h_j - h_y)  subject to  KL(p || u) <= rho                                        (primal)
  = min_tau tau log mean_j exp((h_j - h_y) / tau) + tau rho                                           (dual)
  = min_tau tau CE(h / tau, y) + (rho - log V) tau =: min_tau F(tau).

F is convex in tau with dF/dtau = rho - KL(softmax(h / tau) || u), in which y does not occur: the best temperature tau*
is the one with entropy(softmax(h / tau*)) = log V - rho, whatever the label, and finding it is a bisection for each row
of logits. TempNet spares the bisection: it is trained to minimise F over all rows at once.

Shapes: logits [n, V], tau and labels [n]. Taus are held within ``Range``; where tau* lies outside, the nearer end is
the best allowed, and the identity of the entropy does not hold there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reference.testbeds.seeding import empty_linear, fill_normal, fill_uniform, generator

BISECTION_STEPS = 20


@dataclass(frozen=True)
class Range:
    """The temperatures that are allowed."""

    low: float = 0.01
    high: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"temperatures must have 0 < low < high, not {self.low} and {self.high}")


def rho_for(target_entropy: float, vocabulary: int) -> float:
    """The radius log V - H whose best temperature gives each row the entropy H, in nats."""
    return math.log(vocabulary) - target_entropy


def robust_loss(logits: Tensor, tau: Tensor, rho: float, labels: Tensor) -> Tensor:
    """F(tau) of each row: tau LSE(h / tau) - h_y + (rho - log V) tau."""
    log_sum = torch.logsumexp(logits / tau[:, None], 1)
    target = logits.gather(1, labels[:, None])[:, 0]
    return tau * log_sum - target + (rho - math.log(logits.shape[1])) * tau


def entropy(logits: Tensor, tau: Tensor) -> Tensor:
    """Of softmax(h / tau), in nats."""
    log_p = torch.log_softmax(logits / tau[:, None], 1)
    return -(log_p.exp() * log_p).sum(1)


def slope(logits: Tensor, tau: Tensor, rho: float) -> Tensor:
    """dF/dtau = rho - KL(softmax(h / tau) || u) = rho - log V + entropy; it rises with tau."""
    return rho - math.log(logits.shape[1]) + entropy(logits, tau)


def exact_tau(logits: Tensor, rho: float, allowed: Range, steps: int = BISECTION_STEPS) -> Tensor:
    """tau* of each row by bisection of the slope, all rows at once; the nearer end where no root is allowed."""
    low = torch.full((len(logits),), allowed.low, dtype=logits.dtype, device=logits.device)
    high = torch.full_like(low, allowed.high)
    for _ in range(steps):
        middle = (low + high) / 2
        below = slope(logits, middle, rho) < 0
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def constant_tau(logits: Tensor, rho: float, allowed: Range, steps: int = 30) -> float:
    """The one temperature with the smallest mean F over the rows, by bisection of the mean slope."""
    low, high = allowed.low, allowed.high
    for _ in range(steps):
        middle = (low + high) / 2
        if slope(logits, torch.full((len(logits),), middle, dtype=logits.dtype), rho).mean() < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def primal_value(logits: Tensor, p: Tensor, labels: Tensor) -> Tensor:
    """sum_j p_j (h_j - h_y) of each row."""
    return (p * (logits - logits.gather(1, labels[:, None]))).sum(1)


def clamped(tau: Tensor, allowed: Range, steps: int = BISECTION_STEPS) -> Tensor:
    """Whether a bisected tau stands at an end of the range, bool [n]."""
    margin = 2 * (allowed.high - allowed.low) / 2**steps
    return (tau <= allowed.low + margin) | (tau >= allowed.high - margin)


def gap_closed(logits: Tensor, tau: Tensor, rho: float, constant: float, allowed: Range) -> float:
    """1 - (F(tau) - F(tau*)) / (F(constant) - F(tau*)), means over rows; 1 is bisection, 0 the constant.

    The label's logit is in all three and cancels.
    """
    labels = torch.zeros(len(logits), dtype=torch.int64)
    best = robust_loss(logits, exact_tau(logits, rho, allowed), rho, labels).double().mean()
    at_constant = robust_loss(logits, torch.full_like(tau, constant), rho, labels).double().mean()
    return float(1 - (robust_loss(logits, tau, rho, labels).double().mean() - best) / (at_constant - best))


class Dropout(nn.Module):
    """Dropout whose masks come from a generator of its own."""

    def __init__(self, share: float, seed: int):
        super().__init__()
        self.share, self.random = share, generator(seed, "dropout")

    def forward(self, x: Tensor) -> Tensor:
        """The same shape, in training mode with a share of the entries 0 and the others scaled up."""
        if not self.training:
            return x
        kept = torch.rand(x.shape, generator=self.random).to(x.device) >= self.share
        return x * kept / (1 - self.share)


class TempNet(nn.Module):
    """The network for language models: logits [n, V] -> tau [n].

    v = l2-normalised (h - max h), x = W2 dropout(sigmoid(W1 v + b1)) + b2 with 256 entries, w = softmax(x / e^scaler),
    tau = low + (high - low) sigmoid(a . ((w - 1/256) x) + c), with a = 1 and c = 0 at the start. ``top`` feeds the
    network the largest logits in falling order in place of all in the vocabulary's: tau* depends on nothing else.
    """

    def __init__(self, vocabulary: int, seed: int, allowed: Range | None = None, hidden: int = 256,
                 dropout: float = 0.5, top: int | None = None):
        super().__init__()
        self.allowed, self.top = allowed or Range(), top
        self.first = empty_linear(top or vocabulary, hidden)
        self.dropout = Dropout(dropout, seed)
        self.second = empty_linear(hidden, hidden)
        self.scaler = nn.Parameter(torch.zeros(()))
        self.last = _last(hidden)
        for name in ("first", "second"):
            _initialise(getattr(self, name), seed, name)

    def forward(self, logits: Tensor) -> Tensor:
        """Gradients reach the network alone: logits are detached."""
        shifted = logits.detach() - logits.detach().amax(1, keepdim=True)
        if self.top is not None:
            shifted = shifted.topk(self.top, dim=1).values
        x = self.second(self.dropout(torch.sigmoid(self.first(normalize(shifted, dim=1)))))
        return _squashed(self.last, x, x, self.scaler, self.allowed)


class PrototypeTempNet(nn.Module):
    """The network for contrastive learning: embeddings [n, d] -> tau [n].

    x = dropout(sigmoid(W v + b)) with d entries, q = products of x with 256 normalised prototypes,
    w = softmax(q / e^scaler) with scaler log 0.01 at the start, tau = low + (high - low) sigmoid(a . ((w - 1/256)
    sigmoid(q)) + c).
    """

    def __init__(self, width: int, seed: int, allowed: Range, prototypes: int = 256, dropout: float = 0.5):
        super().__init__()
        self.allowed = allowed
        self.projection = empty_linear(width, width)
        self.dropout = Dropout(dropout, seed)
        self.prototypes = nn.Parameter(torch.empty(prototypes, width))
        self.scaler = nn.Parameter(torch.tensor(math.log(0.01)))
        self.last = _last(prototypes)
        _initialise(self.projection, seed, "projection")
        fill_normal(self.prototypes, 1.0, seed, "prototypes")

    def forward(self, embeddings: Tensor) -> Tensor:
        """Gradients reach the network alone: embeddings are detached."""
        x = self.dropout(torch.sigmoid(self.projection(embeddings.detach())))
        products = x @ normalize(self.prototypes, dim=1).T
        return _squashed(self.last, products, torch.sigmoid(products), self.scaler, self.allowed)


def _squashed(last: nn.Linear, scores: Tensor, values: Tensor, scaler: Tensor, allowed: Range) -> Tensor:
    """low + (high - low) sigmoid(last((softmax(scores / e^scaler) - 1/m) values))."""
    weights = torch.softmax(scores / scaler.exp(), 1) - 1 / scores.shape[1]
    return allowed.low + (allowed.high - allowed.low) * torch.sigmoid(last(weights * values))[:, 0]


def _last(inputs: int) -> nn.Linear:
    layer = empty_linear(inputs, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _initialise(layer: nn.Linear, seed: int, name: str) -> None:
    """Uniform within 1 / sqrt(inputs), biases 0."""
    fill_uniform(layer.weight, layer.in_features**-0.5, seed, name)
    nn.init.zeros_(layer.bias)
