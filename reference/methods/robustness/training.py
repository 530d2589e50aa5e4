"""Training against attacks: losses that `reference.testbeds.training.train` can minimise as if they were models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from reference.methods.robustness.attacks import pgd, project, random_start
from reference.testbeds.seeding import generator

_STEP_SHARE = 2.5  # of eps, divided by the number of steps
_TRADES_START = 1e-3  # standard deviation of the noise from which TRADES sets out


class AttackedTraining(nn.Module):
    """A network `net` whose `loss(x, y)` is one under attack while training, and clean cross entropy in evaluation.

    `attacked_loss` says which. The attack sees the network in evaluation mode. Starts are drawn from the seed.
    """

    def __init__(self, net: nn.Module, eps: float, steps: int, seed: int):
        super().__init__()
        self.net, self.eps, self.steps = net, eps, steps
        self.random = generator("attacked training", seed)

    def forward(self, x: Tensor) -> Tensor:
        """Images -> logits."""
        return self.net(x)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss in nats, a scalar."""
        return self.attacked_loss(x, y) if self.training else cross_entropy(self.net(x), y)

    def attacked_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Subclasses say."""
        raise NotImplementedError

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The network in evaluation mode, and then as it was."""
        was_training = self.net.training
        self.net.eval()
        yield
        self.net.train(was_training)

    @property
    def step_size(self) -> float:
        """Of one attack step."""
        return _STEP_SHARE * self.eps / self.steps


class AdversarialTraining(AttackedTraining):
    """Cross entropy of PGD images (Madry et al. 2018, arXiv 1706.06083)."""

    def attacked_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """E[CE(net(x'), y)], x' by PGD on the cross entropy from a random start."""
        with self.evaluating():
            start = random_start(x, self.eps, self.random)
            x_adv = pgd(self.net, x, y, self.eps, steps=self.steps, step_size=self.step_size, start=start)
        return cross_entropy(self.net(x_adv), y)


class Trades(AttackedTraining):
    """TRADES (Zhang et al. 2019, arXiv 1901.08573): clean cross entropy plus beta times KL(p(x) || p(x'))."""

    def __init__(self, net: nn.Module, eps: float, steps: int, seed: int, beta: float):
        super().__init__(net, eps, steps, seed)
        self.beta = beta

    def attacked_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """E[CE(net(x), y) + beta KL(p(x) || p(x'))], x' by PGD on that divergence from beside x."""
        with self.evaluating():
            with torch.no_grad():
                clean = self.net(x).softmax(1)

            def divergence(scores: Tensor, _: Tensor) -> Tensor:
                return kl_div(scores.log_softmax(1), clean, reduction="none").sum(1)

            noise = torch.empty(x.shape).normal_(generator=self.random).to(x.device)
            start = project(x + _TRADES_START * noise, x, self.eps)
            x_adv = pgd(self.net, x, y, self.eps, steps=self.steps, step_size=self.step_size, start=start,
                        objective=divergence)
        logits = self.net(x)
        apart = kl_div(self.net(x_adv).log_softmax(1), logits.log_softmax(1), reduction="batchmean", log_target=True)
        return cross_entropy(logits, y) + self.beta * apart
