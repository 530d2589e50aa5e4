"""The low-rank rivals of GaLore when training from scratch: LoRA on a frozen random weight, and W = BA.

Both replace the linear layers of a model; the optimizer stays an ordinary one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn.functional import linear as apply_linear


class LoRALinear(nn.Module):
    """y = x W^T + (alpha/r) x A^T B^T + bias with W frozen at its initial values (Hu et al. 2021, arXiv 2106.09685).

    A (r x in) starts uniform as LoRA's code has it, B (out x r) at zero, so the layer starts as the one it replaces.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.scale = alpha / rank
        self.register_buffer("weight", linear.weight.detach().clone())
        self.bias = linear.bias
        bound = 1.0 / math.sqrt(inputs)  # Kaiming uniform with slope sqrt(5)
        A = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
        self.A = nn.Parameter(A.to(linear.weight))
        self.B = nn.Parameter(linear.weight.new_zeros(outputs, rank))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        low = apply_linear(apply_linear(x, self.A), self.B)
        return torch.add(apply_linear(x, self.weight, self.bias), low, alpha=self.scale)


class FactorisedLinear(nn.Module):
    """y = x (BA)^T + bias; nothing of full size is kept.

    Spectral initialisation (Khodak et al. 2021, arXiv 2105.01029): B sqrt-scaled left and A sqrt-scaled right singular
    vectors of the dense layer's initial weight, so that BA is its best rank-r approximation.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        U, S, Vh = torch.linalg.svd(linear.weight.detach().float(), full_matrices=False)
        root = S[:rank].sqrt()
        self.B = nn.Parameter((U[:, :rank] * root).to(linear.weight.dtype))
        self.A = nn.Parameter((root[:, None] * Vh[:rank]).to(linear.weight.dtype))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]."""
        return apply_linear(apply_linear(x, self.A), self.B, self.bias)


def lora_from_scratch(
    model: nn.Module, names: Iterable[str], rank: int, generator: torch.Generator, alpha: float = 32.0
) -> nn.Module:
    """Replace the linear layers with these module names in place; returns ``model``. ``alpha`` 32 as in GaLore's runs.

    Everything else of the model stays trainable.
    """
    return _replace(model, names, lambda linear: LoRALinear(linear, rank, alpha, generator))


def factorise(model: nn.Module, names: Iterable[str], rank: int) -> nn.Module:
    """Replace the linear layers with these module names by W = BA in place; returns ``model``."""
    return _replace(model, names, lambda linear: FactorisedLinear(linear, rank))


def _replace(model: nn.Module, names: Iterable[str], build: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    for name in names:
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ValueError(f"{name} is a {type(layer).__name__}, not a linear layer")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, build(layer))
    return model
