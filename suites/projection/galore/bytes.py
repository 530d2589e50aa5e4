"""Counting: what optimizers keep, and how many gradient bytes are alive at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from reference.methods.projection import llama
from reference.methods.projection.galore import GaLoreAdamW
from reference.methods.state import state_bytes
from reference.testbeds import char_lm

# a quarter of the width, as published for all sizes
RANKS = {"LM-M": 32, "60M": 128, "1B": 512, "7B": 1024}
# torch counts steps in a float32 tensor per parameter
_STEP_COUNTER = 4


def account(arm: str, model: str) -> dict[str, float]:
    """State bytes of one arm on one model, their distance from the formula, and the savings against AdamW."""
    matrices, others, itemsize = _shapes(model)
    everything = [*matrices, *others]
    adamw = sum(llama.adam_bytes(shape, itemsize) + _STEP_COUNTER for shape in everything)
    rank, bits = RANKS[model], 8 if arm == "galore_8bit" else 32
    formula = adamw
    if arm != "adamw":
        formula = sum(llama.galore_bytes(shape, rank, itemsize, bits) for shape in matrices)
        formula += sum(llama.plain_bytes(shape, itemsize, bits) for shape in others)
    counted = state_bytes(_stepped(arm, model, rank, bits))
    weights = itemsize * sum(torch.Size(shape).numel() for shape in everything)
    largest = itemsize * max(torch.Size(shape).numel() for shape in everything)
    gradients = largest if arm == "galore_8bit" else weights
    return {
        "state_bytes": counted,
        "formula_gap": abs(counted - formula),
        "saving": 1.0 - counted / adamw,
        "total_saving": 1.0 - (weights + gradients + counted) / (2 * weights + adamw),
    }


def peak_gradient_bytes(
    model: char_lm.CharLM, batch: tuple[torch.Tensor, ...], install: Callable[[], Iterable[Any]]
) -> int:
    """Most bytes of ``.grad`` alive at once during a backward pass, seen each time a parameter's gradient is complete.

    ``install`` registers what happens during the pass, after the counting hooks.
    """
    parameters = list(model.parameters())
    peak = 0

    def count(_: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, sum(p.grad.nbytes for p in parameters if p.grad is not None))

    handles = [p.register_post_accumulate_grad_hook(count) for p in parameters]
    handles += list(install())
    model.loss(*batch).backward()
    for handle in handles:
        handle.remove()
    return peak


def _shapes(model: str) -> tuple[list[tuple[int, int]], list[tuple[int, ...]], int]:
    """(projected matrices, all other parameters, bytes per scalar)."""
    if model != "LM-M":
        shapes = llama.LLAMA[model]
        return list(shapes.matrices()), list(shapes.others()), torch.bfloat16.itemsize
    named = list(char_lm.make("M", 0).named_parameters())
    linears = [tuple(p.shape) for _, p in char_lm.parameter_roles(named).linears]
    rest = [tuple(p.shape) for _, p in named]
    for shape in linears:
        rest.remove(shape)
    return linears, rest, torch.float32.itemsize


def _stepped(arm: str, model: str, rank: int, bits: int) -> torch.optim.Optimizer:
    """The arm's optimizer with its state: after a real step of LM-M, by shapes alone for LLaMA."""
    matrices, others, _ = _shapes(model)
    if model == "LM-M":
        pieces = [[torch.nn.Parameter(torch.zeros(shape)) for shape in part] for part in (matrices, others)]
    else:
        pieces = [llama.meta_parameters(iter(part), torch.bfloat16) for part in (matrices, others)]
    if arm == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW([*pieces[0], *pieces[1]])
    else:
        optimizer = GaLoreAdamW([{"params": pieces[0], "rank": rank}, {"params": pieces[1]}], bits=bits)
    if model != "LM-M" and isinstance(optimizer, GaLoreAdamW):
        optimizer.allocate()
        return optimizer
    random = torch.Generator().manual_seed(0)
    for p in [*pieces[0], *pieces[1]]:
        p.grad = torch.empty_like(p) if p.is_meta else torch.randn(p.shape, generator=random)
    optimizer.step()
    return optimizer
