"""How much arithmetic a convolutional net does on an image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def forward_flops(model: nn.Module, side: int) -> float:
    """Two for each multiplication and addition of the convolutions and linear layers, for one image [1, side, side]."""
    total = 0.0

    def count(module: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal total
        total += 2.0 * y[0].numel() * module.weight[0].numel()

    layers = [item for item in model.modules() if isinstance(item, nn.Conv2d | nn.Linear)]
    hooks = [item.register_forward_hook(count) for item in layers]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(1, 1, side, side))
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return total
