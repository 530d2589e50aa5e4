"""The word language model of all suites: a small trunk, recurrent or over the last few words, and any head."""

import math
from collections.abc import Iterator
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, log_softmax

from reference.testbeds.seeding import fill_normal, fill_uniform, generator
from reference.testbeds.training import Batch, Batches
from reference.testbeds.words import Words

KINDS = ("gru", "ngram")


class Head(Protocol):
    """What turns hidden vectors into predictions; set `model.head` to any module with these two methods."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a scalar, of hidden [rows, width] and word ids [rows]."""

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[rows, width] -> log p of every word [rows, vocabulary], or scores in its place where a loss has none."""


class LinearHead(nn.Module):
    """The usual head, log softmax of hidden @ weight^T (+ bias), with weights N(0, 0.02^2) from the seed."""

    def __init__(self, width: int, vocabulary: int, seed: int, bias: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocabulary, width))
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if bias else None
        fill_normal(self.weight, 0.02, seed, "head.weight")

    def scores(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary]."""
        return linear(hidden, self.weight, self.bias)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[..., width] -> [..., vocabulary], float32."""
        return log_softmax(self.scores(hidden), dim=-1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats per word, a scalar."""
        return nn.functional.cross_entropy(self.scores(hidden), targets)


class WordLM(nn.Module):
    """Embedding, trunk and head; `hidden(tokens)[:, t]` depends on the tokens up to t alone.

    `gru`: one recurrent layer of `width` cells over the window, as long as it is; `context` is not used.
    `ngram`: one hidden layer, tanh(W [e_t, e_t-1, ..., e_t-context+1] + b), over the last `context` words of the
    window, zeros before its start (Bengio et al. 2003, without direct connections).

    The head is a `LinearHead` unless `model.head = ...` puts another one there. Initial values depend on the seed and
    on each parameter's name and shape only.
    """

    def __init__(self, kind: str, vocabulary: int, seed: int, width: int = 128, context: int = 4,
                 embedding_width: int | None = None):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")
        if context < 1:
            raise ValueError(f"context must be at least 1, not {context}")
        self.kind, self.width, self.context, self.vocabulary = kind, width, context, vocabulary
        embedded = width if embedding_width is None else embedding_width
        self.embedding = nn.utils.skip_init(nn.Embedding, vocabulary, embedded)
        if kind == "gru":
            self.recurrent = nn.GRU(embedded, width, batch_first=True, device="meta").to_empty(device="cpu")
        else:
            self.layer = nn.utils.skip_init(nn.Linear, context * embedded, width)
        self.head: nn.Module = LinearHead(width, vocabulary, seed)
        self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Set the trunk anew: embedding N(0, 1), biases 0, weights uniform within 1/sqrt(fan-in); the head is left."""
        for name, parameter in self.named_parameters():
            if name.startswith("head."):
                continue
            if name == "embedding.weight":
                fill_normal(parameter, 1.0, seed, name)
            elif parameter.ndim < 2:
                nn.init.zeros_(parameter)
            else:
                fill_uniform(parameter, 1 / math.sqrt(parameter.shape[1]), seed, name)

    def hidden(self, tokens: Tensor) -> Tensor:
        """Word ids [batch, time] -> [batch, time, width], values within -1..1."""
        embedded = self.embedding(tokens)
        if self.kind == "gru":
            return self.recurrent(embedded)[0]
        padded = nn.functional.pad(embedded, (0, 0, self.context - 1, 0))
        length = tokens.shape[1]
        newest_first = [padded[:, start : start + length] for start in reversed(range(self.context))]
        return torch.tanh(self.layer(torch.cat(newest_first, dim=-1)))

    def forward(self, tokens: Tensor) -> Tensor:
        """Word ids [batch, time] -> log probabilities [batch, time, vocabulary] of the next word."""
        hidden = self.hidden(tokens)
        return cast(Head, self.head).log_probabilities(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2])

    def loss(self, tokens: Tensor) -> Tensor:
        """The head's mean loss, a scalar, over windows [batch, time + 1]."""
        return cast(Head, self.head).loss(self.hidden(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def word_batches(
    words: Words, batch: int, context: int, seed: int, validation_windows: int = 512, validation_batch: int = 64
) -> Batches:
    """Random windows of `context + 1` training words, int64 [batch, context + 1]; validation windows are fixed.

    Validation: at most `validation_windows`, spread evenly. Raises ValueError when a side is shorter than one window.
    """
    if len(words.train) <= context:
        raise ValueError(f"a window of {context + 1} words does not fit into {len(words.train)}")
    offsets = torch.arange(context + 1)

    def stream() -> Iterator[Batch]:
        random = generator("word_batches", seed)
        while True:
            starts = torch.randint(len(words.train) - context, (batch, 1), generator=random)
            yield (words.train[starts + offsets],)

    held_out = windows(words.validation, context, validation_windows).split(validation_batch)
    return Batches(stream, tuple((part,) for part in held_out), words.digest)


def windows(tokens: Tensor, context: int, count: int | None = None) -> Tensor:
    """Windows [n, context + 1] without overlap, evenly spread over the tokens: `count`, or as many as fit.

    Raises ValueError when not one fits.
    """
    length = context + 1
    fitting = len(tokens) // length
    if not fitting:
        raise ValueError(f"a window of {length} words does not fit into {len(tokens)}")
    taken = fitting if count is None else min(count, fitting)
    starts = torch.arange(taken) * fitting // taken * length
    return tokens[starts[:, None] + torch.arange(length)]


@torch.no_grad()
def hidden_and_targets(model: WordLM, windows: Tensor, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Hidden vectors [n * time, width] and next words [n * time] of windows [n, time + 1], in evaluation mode."""
    was_training = model.training
    model.eval()
    hidden = torch.cat([model.hidden(part[:, :-1]).flatten(0, 1) for part in windows.split(batch)])
    model.train(was_training)
    return hidden, windows[:, 1:].flatten()
