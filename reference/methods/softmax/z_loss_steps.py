"""One training step of an output layer, in several ways: loss, gradient for the layer below, and the update in place.

All are plain gradient descent on the mean loss of hidden [m, d] and targets [m], without autograd where that would cost
more than the arithmetic. They are what the factored Z-loss competes with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from reference.methods.softmax import z_loss_factored, z_loss_numba
from reference.methods.softmax.heads import AdaptiveHead, HierarchicalHead
from reference.methods.softmax.z_loss import ZLoss, parts_of
from reference.methods.softmax.z_loss_factored import Factored

OutputGradient = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def z_output_gradient(loss: ZLoss) -> OutputGradient:
    """Outputs [m, D] and targets -> (losses [m], gradient of their mean with respect to the outputs, [m, D])."""

    def gradient(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        m, classes = outputs.shape
        parts = parts_of(outputs, targets)
        slopes = loss.slopes(parts, classes)
        found = outputs.mul_(2 * slopes.q[:, None] / m).add_(slopes.s[:, None] / m)
        found[torch.arange(m), targets] += slopes.o / m
        return loss.loss(parts, classes), found

    return gradient


def softmax_output_gradient(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the cross entropy of softmax."""
    m = len(outputs)
    log_p = torch.log_softmax(outputs, dim=1)
    chosen = torch.arange(m), targets
    losses = -log_p[chosen]
    found = log_p.exp_().div_(m)
    found[chosen] -= 1 / m
    return losses, found


def dense_step(
    weight: Tensor, hidden: Tensor, targets: Tensor, output_gradient: OutputGradient, eta: float
) -> tuple[Tensor, Tensor]:
    """W [D, d] <- W - eta G^T hidden; returns losses [m] and G W [m, d]. About 6 m D d FLOPs."""
    losses, found = output_gradient(hidden @ weight.T, targets)
    gradient = found @ weight
    weight.addmm_(found.T, hidden, alpha=-eta)
    return losses, gradient


@torch.no_grad()
def hierarchical_step(
    head: HierarchicalHead, hidden: Tensor, targets: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """The two-level softmax: all classes, and the words of the targets' classes alone; O(m sqrt(D) d)."""
    classes, places = targets // head.size, targets % head.size
    words = head.word_weight[classes]
    outputs = torch.bmm(words, hidden[:, :, None])[..., 0] + head.mask(classes)
    word_losses, found = softmax_output_gradient(outputs, places)
    class_losses, gradient = dense_step(head.class_weight, hidden, classes, softmax_output_gradient, eta)
    gradient += torch.bmm(found[:, None], words)[:, 0]
    head.word_weight.index_add_(0, classes, found[..., None] * hidden[:, None], alpha=-eta)
    return class_losses + word_losses, gradient


def adaptive_step(head: AdaptiveHead, hidden: Tensor, targets: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """torch's adaptive softmax by autograd: clusters without a target get no gradient and are left alone."""
    hidden = hidden.detach().requires_grad_()
    head.zero_grad(set_to_none=True)
    output = head.layer(hidden, targets)
    output.loss.backward()
    with torch.no_grad():
        for parameter in head.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=eta)
    assert hidden.grad is not None
    return -output.output.detach(), hidden.grad


@dataclass
class FactoredNumba:
    """A `Factored` state whose single-example steps are made by the Numba kernel, on the same memory."""

    state: Factored
    scratch: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.arrays = [tensor.numpy() for tensor in (self.state.V, self.state.U, self.state.U_inverse,
                                                     self.state.omega, self.state.Q, self.state.wbar)]
        self.scratch = z_loss_numba.scratch_for(len(self.state.omega), self.arrays[0].dtype)

    def step(self, hidden: Tensor, targets: Tensor, loss: ZLoss, eta: float) -> tuple[Tensor, Tensor]:
        """As `z_loss_factored.step`; a mini-batch is left to it."""
        if len(hidden) > 1:
            return z_loss_factored.step(self.state, hidden, targets, loss, eta)
        gradient = torch.empty_like(hidden)
        value = z_loss_numba.step_one(
            *self.arrays, hidden[0].numpy(), int(targets[0]), loss.sharpness, loss.b(len(self.arrays[0])), eta,
            gradient[0].numpy(), self.scratch)
        return hidden.new_tensor([value]), gradient
