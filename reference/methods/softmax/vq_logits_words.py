"""VQ-Logits on words: a trunk pretrained with a full head, then any other head in its place, all trained as long."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reference.methods.softmax import vq_logits as vq
from reference.methods.softmax.heads import AdaptiveHead, Int4Head, LowRankHead, best_adaptive, largest_rank
from reference.testbeds import training, word_lm
from reference.testbeds.seeding import generator
from reference.testbeds.words import Words, words

WIDTH = 128
BATCH_WINDOWS, WINDOW = 8, 32
PRETRAINING_LR = 1e-2
REASSIGN_EVERY = 10  # steps
SHAPE_WINDOWS = 64  # of the validation side, by which the shape of the adaptive softmax is chosen


@dataclass(frozen=True)
class Setting:
    """What is equal for all heads: the trunk's width, the text, and the seeds."""

    text: Words
    data_seed: int
    init_seed: int
    width: int = WIDTH

    def model(self) -> word_lm.WordLM:
        """A fresh recurrent model with a full head."""
        return word_lm.WordLM("gru", len(self.text.vocabulary), self.init_seed, self.width)

    def batches(self, part: int) -> training.Batches:
        """The stream of the pretraining (1) or of what follows (2)."""
        seed = 2 * self.data_seed + part
        return word_lm.word_batches(self.text, BATCH_WINDOWS, WINDOW, seed, validation_windows=128)


def text_of(config: Mapping[str, Any]) -> Words:
    """The words of DOC with `config["vocabulary"]`."""
    return words(config["vocabulary"])


def setting_of(config: Mapping[str, Any]) -> Setting:
    """`vocabulary`, `data_seed` and `init_seed` as a setting of the usual width."""
    return Setting(text_of(config), config["data_seed"], config["init_seed"])


def pretrained_of(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`pretrained` with `config["pretraining"]` steps."""
    return pretrained(setting_of(config), config["pretraining"])


def pretrained(setting: Setting, steps: int) -> dict[str, Tensor]:
    """The weights after pretraining with the full head: 10 % warm-up, then a cosine to 30 % of the rate."""
    model = setting.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_LR, weight_decay=0.0, fused=True)
    schedule = training.warmup_cosine(steps, floor=0.3)
    training.train(model, setting.batches(1), optimizer, schedule, steps, clip=1.0)
    return model.state_dict()


def loaded(setting: Setting, weights: Mapping[str, Tensor]) -> word_lm.WordLM:
    """The pretrained model."""
    model = setting.model()
    model.load_state_dict(dict(weights))
    return model


def train_on(setting: Setting, model: word_lm.WordLM, lr: float, steps: int) -> training.History:
    """Trunk and head on new batches with AdamW, 10 % warm-up, cosine to 0; a learned map is renewed on the way."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)

    def renew(step: int) -> None:
        head = model.head
        if isinstance(head, vq.LearnedVQHead) and (step + 1) % REASSIGN_EVERY == 0 and step + 1 < steps:
            head.reassign()

    schedule = training.warmup_cosine(steps, floor=0.0)
    return training.train(
        model, setting.batches(2), optimizer, schedule, steps, clip=1.0, after_step=renew)


def codes_for(mapping: str, rows: Tensor, counts: Tensor, count: int, seed: int) -> vq.Codes:
    """The map of words to codes by one of `vq.MAPPINGS`; `rows` are those of the trained full head."""
    if mapping == "random":
        return vq.random_codes(len(rows), count, generator("random codes", seed))
    if mapping == "frequency":
        return vq.frequency_codes(counts, count)
    if mapping == "equal_mass":
        return vq.equal_mass_codes(counts, count)
    if mapping == "kmeans":
        return vq.kmeans_codes(rows, count, seed)
    raise KeyError(f"no mapping {mapping!r}; there are {', '.join(vq.MAPPINGS)}")


def vq_head(arm: str, rows: Tensor, codes: vq.Codes, counts: Tensor) -> vq.VQHead:
    """The head of an arm, its codebook the words' mean rows, weighted by their counts.

    `learned` starts from its codes and moves words while it trains; `..._bias` has a scalar a word, starting at the
    log of the word's share of its code.
    """
    codebook = vq.mean_rows(rows, codes, counts)
    if arm == "learned":
        return vq.LearnedVQHead(codebook, codes)
    head = vq.VQHead(codebook, codes, bias=arm.endswith("_bias"))
    if head.bias is not None:
        mass = torch.zeros(codes.count).index_add_(0, codes.of, counts.float())
        with torch.no_grad():
            head.bias.copy_(((counts.float() + 0.5) / (mass[codes.of] + 0.5)).log())
    return head


def rival_head(arm: str, model: word_lm.WordLM, setting: Setting, budget_bytes: int) -> nn.Module:
    """`low_rank` or `adaptive` within the budget, started from the trained rows; `int4` of the rows as they are."""
    rows, text = model.head.weight.detach(), setting.text
    if arm == "low_rank":
        return LowRankHead.from_rows(rows, largest_rank(setting.width, len(rows), budget_bytes))
    if arm == "adaptive":
        held_out = word_lm.windows(text.validation, WINDOW, SHAPE_WINDOWS)
        shape = best_adaptive(rows, text.counts, budget_bytes, *word_lm.hidden_and_targets(model, held_out))
        return AdaptiveHead.from_rows(rows, text.counts, *shape)
    if arm == "int4":
        return Int4Head(rows)
    raise KeyError(f"no rival {arm!r}; there are low_rank, adaptive, int4")


@torch.no_grad()
def scores(model: word_lm.WordLM, windows: Tensor, batch: int = 1024) -> dict[str, float]:
    """Cross entropy in nats, perplexity, and how often the most probable word is right, ties broken at random."""
    hidden, targets = word_lm.hidden_and_targets(model, windows)
    loss, hits = 0.0, 0.0
    for vectors, chosen in zip(hidden.split(batch), targets.split(batch), strict=True):
        log_p = model.head.log_probabilities(vectors)
        mine, largest = log_p.gather(1, chosen[:, None]), log_p.amax(1, keepdim=True)
        loss -= float(mine.double().sum())
        hits += float(((mine == largest) / (log_p == largest).sum(1, keepdim=True)).sum())
    nats = loss / len(targets)
    return {"ce": nats, "ppl": float(torch.tensor(nats).exp()), "top1": hits / len(targets)}


def code_scores(head: vq.VQHead, counts: Tensor, targets: Tensor) -> dict[str, float]:
    """How many codes have words; E[log n] over the targets; and the unigram bound on what sharing rows must cost."""
    codes = head.codes
    sizes = codes.sizes()
    return {
        "used_codes": float((sizes > 0).sum()),
        "within_code": float(sizes[codes.of[targets]].double().log().mean()),
        "unigram_floor": vq.unigram_floor(counts.double() / counts.sum(), codes),
    }
