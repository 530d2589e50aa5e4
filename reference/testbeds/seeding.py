"""Explicit randomness: generators and initial weights that depend on their names alone, never on the global state."""

import hashlib
import math

import torch
from torch import Tensor, nn


def generator(*keys: object) -> torch.Generator:
    """A fresh CPU generator that depends only on the printed keys: equal keys, equal stream, on every machine."""
    digest = hashlib.sha256("/".join(str(key) for key in keys).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def fill_normal(weight: Tensor, std: float, *keys: object) -> None:
    """Fill `weight` in place with N(0, std^2), drawn on the CPU from `generator(*keys)`."""
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator(*keys)))


def fill_uniform(weight: Tensor, bound: float, *keys: object) -> None:
    """Fill `weight` in place with U(-bound, bound), drawn on the CPU from `generator(*keys)`."""
    with torch.no_grad():
        weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator(*keys)))


def empty_linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with memory but without values: torch's own initialisation would use the global state."""
    return nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)


def he_bound(fan_in: int) -> float:
    """Half-width of the uniform law with variance 2 / fan_in (He et al. 2015, arXiv 1502.01852, equation 10)."""
    return math.sqrt(6.0 / fan_in)
