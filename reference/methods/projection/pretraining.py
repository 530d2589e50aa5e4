"""Character models from scratch, the way all projection suites train them: one model, one schedule, many optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from reference.methods.state import state_bytes
from reference.testbeds import char_lm, text, training

BATCH = 16


@dataclass(frozen=True)
class Setting:
    """What is equal for all arms of a comparison: model size, steps, text, and the seeds of data and initial values."""

    size: str
    steps: int
    data_seed: int
    init_seed: int
    corpus_bytes: int = 2_000_000

    def model(self) -> char_lm.CharLM:
        """A fresh model."""
        return char_lm.make(self.size, self.init_seed)

    def batches(self) -> training.Batches:
        """The stream of CODE windows, the same for all arms."""
        corpus = text.corpus("CODE", self.corpus_bytes)
        return training.text_batches(corpus, BATCH, char_lm.SIZES[self.size].context, self.data_seed)


def linear_names(model: nn.Module) -> list[str]:
    """Module names of the attention and MLP layers, the ones that projection methods act on."""
    return [name.removesuffix(".weight") for name, _ in char_lm.parameter_roles(model.named_parameters()).linears]


def projected_groups(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    """Two parameter groups: attention and MLP matrices with ``settings``, all others (embeddings, head, ...) plain."""
    linears = [p for _, p in char_lm.parameter_roles(model.named_parameters()).linears]
    chosen = {id(p) for p in linears}
    others = [p for p in model.parameters() if id(p) not in chosen and p.requires_grad]
    return [{"params": linears, **settings}, {"params": others}]


def pretrain(
    setting: Setting,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    on_gradients: Callable[[int, dict[str, torch.Tensor]], None] | None = None,
) -> training.History:
    """Train with 10 % warm-up and a cosine down to 10 %, batch 16."""
    schedule = training.warmup_cosine(setting.steps)
    return training.train(
        model, setting.batches(), optimizer, schedule, setting.steps, on_gradients=on_gradients
    )


def learning_curve(history: training.History, stretches: int = 20) -> list[float]:
    """Mean training loss over equal stretches of the run."""
    parts = np.array_split(np.array(history.train_loss), min(stretches, len(history.train_loss)))
    return [float(part.mean()) for part in parts]


def training_metrics(history: training.History, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What every training run reports: the losses in nats, whether it failed (0 or 1), and the optimizer's bytes."""
    return {
        "val_loss": history.val_loss,
        "train_curve": learning_curve(history),
        "failed": float(history.failed),
        "state_bytes": state_bytes(optimizer),
    }


def record_gradients(setting: Setting, lr: float, at: Iterable[int]) -> dict[int, dict[str, torch.Tensor]]:
    """Gradients of the attention and MLP matrices at the steps ``at`` of an AdamW run, by layer name."""
    wanted, kept = set(at), {}
    model = setting.model()
    names = [f"{name}.weight" for name in linear_names(model)]

    def keep(step: int, gradients: dict[str, torch.Tensor]) -> None:
        if step in wanted:
            kept[step] = {name: gradients[name].clone() for name in names}

    pretrain(setting, model, torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0), keep)
    return kept


def stable_rank(G: torch.Tensor) -> float:
    """|G|_F^2 / |G|_2^2, between 1 and the rank."""
    S = torch.linalg.svdvals(G.float())
    return float((S.square().sum() / S[0].square()).item())
