"""Batch norm whose statistics move with the test data: the means of AdaBN (Li et al. 2016, arXiv 1603.04779)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm


class MovingBatchNorm(nn.Module):
    """A `BatchNorm2d` that normalises by (1 - weight) * kept + weight * batch, mean and variance alike, and keeps that.

    `weight` 0 is evaluation mode, 1 uses each batch alone and forgets it, values between follow the stream. The batch's
    part carries gradients. Scale and shift are the parameters of the norm it is made from, not copies.
    """

    def __init__(self, norm: nn.BatchNorm2d, weight: float):
        super().__init__()
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"the batch's weight must lie in 0..1, not {weight}")
        self.scale, self.shift = norm.weight, norm.bias
        self.share, self.eps = weight, norm.eps
        self.register_buffer("mean", norm.running_mean.clone())
        self.register_buffer("var", norm.running_var.clone())

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, height, width] -> the same shape."""
        if self.share == 0.0:
            return batch_norm(x, self.mean, self.var, self.scale, self.shift, training=False, eps=self.eps)
        if self.share == 1.0:
            return batch_norm(x, None, None, self.scale, self.shift, training=True, eps=self.eps)
        var, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
        mean, var = torch.lerp(self.mean, mean, self.share), torch.lerp(self.var, var, self.share)
        self.mean, self.var = mean.detach(), var.detach()
        factor = self.scale * torch.rsqrt(var + self.eps)
        return x * factor[:, None, None] + (self.shift - mean * factor)[:, None, None]


def move_statistics(model: nn.Module, weight: float) -> list[MovingBatchNorm]:
    """Replace every `BatchNorm2d` inside `model` by a `MovingBatchNorm`; the new norms, in the model's order."""
    norms = []
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d):
                norms.append(MovingBatchNorm(child, weight))
                setattr(parent, name, norms[-1])
    return norms
