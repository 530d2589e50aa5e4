"""Writing with CharLMs: greedy or by temperature and top-p, in batches of prompts of any lengths, with an end token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import one_hot, scaled_dot_product_attention

from reference.testbeds.char_lm import Attention, Block, CharLM
from reference.testbeds.tasks import END_CODE
from reference.testbeds.text import decode, encode

Combine = Callable[[list[Tensor]], Tensor]


class Reader(Protocol):
    """A model with a memory of what it has read, one row per prompt."""

    context: int

    def extend(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """Logits [batch, n, vocabulary] after each of `tokens` [batch, n], which stand at `starts` [batch] and behind.

        Whatever was read at these places before is replaced, so that going back needs nothing but a smaller start.
        """
        ...


class CachedReader:
    """A plain CharLM that keeps keys and values: reading one more character costs one column, not the whole text."""

    def __init__(self, model: CharLM, batch: int):
        self.model, self.context = model, model.config.context
        width, heads = model.config.width, model.config.heads
        head = model.head.weight
        shape = (2, len(model.blocks), batch, self.context, heads, width // heads)
        self._kept = torch.zeros(shape, dtype=head.dtype, device=head.device)
        self._rows = torch.arange(batch, device=head.device)[:, None]
        self._places = torch.arange(self.context, device=head.device)

    @torch.no_grad()
    def extend(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """See `Reader`; raises IndexError past the context."""
        model = self.model
        positions = starts[:, None] + self._places[: tokens.shape[1]]
        top = int(positions.max()) + 1
        seen = (self._places[:top] <= positions[..., None])[:, None]  # [batch, 1, n, top]
        x = model.embedding_norm(model.token_embedding(tokens)) + model.position_embedding.weight[positions]
        for layer, block in enumerate(model.blocks):
            x = x + self._attend(layer, block.attention, block.attention_norm(x), positions, seen)
            x = x + block.mlp(block.mlp_norm(x))
        return model.head(model.final_norm(x))

    def _attend(self, layer: int, attention: Attention, x: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (attention.heads, -1))
                   for part in (attention.query, attention.key, attention.value))
        keys, values = self._kept[0, layer], self._kept[1, layer]
        keys[self._rows, positions], values[self._rows, positions] = k, v
        top = seen.shape[-1]
        mixed = scaled_dot_product_attention(
            q.transpose(1, 2), keys[:, :top].transpose(1, 2), values[:, :top].transpose(1, 2), attn_mask=seen)
        return attention.output(mixed.transpose(1, 2).flatten(2))


class RereadingReader:
    """Any causal model, such as a CharLM with parts replaced: keeps the characters and reads them anew each time."""

    def __init__(self, model: CharLM, batch: int):
        self.model, self.context = model, model.config.context
        self._text = torch.zeros(batch, self.context, dtype=torch.int64, device=model.head.weight.device)
        self._rows = torch.arange(batch)[:, None]

    @torch.no_grad()
    def extend(self, tokens: Tensor, starts: Tensor) -> Tensor:
        """See `Reader`; raises IndexError past the context."""
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=starts.device)
        self._text[self._rows, positions] = tokens
        return self.model(self._text[:, : int(positions.max()) + 1])[self._rows, positions]


def reader(model: CharLM, batch: int) -> Reader:
    """The quickest reader for a model in evaluation mode: cached where its parts are CharLM's own."""
    plain = type(model) is CharLM and all(
        type(block) is Block and type(block.attention) is Attention for block in model.blocks)
    return CachedReader(model, batch) if plain else RereadingReader(model, batch)


def probabilities(logits: Tensor, temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """What is sampled from, [..., vocabulary]: softmax(logits / temperature), all on the largest at temperature 0.

    `top_p` keeps the fewest most probable characters that together have that much, at least one, and renormalises.
    """
    if temperature == 0.0:
        return one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    p = torch.softmax(logits / temperature, dim=-1)
    if top_p >= 1.0:
        return p
    ranked, order = p.sort(dim=-1, descending=True)
    ranked = ranked * (ranked.cumsum(-1) - ranked < top_p)
    kept = torch.zeros_like(p).scatter(-1, order, ranked)
    return kept / kept.sum(-1, keepdim=True)


def sample(p: Tensor, random: torch.Generator | None) -> Tensor:
    """One index per row of `p` [batch, n], drawn on the CPU by inverting the distribution; int64 [batch]."""
    uniform = torch.rand(len(p), 1, generator=random, dtype=torch.float64).to(p.device)
    cumulated = p.double().cumsum(-1)
    # Scaled to the last sum, so that rounding can never point past the last probable character.
    return torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)[:, 0]


@dataclass(frozen=True)
class Generated:
    """New characters int64 [batch, max_new], filled up with ends, and how many each row wrote, its end included."""

    tokens: Tensor
    counts: Tensor

    def texts(self) -> list[str]:
        """One text per row, its end included."""
        return [decode(row[:count]) for row, count in zip(self.tokens, self.counts.tolist(), strict=True)]


def padded(prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Prompts as tokens int64 [batch, longest], filled up on the right, and their lengths int64 [batch]."""
    if not all(prompts):
        raise ValueError("an empty prompt gives a model nothing to go on")
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    tokens = torch.full((len(prompts), int(lengths.max())), END_CODE)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = encode(prompt).long()
    return tokens, lengths


def generate(
    readers: Sequence[Reader],
    prompts: Tensor,
    lengths: Tensor,
    max_new: int,
    *,
    combine: Combine | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    random: torch.Generator | None = None,
    end: int | None = END_CODE,
) -> Generated:
    """Continue every prompt until the end token or `max_new` characters; `prompts`, `lengths` as from `padded`.

    Each step `combine` turns the readers' next logits, a list of [batch, vocabulary], into the logits to write by; with
    one reader it may be left out. Temperature 0 takes the largest and draws nothing. Rows do not depend on one another,
    unless `random` is shared between them. Raises ValueError where prompt and answer do not fit into a context.
    """
    longest, context = int(lengths.max()) + max_new - 1, min(item.context for item in readers)
    if longest > context:
        raise ValueError(f"{longest} characters do not fit into a context of {context}")
    rows = torch.arange(len(prompts), device=prompts.device)
    written = torch.full((len(prompts), max_new), 0 if end is None else end, device=prompts.device)
    counts = torch.full_like(lengths, max_new)
    alive = torch.ones_like(lengths, dtype=torch.bool)
    logits = [item.extend(prompts, torch.zeros_like(lengths))[rows, lengths - 1] for item in readers]
    for step in range(max_new):
        scores = combine(logits) if combine else logits[0]
        chosen = scores.argmax(-1) if temperature == 0.0 else sample(probabilities(scores, temperature, top_p), random)
        if end is not None:
            chosen = torch.where(alive, chosen, end)
            counts = torch.where(alive & (chosen == end), step + 1, counts)
            alive = alive & (chosen != end)
        written[:, step] = chosen
        if not alive.any() or step + 1 == max_new:
            break
        logits = [item.extend(chosen[:, None], lengths + step)[:, 0] for item in readers]
    return Generated(written, counts)


def complete(model: CharLM, prompts: Sequence[str], max_new: int) -> list[str]:
    """Greedy answers of one model, the end included where it was reached."""
    tokens, lengths = padded(prompts)
    device = model.head.weight.device
    return generate([reader(model, len(prompts))], tokens.to(device), lengths.to(device), max_new).texts()
