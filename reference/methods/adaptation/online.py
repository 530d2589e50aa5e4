"""Test-time adaptation: classifiers that change themselves on each batch of a stream without labels.

An adapter works on its own copy of the model, so that every stream begins with the source model. Calling it with a
batch float [n, channels, height, width] predicts the batch, float [n, classes] with rows that sum to 1, and adapts;
predictions come from the same forward pass as the gradient, as in TENT. A model has `features(x)`, what its last layer
`head` reads, and is called for logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reference.methods.adaptation.batch_statistics import MovingBatchNorm, move_statistics

Loss = Callable[[Tensor], Tensor]


class Classifier(Protocol):
    """A network with a linear last layer."""

    head: nn.Module

    def features(self, x: Tensor) -> Tensor:
        """What the head reads, [n, width]."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits [n, classes]."""


@dataclass
class Adapter:
    """A model, and how it learns from its own predictions: not at all where there is no `loss`."""

    model: nn.Module
    loss: Loss | None = None
    optimizer: torch.optim.Optimizer | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Probabilities [n, classes] of the batch; the model takes its step."""
        if self.loss is None or self.optimizer is None:
            with torch.no_grad():
                return self.model(x).softmax(1)
        with torch.enable_grad():
            logits = self.model(x)
            self.optimizer.zero_grad(set_to_none=True)
            self.loss(logits).backward()
        self.optimizer.step()
        return logits.detach().softmax(1)


def frozen(model: nn.Module) -> Adapter:
    """The source model as it is."""
    return Adapter(copy.deepcopy(model).eval())


def adabn(model: nn.Module, weight: float = 1.0) -> Adapter:
    """Batch norm statistics of the stream, `weight` that of the newest batch; no gradient (Li et al. 2016)."""
    return Adapter(_copy(model, weight))


def tent(model: nn.Module, lr: float = 1e-3, weight: float = 1.0) -> Adapter:
    """Adam on scales and shifts of the batch norms against the mean entropy (Wang et al. 2021, arXiv 2006.10726)."""
    own = _copy(model, weight)
    return Adapter(own, entropy, torch.optim.Adam(_norm_parameters(own), lr=lr))


def shot_im(model: nn.Module, lr: float = 1e-3, weight: float = 1.0) -> Adapter:
    """SGD with momentum on all but the head against `information_loss` (Liang et al. 2020, arXiv 2002.08546)."""
    own = _copy(model, weight)
    fixed = {id(parameter) for parameter in own.head.parameters()}
    free = [parameter for parameter in own.parameters() if id(parameter) not in fixed]
    for parameter in own.head.parameters():
        parameter.requires_grad_(False)
    return Adapter(own, information_loss, torch.optim.SGD(free, lr=lr, momentum=0.9))


def pseudo_label(model: nn.Module, lr: float = 1e-3, weight: float = 1.0, confidence: float = 0.9) -> Adapter:
    """Adam on the batch norms' scales and shifts against the cross entropy with its own labels (Lee 2013).

    Only images count whose largest probability reaches `confidence`.
    """
    own = _copy(model, weight)

    def loss(logits: Tensor) -> Tensor:
        return pseudo_label_loss(logits, confidence)

    return Adapter(own, loss, torch.optim.Adam(_norm_parameters(own), lr=lr))


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions in nats: sum_k -p log p over classes, averaged over the batch."""
    log_p = logits.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def information_loss(logits: Tensor) -> Tensor:
    """Mean entropy minus the entropy of the mean prediction: certain on each image, diverse over the batch."""
    mean = logits.softmax(1).mean(0)
    return entropy(logits) + torch.special.xlogy(mean, mean).sum()


def pseudo_label_loss(logits: Tensor, confidence: float) -> Tensor:
    """Cross entropy with the predicted class, averaged over the images that are sure enough; 0 where none is."""
    sure, label = logits.detach().softmax(1).max(1)
    chosen = (sure >= confidence).to(logits.dtype)
    return (cross_entropy(logits, label, reduction="none") * chosen).sum() / chosen.sum().clamp_min(1.0)


ADAPTERS: dict[str, Callable[..., Adapter]] = {
    "none": frozen, "adabn": adabn, "tent": tent, "shot_im": shot_im, "pseudo_label": pseudo_label,
}  # fmt: skip


def accuracy_on(adapter: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, batch: int) -> float:
    """Share of a stream's images that are predicted rightly as they pass by, `batch` at a time, in their order."""
    parts = zip(x.split(batch), y.split(batch), strict=True)
    return sum(int((adapter(images).argmax(1) == labels).sum()) for images, labels in parts) / len(y)


def _copy(model: nn.Module, weight: float) -> nn.Module:
    own = copy.deepcopy(model).eval()
    move_statistics(own, weight)
    return own


def _norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Scales and shifts of the moving norms; all other parameters stop asking for gradients."""
    norms = [module for module in model.modules() if isinstance(module, MovingBatchNorm)]
    model.requires_grad_(False)
    return [parameter.requires_grad_() for norm in norms for parameter in (norm.scale, norm.shift)]
