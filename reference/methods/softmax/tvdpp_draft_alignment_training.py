"""Targets that answer instructions, drafts that follow them, and how well: the three phases of arXiv 2403.00858.

1. The draft is pretrained on the base corpus. 2. The tuned target answers seed instructions at several temperatures,
with top-p 0.95. 3. The draft is fine-tuned on these answers, the target's probabilities beside them (white-box).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reference.methods.softmax.speculative import Floats, block_efficiency
from reference.methods.softmax.tvdpp_draft_alignment import LOSSES, gradient_spread, policy_loss
from reference.methods.softmax.tvdpp_draft_alignment_text import ANSWER_CHARACTERS, PROMPT_CHARACTERS, instructions
from reference.testbeds import char_lm, text, training
from reference.testbeds.decoding import generate, padded, reader
from reference.testbeds.seeding import generator
from reference.testbeds.tasks import END_CODE, OnAnswers, marked_rows

WIDTH = PROMPT_CHARACTERS + ANSWER_CHARACTERS
TEMPERATURES = (0.0, 0.7, 1.0)
GAMMAS = (3, 5)
# Phase 2. Only "several temperatures" and the 0.95 are public.
SEED_TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
TOP_P = 0.95
BATCH = 16
TARGET_LR, DRAFT_LR = 0.003, 0.006
_CHUNK = 128


def model_of(shape: str, seed: int) -> char_lm.CharLM:
    """A fresh model of LAYERSxWIDTH that reads a prompt and its answer."""
    layers, width = map(int, shape.split("x"))
    return char_lm.CharLM(char_lm.Config(layers=layers, width=width, context=WIDTH), seed)


def pretrain(shape: str, steps: int, lr: float, seed: int) -> char_lm.CharLM:
    """Phase 1: a model trained on DOC."""
    model = model_of(shape, seed)
    batches = training.text_batches(text.corpus("DOC"), BATCH, WIDTH, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    training.train(model, batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    return model.eval()


def tune_target(target: char_lm.CharLM, steps: int, lr: float) -> None:
    """Teach the pretrained target to answer instructions, in place; prompts are masked from the loss."""
    sides = [instructions(part) for part in ("train", "validation")]
    (tokens, mask), held_out = (marked_rows(side.prompts, side.answers, WIDTH) for side in sides)
    batches = training.array_batches(tokens, mask, BATCH, 0, held_out)
    optimizer = torch.optim.AdamW(target.parameters(), lr=lr)
    training.train(OnAnswers(target), batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    target.eval()


@dataclass(frozen=True)
class Written:
    """Texts that the target wrote at one temperature.

    `tokens` int64 [n, WIDTH] with the prompt in front, `begins` and `counts` int64 [n], and `log_p` [n, time], what the
    target gave each written character at this temperature (0 throughout at temperature 0).
    """

    temperature: float
    tokens: Tensor
    begins: Tensor
    counts: Tensor
    log_p: Tensor

    def places(self) -> Tensor:
        """Index, int64 [n, time], of the logits that each written character is drawn from."""
        return (self.begins[:, None] - 1 + torch.arange(self.log_p.shape[1])).clamp_max(WIDTH - 2)

    def characters(self) -> Tensor:
        """The written characters, int64 [n, time]; behind `counts` they mean nothing."""
        return self.tokens.gather(1, self.places() + 1)


@torch.no_grad()
def write(
    target: char_lm.CharLM, prompts: Sequence[str], temperature: float, seed: int, top_p: float = 1.0,
    end: int | None = END_CODE,
) -> Written:
    """Let the target continue every prompt by up to ANSWER_CHARACTERS characters."""
    random = generator("write", seed, temperature)
    tokens, begins = padded(prompts)
    counts = torch.empty_like(begins)
    full = torch.full((len(prompts), WIDTH), END_CODE)
    full[:, : tokens.shape[1]] = tokens
    for rows in torch.arange(len(prompts)).split(_CHUNK):
        made = generate([reader(target, len(rows))], tokens[rows], begins[rows], ANSWER_CHARACTERS,
                        temperature=temperature, top_p=top_p, random=random, end=end)
        counts[rows] = made.counts
        full[rows[:, None], begins[rows, None] + torch.arange(ANSWER_CHARACTERS)] = made.tokens
    written = Written(temperature, full, begins, counts, torch.zeros(len(prompts), ANSWER_CHARACTERS))
    if temperature == 0.0:
        return written
    log_p = next_log_probabilities(target, written, temperature).gather(-1, written.characters()[..., None])[..., 0]
    return Written(temperature, full, begins, counts, log_p)


@torch.no_grad()
def next_log_probabilities(model: char_lm.CharLM, written: Written, temperature: float = 1.0) -> Tensor:
    """What a model gives the next character at every written place, [n, time, vocabulary]; raw logits at 0."""
    logits = torch.cat([model(part[:, :-1]) for part in written.tokens.split(_CHUNK)])
    chosen = logits.gather(1, written.places()[..., None].expand(-1, -1, logits.shape[-1]))
    return (chosen / temperature).log_softmax(-1) if temperature > 0.0 else chosen


def kept(draft: char_lm.CharLM, written: Written) -> Floats:
    """Probability that each written character was an accepted draft, min(1, q / p), float64 [n, time].

    The temperature is the target's; at 0 it is whether the draft's largest logit is at the same character.
    """
    scores, characters = next_log_probabilities(draft, written, written.temperature), written.characters()
    if written.temperature == 0.0:
        return (scores.argmax(-1) == characters).double().numpy()
    log_q = scores.gather(-1, characters[..., None])[..., 0]
    return (log_q - written.log_p).double().clamp_max(0.0).exp().numpy()


def efficiencies(draft: char_lm.CharLM, written: Sequence[Written]) -> dict[tuple[int, float], float]:
    """Block efficiency by (gamma, temperature)."""
    found = {}
    for part in written:
        accepted, lengths = kept(draft, part), part.counts.numpy()
        for gamma in GAMMAS:
            found[gamma, part.temperature] = block_efficiency(accepted, lengths, gamma)
    return found


def mean_efficiency(draft: char_lm.CharLM, written: Sequence[Written]) -> float:
    """`efficiencies`, the mean over gammas and temperatures."""
    return float(np.mean(list(efficiencies(draft, written).values())))


@dataclass(frozen=True)
class Distillation:
    """Answers of the target to seed instructions; `p` [places, vocabulary] are its probabilities, row after row.

    `tokens` int64 and `mask` bool are [n, WIDTH]; `firsts` int64 [n + 1] says where a row's places begin in `p`.
    """

    tokens: Tensor
    mask: Tensor
    p: Tensor
    firsts: Tensor

    def rows(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A batch of `Alignment`."""
        parts = [self.p[self.firsts[row] : self.firsts[row + 1]] for row in chosen.tolist()]
        return self.tokens[chosen], self.mask[chosen], torch.cat(parts)

    def batches(self, batch: int, seed: int) -> training.Batches:
        """Random rows, a new order every epoch; the first rows stand in for a validation batch."""

        def stream() -> Iterator[training.Batch]:
            random = generator("distillation", seed)
            while True:
                for rows in torch.randperm(len(self.tokens), generator=random).split(batch):
                    yield self.rows(rows)

        return training.Batches(stream, (self.rows(torch.arange(min(batch, len(self.tokens)))),),
                                training.array_digest(self.tokens))


def distillation_set(target: char_lm.CharLM, prompts: int, seed: int) -> Distillation:
    """Phase 2, on the first `prompts` training instructions, each answered at one of the temperatures in turn."""
    asked = instructions("train").prompts[:prompts]
    tokens, masks, probabilities, counts = [], [], [], []
    for index, temperature in enumerate(SEED_TEMPERATURES):
        written = write(target, asked[index :: len(SEED_TEMPERATURES)], temperature, seed, TOP_P)
        p = next_log_probabilities(target, written).exp()
        places = torch.arange(WIDTH)
        tokens.append(written.tokens)
        masks.append((places >= written.begins[:, None]) & (places < (written.begins + written.counts)[:, None]))
        probabilities += [row[:count] for row, count in zip(p, written.counts.tolist(), strict=True)]
        counts.append(written.counts)
    firsts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat(counts).cumsum(0)])
    return Distillation(torch.cat(tokens), torch.cat(masks), torch.cat(probabilities), firsts)


def draft_of(config: Mapping[str, Any]) -> char_lm.CharLM:
    """Phase 1 for the draft: a model of the shape ``draft``, pretrained for ``steps``."""
    return pretrain(config["draft"], config["steps"], DRAFT_LR, config["seed"])


def target_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The tuned target, its answers to seed instructions, and what it writes for the evaluation prompts.

    ``test`` and ``validation`` answer ``asked`` instructions of these parts, ``other`` continues plain text of the base
    corpus; each at all temperatures.
    """
    target = pretrain(config["target"], config["pretrain"], TARGET_LR, 0)
    tune_target(target, max(2, config["pretrain"] // 4), TARGET_LR)
    count, plain = config["asked"], text.corpus("DOC").validation
    starts = torch.arange(count) * (len(plain) - PROMPT_CHARACTERS) // count
    other = [text.decode(plain[start : start + PROMPT_CHARACTERS]) for start in starts.tolist()]
    sides = {part: instructions(part).prompts[:count] for part in ("test", "validation")}
    return {
        "target": target,
        "digests": {"DOC": text.corpus("DOC").digest, "instructions": instructions("train").digest},
        "prompts": sides["test"],
        "distillation": distillation_set(target, config["seeds_asked"], 0),
        **{part: [write(target, prompts, t, 1) for t in TEMPERATURES] for part, prompts in sides.items()},
        "other": [write(target, other, t, 1, end=None) for t in TEMPERATURES],
    }


class Alignment(nn.Module):
    """Phase 3: a draft with one of the losses, for `training.train`."""

    def __init__(self, draft: char_lm.CharLM, loss: str, seed: int):
        super().__init__()
        self.draft, self._loss = draft, LOSSES[loss]
        self._random = generator("alignment", seed)

    def loss(self, tokens: Tensor, mask: Tensor, p: Tensor) -> Tensor:
        """Over the answers' places alone."""
        counted = mask[:, 1:]
        return self._loss(p, self.draft(tokens[:, :-1])[counted], tokens[:, 1:][counted], self._random)


def align(draft: char_lm.CharLM, data: Distillation, loss: str, lr: float, steps: int, seed: int) -> None:
    """Fine-tune the draft in place; batches depend on the seed alone and are the same for every loss."""
    optimizer = torch.optim.AdamW(draft.parameters(), lr=lr, weight_decay=0.0)
    training.train(Alignment(draft, loss, seed), data.batches(BATCH, seed), optimizer,
                   training.warmup_cosine(steps), steps, clip=1.0)
    draft.eval()


def gradient_noise(
    draft: char_lm.CharLM, data: Distillation, advantage: bool, draws: int, seed: int
) -> tuple[float, float]:
    """`gradient_spread` of the sampled loss on one batch, relative to the squared exact gradient of TVD; and the scale.

    Only y is drawn anew: the batch is the same for all draws, and for both estimators.
    """
    tokens, mask, p = next(iter(data.batches(BATCH, seed)))
    logits = draft(tokens[:, :-1])[mask[:, 1:]]
    parameters = list(draft.parameters())

    def gradient(loss: Tensor) -> Tensor:
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters, retain_graph=True)])

    random = generator("gradient noise", seed)
    sampled = torch.stack([gradient(policy_loss(p, logits, advantage=advantage, samples=1, random=random))
                           for _ in range(draws)])
    exact = gradient(policy_loss(p, logits, advantage=False))
    spread, scale = gradient_spread(sampled.double(), exact.double())
    return spread / float(exact.double().square().sum()), scale


def mean_acceptance(draft: char_lm.CharLM, data: Distillation) -> float:
    """Mean of sum_y min(p, q) over the first rows' places."""
    tokens, mask, p = data.rows(torch.arange(min(_CHUNK, len(data.tokens))))
    with torch.no_grad():
        q = draft(tokens[:, :-1])[mask[:, 1:]].softmax(-1)
    return float(np.mean(torch.minimum(p, q).sum(-1).numpy()))
