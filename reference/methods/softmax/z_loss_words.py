"""The Z-loss against other losses on words: one language model, one schedule, many losses, errors among the top k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reference.methods.softmax import z_loss as z
from reference.testbeds import training, word_lm
from reference.testbeds.words import Words, words

TOPS = (1, 5, 10, 20, 50, 100)
BATCH_WINDOWS, WINDOW = 4, 32
WIDTH = 64


@dataclass(frozen=True)
class Setting:
    """What is equal for all losses: sizes, steps, text, and the seeds of data and initial values."""

    text: Words
    steps: int
    data_seed: int
    init_seed: int
    width: int = WIDTH
    context: int = 4


def text_of(config: Mapping[str, Any]) -> Words:
    """The words of DOC with `config["vocabulary"]`."""
    return words(config["vocabulary"])


def loss_of(arm: str, tuned: Mapping[str, Any]) -> z.Loss:
    """The loss called `arm`, with its own hyperparameters."""
    if arm == "z_loss":
        return z.ZLoss(tuned["sharpness"], tuned["location"])
    if arm == "spherical":
        return z.SphericalSoftmax(tuned["epsilon"])
    return {"log_softmax": z.LogSoftmax, "squared": z.SquaredError, "taylor": z.TaylorSoftmax}[arm]()


def train_with(
    setting: Setting, loss: z.Loss, head_lr: float, trunk_lr: float, scale: float = 1.0
) -> tuple[word_lm.WordLM, training.History]:
    """An n-gram model trained with `loss`: Adam below, and for the output layer plain gradient descent.

    Plain descent, so that every step could have been made in the factored form. Both rates follow one schedule. The
    output layer starts at `scale` times the usual size.
    """
    classes = len(setting.text.vocabulary)
    model = word_lm.WordLM("ngram", classes, setting.init_seed, setting.width, setting.context)
    head = z.DenseHead(setting.width, classes, loss, setting.init_seed, scale)
    model.head = head
    trunk = [parameter for name, parameter in model.named_parameters() if not name.startswith("head.")]
    schedule = training.warmup_cosine(setting.steps)

    @torch.no_grad()
    def descend(step: int) -> None:
        assert head.weight.grad is not None
        head.weight.sub_(head.weight.grad, alpha=head_lr * schedule(step))
        head.weight.grad = None

    batches = word_lm.word_batches(setting.text, BATCH_WINDOWS, WINDOW, setting.data_seed, BATCH_WINDOWS)
    optimizer = torch.optim.Adam(trunk, lr=trunk_lr, fused=True)
    history = training.train(model, batches, optimizer, schedule, setting.steps, after_step=descend)
    return model, history


@torch.no_grad()
def top_errors(
    model: word_lm.WordLM, windows: Tensor, tops: Sequence[int] = TOPS, batch: int = 1024
) -> dict[int, float]:
    """Share of words that are not among the k best scored, for each k; of equal scores, half count as better.

    A score that is not a number is no success: where the loss diverged, every word counts as missed.
    """
    hidden, targets = word_lm.hidden_and_targets(model, windows)
    ranks = []
    for vectors, chosen in zip(hidden.split(batch), targets.split(batch), strict=True):
        scores = model.head.log_probabilities(vectors)
        mine = scores.gather(1, chosen[:, None])
        ties = (scores == mine).sum(1) - 1
        ranks.append(scores.shape[1] - 1 - (scores < mine).sum(1) - ties / 2)
    rank = torch.cat(ranks)
    return {k: float((rank >= k).double().mean()) for k in tops}
