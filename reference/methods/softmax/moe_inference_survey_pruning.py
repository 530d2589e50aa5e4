"""Which experts of a trained layer to keep, judged on calibration tokens and without training anything again."""

from __future__ import annotations

import torch
from torch import Tensor

from reference.methods.softmax.moe_inference_survey import Recorder
from reference.testbeds.moe_lm import MoE, top_k_gates

CRITERIA = ("random", "frequency", "gate_weight", "reconstruction")


@torch.no_grad()
def keep_experts(criterion: str, layer: MoE, seen: Recorder, removed: int, random: torch.Generator) -> Tensor:
    """The experts that stay when ``removed`` of them go: bool [experts].

    ``random`` draws; ``frequency`` keeps those called most often, ``gate_weight`` those with the largest sum of gates,
    ``reconstruction`` those with which the layer's output on the calibration tokens changes least.
    """
    routes = seen.all_routes()
    experts = routes.logits.shape[1]
    if criterion == "reconstruction":
        return least_change(layer, seen.all_tokens(), routes.logits, removed)
    if criterion == "random":
        value = torch.rand(experts, generator=random)
    else:
        weights = torch.ones_like(routes.gates) if criterion == "frequency" else routes.gates
        value = torch.zeros(experts).index_add_(0, routes.chosen.flatten(), weights.flatten())
    keep = torch.ones(experts, dtype=torch.bool)
    keep[value.argsort(stable=True)[:removed]] = False
    return keep


@torch.no_grad()
def least_change(layer: MoE, tokens: Tensor, logits: Tensor, removed: int) -> Tensor:
    """Greedy: take away the expert without which the error grows least, ``removed`` times.

    The error is |y_kept - y|^2 over the tokens [n, width], with tokens sent to the best of the experts that are left
    (after Lu et al. 2024, arXiv 2402.14800, section 3.1, which tries all sets of experts instead).
    """
    outputs = layer.every_expert(tokens)
    everything = torch.ones(logits.shape[1], dtype=torch.bool)
    target = mixed(outputs, logits, everything, layer.gate.top_k)
    keep = everything
    for _ in range(removed):
        candidates = [keep & (torch.arange(len(keep)) != expert) for expert in keep.nonzero()[:, 0]]
        errors = [(mixed(outputs, logits, kept, layer.gate.top_k) - target).square().sum() for kept in candidates]
        keep = candidates[int(torch.stack(errors).argmin())]
    return keep


def mixed(outputs: Tensor, logits: Tensor, keep: Tensor, top_k: int) -> Tensor:
    """The layer's output [n, width] from what each expert made of each token [n, experts, width], some being kept."""
    chosen, gates = top_k_gates(logits.masked_fill(~keep, -torch.inf), top_k)
    called = outputs.gather(1, chosen[..., None].expand(-1, -1, outputs.shape[2]))
    return (called * gates[..., None]).sum(1)
