"""The arms as optimizers, and what every training run reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from reference.methods.quantization.blockwise8bit import BlockwiseAdam8bit, BlockwiseMomentum8bit
from reference.testbeds import char_lm, training

Tensor = torch.Tensor
Metrics = dict[str, float | list[float]]

WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.999)
EPS = 1e-8
MIN_SIZE = 4096

# What each 8-bit arm asks of the optimizer; torch's own optimizers are the arm fp32.
OPTIONS: dict[str, dict[str, Any]] = {
    "block64": {"map": "dynamic", "block": 64},
    "block256": {"map": "dynamic", "block": 256},
    "block2048": {"map": "dynamic", "block": 2048},
    "tensor": {"map": "dynamic", "block": None},
    "dynamic_block": {"map": "dynamic", "block": 256},
    "dynamic_tensor": {"map": "dynamic", "block": None},
    "linear_block": {"map": "linear", "block": 256},
    "linear_tensor": {"map": "linear", "block": None},
}


def adam_for(arm: str, model: torch.nn.Module, lr: float) -> torch.optim.Optimizer:
    """The arm's optimizer; a stable embedding keeps 32-bit states for the token embedding."""
    settings = {"lr": lr, "betas": BETAS, "eps": EPS, "weight_decay": WEIGHT_DECAY}
    if arm == "fp32":
        return torch.optim.AdamW(model.parameters(), **settings)
    embedding = model.token_embedding.weight
    others = [p for p in model.parameters() if p is not embedding]
    groups = [{"params": [embedding], "bits": 32 if model.config.stable_embedding else 8}, {"params": others}]
    return BlockwiseAdam8bit(groups, **settings, **OPTIONS[arm])


def training_metrics(history: training.History, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Metrics:
    """What every training experiment reports."""
    stretches = np.array_split(np.array(history.train_loss), min(20, len(history.train_loss)))
    return {
        "val_loss": history.val_loss,
        "train_curve": [float(part.mean()) for part in stretches],
        "failed": float(history.failed),
        "eligible": sum(p.numel() for p in eligible(optimizer)) / char_lm.parameter_count(model),
    }


def eligible(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters whose states are, or in fp32 would be, kept in 8 bits."""
    pairs = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    if isinstance(optimizer, BlockwiseAdam8bit | BlockwiseMomentum8bit):
        return [p for p, group in pairs if optimizer.is_eligible(p, group)]
    return [p for p, _ in pairs if p.numel() >= MIN_SIZE]


def lost_share(optimizer: torch.optim.Optimizer) -> float:
    """The share of 8-bit entries whose v is coded as 0 beside a nonzero m; 0 where no state is in 8 bits."""
    lost, entries = optimizer.lost_second_moments() if isinstance(optimizer, BlockwiseAdam8bit) else (0, 0)
    return lost / entries if entries else 0.0
