"""Cheaper inference of a trained mixture of experts by changing where tokens go: fewer experts, fewer calls, buffers.

A survey (Liu et al. 2024, arXiv 2412.14219) of techniques at the level of the model, the system and the kernel. Each of
those here is a gate put in place of another: it gets the tokens [n, width] of a layer and answers with their routes.
Kernels are in ``moe_dispatch``, caches in ``expert_cache``, which experts to keep in ``moe_inference_survey_pruning``,
the models of the comparison in ``moe_inference_survey_training`` and ``_models``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from reference.methods.softmax.moe_dispatch import capacity_of, places
from reference.testbeds import decoding
from reference.testbeds.moe_lm import MoE, MoELM, Routes, top_k_gates

Wrap = Callable[[int, nn.Module], nn.Module]


class PrunedGate(nn.Module):
    """The top k among the experts that are kept (bool [experts]); gates are a softmax over these k, as before."""

    def __init__(self, gate: nn.Module, keep: Tensor, top_k: int):
        super().__init__()
        if int(keep.sum()) < top_k:
            raise ValueError(f"{int(keep.sum())} experts are kept, but every token calls {top_k}")
        self.gate, self.keep, self.top_k = gate, keep, top_k

    def forward(self, x: Tensor) -> Routes:
        """[tokens, width] -> routes; logits of pruned experts are -inf."""
        logits = self.gate(x).logits.masked_fill(~self.keep, -torch.inf)
        return Routes(logits, *top_k_gates(logits, self.top_k))


class DynamicGate(nn.Module):
    """The second expert is not called where its probability is below ``beta`` times the first one's.

    The first then gets the whole gate. Probabilities are among all experts, p2 / p1 = exp(l2 - l1).
    """

    def __init__(self, gate: nn.Module, beta: float):
        super().__init__()
        self.gate, self.beta = gate, beta

    def forward(self, x: Tensor) -> Routes:
        """[tokens, width] -> routes, the gate of a call that is saved being 0."""
        routes = self.gate(x)
        saved = second_over_first(routes) < self.beta
        return replace(routes, gates=_first_alone(routes.gates, saved))


class RandomGate(nn.Module):
    """The second expert is not called for a random ``share`` of the tokens: what saved calls cost without a choice."""

    def __init__(self, gate: nn.Module, share: float, random: torch.Generator):
        super().__init__()
        self.gate, self.share, self.random = gate, share, random

    def forward(self, x: Tensor) -> Routes:
        """[tokens, width] -> routes, the gate of a call that is saved being 0."""
        routes = self.gate(x)
        return replace(routes, gates=_first_alone(routes.gates, torch.rand(len(x), generator=self.random) < self.share))


class CapacityGate(nn.Module):
    """Calls beyond ``factor`` times an expert's average are dropped and leave the residual stream as it is.

    The batch of one call counts as the group whose tokens share the buffers; gates are not renormalised (GShard).
    """

    def __init__(self, gate: nn.Module, factor: float):
        super().__init__()
        self.gate, self.factor = gate, factor

    def forward(self, x: Tensor) -> Routes:
        """[tokens, width] -> routes, the gate of a dropped call being 0."""
        routes = self.gate(x)
        tokens, k = routes.chosen.shape
        experts = routes.logits.shape[1]
        _, fits = places(routes.chosen, experts, capacity_of(tokens, k, experts, self.factor))
        return replace(routes, gates=routes.gates * fits)


class Recorder(nn.Module):
    """Leaves routes as they are and keeps them, with the tokens they were made for."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.gate = gate
        self.tokens: list[Tensor] = []
        self.routes: list[Routes] = []

    def forward(self, x: Tensor) -> Routes:
        """[tokens, width] -> routes."""
        routes = self.gate(x)
        self.tokens.append(x)
        self.routes.append(routes)
        return routes

    def all_tokens(self) -> Tensor:
        """[tokens of all calls, width]."""
        return torch.cat(self.tokens)

    def all_routes(self) -> Routes:
        """The routes of all calls, one after the other."""
        parts = [(routes.logits, routes.chosen, routes.gates) for routes in self.routes]
        return Routes(*(torch.cat(column) for column in zip(*parts, strict=True)))


def second_over_first(routes: Routes) -> Tensor:
    """p2 / p1 of each token, within 0..1."""
    top = routes.logits.topk(2).values
    return (top[:, 1] - top[:, 0]).exp()


def _first_alone(gates: Tensor, where: Tensor) -> Tensor:
    """Gates [tokens, 2] with all weight on the first where asked."""
    return torch.where(where[:, None], torch.tensor([1.0, 0.0]), gates)


@contextmanager
def replaced_gates(model: MoELM, wrap: Wrap) -> Iterator[list[nn.Module]]:
    """Put ``wrap(layer, gate)`` in each gate's place; the old ones return at the end."""
    layers = model.layers()
    before = [layer.gate for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer.gate = wrap(index, before[index])
        yield [layer.gate for layer in layers]
    finally:
        for layer, gate in zip(layers, before, strict=True):
            layer.gate = gate


@torch.no_grad()
def recorded(model: MoELM, tokens: Tensor) -> list[Recorder]:
    """What the gates of all layers saw and answered on characters [batch, time], row by row, in evaluation mode."""
    model.eval()
    with replaced_gates(model, lambda _, gate: Recorder(gate)) as gates:
        model(tokens)
        return [gate for gate in gates if isinstance(gate, Recorder)]


def recorded_layer(layer: MoE, tokens: Tensor) -> Recorder:
    """The same for one layer on tokens [n, width]."""
    recorder = Recorder(layer.gate)
    recorder(tokens)
    return recorder


@torch.no_grad()
def look_ahead(model: MoELM, tokens: Tensor, layer: int) -> Tensor:
    """The experts of layer ``layer + 1`` guessed before ``layer``'s own have run: int64 [batch * time, k].

    The next layer's norm and gate are applied to the residual stream as it enters this layer's experts.
    """
    model.eval()
    streams: list[Tensor] = []
    hook = model.blocks[layer].mlp_norm.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0]))
    try:
        model(tokens)
    finally:
        hook.remove()
    following = model.blocks[layer + 1]
    return following.mlp.gate(following.mlp_norm(streams[0]).flatten(0, 1)).chosen


def expert_calls(recorder: Recorder) -> float:
    """Experts called per token: gates that are not 0."""
    gates = recorder.all_routes().gates
    return float((gates != 0).sum()) / len(gates)


def decode(model: MoELM, prompts: Tensor, length: int, temperature: float, random: torch.Generator) -> Tensor:
    """Prompts [batch, time] and ``length`` sampled characters behind them: [batch, time + length]."""
    model.eval()
    lengths = torch.full((len(prompts),), prompts.shape[1])
    reader = decoding.reader(model, len(prompts))
    written = decoding.generate([reader], prompts, lengths, length, temperature=temperature, random=random, end=None)
    return torch.cat([prompts, written.tokens], 1)
