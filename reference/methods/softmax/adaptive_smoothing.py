"""Adaptive smoothing, after Bai et al., Improving the Accuracy-Robustness Trade-Off of Classifiers (arXiv 2301.12554).

An accurate classifier g and a robust one h are mixed in probability space:

    f(x) = log((1 - alpha) softmax(s_g g(x)) + alpha softmax(s_h h(x))),

alpha a constant, or a small network's guess at how much x looks attacked. With alpha in [1/2, 1], wherever the
probability that h gives its class exceeds that of every other by (1 - alpha) / alpha, f predicts that class, whatever g
says; so a margin that h keeps within a radius certifies f within that radius.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, binary_cross_entropy_with_logits, cross_entropy
from torch.nn.init import ones_, zeros_

from reference.testbeds.seeding import empty_linear, fill_uniform, he_bound

Alpha = float | Callable[[Tensor], Tensor]

G_SCALE, H_SCALE = 2.0, 1.0  # s_g and s_h of the paper's CIFAR-100 configuration
LOWEST, SPAN = 0.84, 0.15  # c0 and c: a network's alpha lies in (c0, c0 + c)
BCE_WEIGHT, PRODUCT_WEIGHT = 1.5, 0.2  # the loss is 1.5 BCE + 0 CE + 0.2 BCE * CE


class Features(Protocol):
    """A classifier that can say what its last layer reads."""

    def features(self, x: Tensor) -> Tensor:
        """Images -> [n, width]."""

    def head(self, features: Tensor) -> Tensor:
        """[n, width] -> logits."""


def mix(g_logits: Tensor, h_logits: Tensor, alpha: float | Tensor, g_scale: float = G_SCALE, h_scale: float = H_SCALE,
        ) -> Tensor:
    """log((1 - alpha) softmax(g_scale g) + alpha softmax(h_scale h)), [n, classes]; finite for alpha 0 and 1, too.

    `alpha` is a number or one per row, [n]. Computed from logarithms, so that no probability underflows.
    """
    alpha = torch.as_tensor(alpha, dtype=g_logits.dtype, device=g_logits.device)
    if alpha.ndim:
        alpha = alpha[:, None]
    log_g = torch.log1p(-alpha) + (g_scale * g_logits).log_softmax(1)
    log_h = torch.log(alpha) + (h_scale * h_logits).log_softmax(1)
    return torch.logaddexp(log_g, log_h)


class Mixed(nn.Module):
    """The mixed classifier, images -> log-probabilities; gradients run through g, h and alpha."""

    def __init__(self, g: nn.Module, h: nn.Module, alpha: Alpha, g_scale: float = G_SCALE, h_scale: float = H_SCALE):
        super().__init__()
        self.g, self.h, self.alpha = g, h, alpha
        self.g_scale, self.h_scale = g_scale, h_scale

    def alpha_of(self, x: Tensor) -> float | Tensor:
        """The weight of h for every image."""
        return self.alpha(x) if callable(self.alpha) else self.alpha

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, height, width] -> [n, classes]."""
        if not isinstance(self.alpha, MixingNet):
            return mix(self.g(x), self.h(x), self.alpha_of(x), self.g_scale, self.h_scale)
        of_g, of_h = self.g.features(x), self.h.features(x)  # once for the logits and for alpha
        alpha = self.alpha.weight(self.alpha.score_of(of_g, of_h))
        return mix(self.g.head(of_g), self.h.head(of_h), alpha, self.g_scale, self.h_scale)


class MixingNet(nn.Module):
    """alpha(x) = span * sigmoid(norm(net(features of g and h)) * scale + bias) + lowest, one number per image.

    `net` has one hidden layer; `norm` is a batch norm without parameters. Only these are trained: g and h are used in
    evaluation mode. `width` counts the features of both.
    """

    def __init__(self, g: Features, h: Features, width: int, seed: int, hidden: int = 64,
                 lowest: float = LOWEST, span: float = SPAN):
        super().__init__()
        self._classifiers = (g, h)  # in a tuple, so that they are not among this module's parameters
        self.first, self.second = empty_linear(width, hidden), empty_linear(hidden, 1)
        for layer in (self.first, self.second):
            fill_uniform(layer.weight, he_bound(layer.in_features), seed, "mixing", layer.out_features)
            zeros_(layer.bias)
        self.scale, self.bias = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        ones_(self.scale), zeros_(self.bias)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("var", torch.ones(1))
        self.lowest, self.span = lowest, span

    def score(self, x: Tensor) -> Tensor:
        """The sigmoid's argument, [n]: positive where the image looks attacked."""
        return self.score_of(*(classifier.features(x) for classifier in self._classifiers))

    def score_of(self, of_g: Tensor, of_h: Tensor) -> Tensor:
        """The same from the features of g and h."""
        both = torch.cat([of_g, of_h], 1)
        raw = self.second(torch.relu(self.first(both)))
        normal = batch_norm(raw, self.mean, self.var, training=self.training)
        return (normal * self.scale + self.bias).squeeze(1)

    def weight(self, score: Tensor) -> Tensor:
        """alpha in (lowest, lowest + span)."""
        return self.lowest + self.span * torch.sigmoid(score)

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, height, width] -> alpha [n]."""
        return self.weight(self.score(x))


def mixing_loss(score: Tensor, log_probabilities: Tensor, y: Tensor, attacked: Tensor) -> Tensor:
    """1.5 BCE + 0.2 BCE * CE, a scalar: BCE of the score against `attacked` [n] (1 for attacked images), CE of f."""
    bce = binary_cross_entropy_with_logits(score, attacked.to(score.dtype))
    return BCE_WEIGHT * bce + PRODUCT_WEIGHT * bce * cross_entropy(log_probabilities, y)


class MixingTraining(nn.Module):
    """What `reference.testbeds.training.train` needs: `loss(x, y)` on clean images and on images attacked through f."""

    def __init__(self, mixed: Mixed, attack: Callable[[Mixed, Tensor, Tensor], Tensor]):
        super().__init__()
        self.mixed, self.attack = mixed, attack
        self.net = mixed.alpha

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Half the images are clean, half attacked; in evaluation mode, where no gradient is kept, clean ones only."""
        training = self.training
        self.mixed.eval()
        x_adv = self.attack(self.mixed, x, y) if training else x[:0]
        self.net.train(training)
        both, labels = torch.cat([x, x_adv]), torch.cat([y, y[: len(x_adv)]])
        attacked = torch.arange(len(both)) >= len(x)
        with torch.no_grad():
            of_g, of_h = self.mixed.g.features(both), self.mixed.h.features(both)
            g, h = self.mixed.g.head(of_g), self.mixed.h.head(of_h)
        score = self.net.score_of(of_g, of_h)
        f = mix(g, h, self.net.weight(score), self.mixed.g_scale, self.mixed.h_scale)
        return mixing_loss(score, f, labels, attacked)


def needed_margin(alpha: float) -> float:
    """(1 - alpha) / alpha: what h's class must have over every other, in probability, to be safe from any g."""
    return (1.0 - alpha) / alpha


def margins(log_probabilities: Tensor) -> Tensor:
    """The largest probability minus the second, [n]."""
    top = log_probabilities.exp().topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def lipschitz_radius(h: Tensor, lipschitz: Tensor, alpha: float) -> Tensor:
    """min over i != y of (alpha (h_y - h_i) + alpha - 1) / (alpha (L_y + L_i)), [n], at least 0; y is h's class.

    `h` are probabilities [n, classes] and `lipschitz` [classes] their constants in the norm of the radius.
    """
    top, y = h.max(1, keepdim=True)
    room = (alpha * (top - h) + alpha - 1) / (alpha * (lipschitz[y] + lipschitz))
    return room.scatter(1, y, torch.inf).min(1).values.clamp_min(0.0)


def gaussian_radius(h: Tensor, alpha: float, sigma: float) -> Tensor:
    """min over i != y of sigma/2 (Phi^-1(alpha h_y) - Phi^-1(alpha h_i + 1 - alpha)), [n], at least 0, in l_2.

    `h` [n, classes] are the mean probabilities of a classifier under Gaussian noise of standard deviation sigma.
    """
    top, y = h.max(1, keepdim=True)
    quantile = torch.special.ndtri
    room = quantile(alpha * top) - quantile((alpha * h + 1 - alpha).clamp_max(1.0))
    return (0.5 * sigma * room.scatter(1, y, torch.inf).min(1).values).clamp_min(0.0)

