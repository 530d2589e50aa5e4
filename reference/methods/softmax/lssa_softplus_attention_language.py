"""Small language models that are trained on short windows and read long ones, and the passkey that they must find."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reference.methods.softmax.lssa_softplus_attention import with_attention
from reference.testbeds import char_lm
from reference.testbeds.seeding import generator
from reference.testbeds.text import Corpus, corpus, encode
from reference.testbeds.training import Batch, Batches, History, evaluate, text_batches, train, warmup_cosine

LENGTH = 64  # of the training windows
MULTIPLES = (1, 2, 4, 8, 16)
KEY_MULTIPLES = (1, 2, 4, 8)
CLIP = 1.0
CHANCE_NATS = math.log(char_lm.VOCABULARY)
_TOKENS_AT_ONCE = 1024  # one window of the longest: its weights stay in cache

_LETTERS, _DIGITS = encode("abcdefghijklmnopqrstuvwxyz").long(), encode("0123456789").long()
_MARK, _ASK = (int(code) for code in encode("#?"))
KEY_DIGITS = 1  # of two, the order would have to be learnt as well, which takes thousands of steps


def doc_corpus(config: Mapping[str, int]) -> Corpus:
    """DOC up to ``config["bytes"]``."""
    return corpus("DOC", config["bytes"])


@dataclass(frozen=True)
class Setting:
    """One training run: the attention, how long and how fast, and the seeds of data and initial values."""

    variant: str
    steps: int
    batch: int
    lr: float
    data_seed: int
    init_seed: int


def language_model(variant: str, seed: int) -> char_lm.CharLM:
    """Two layers of width 64 with two heads, and room for 16 training lengths."""
    model = char_lm.make("S", seed, heads=2, context=LENGTH * max(MULTIPLES))
    return with_attention(model, variant, LENGTH)


def train_language_model(setting: Setting, doc: Corpus) -> tuple[char_lm.CharLM, History]:
    """From scratch on windows of 64 characters."""
    model = language_model(setting.variant, setting.init_seed)
    batches = text_batches(doc, setting.batch, LENGTH, setting.data_seed, validation_windows=64)
    return model, _trained(model, model, batches, setting)


def _trained(model: nn.Module, trained: nn.Module, batches: Batches, setting: Setting) -> History:
    """AdamW without weight decay, 10 % warm-up, a cosine down to 10 %, gradients clipped to norm 1."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=setting.lr, weight_decay=0.0, fused=True)
    return train(trained, batches, optimizer, warmup_cosine(setting.steps), setting.steps, clip=CLIP)


def windows(codes: Tensor, length: int, characters: int) -> tuple[Batch, ...]:
    """The first ``characters`` codes in neighbouring windows of ``length`` predictions, in batches for a model's loss.

    Whatever the length, the predicted characters are the same.
    """
    starts = torch.arange(0, characters - length + 1, length)
    rows = codes[starts[:, None] + torch.arange(length + 1)].long()
    return tuple((part,) for part in rows.split(max(1, _TOKENS_AT_ONCE // length)))


def nats_by_length(
    model: char_lm.CharLM, codes: Tensor, characters: int, multiples: Sequence[int] = MULTIPLES
) -> dict[int, float]:
    """Mean loss in nats per character over whole windows of so many training lengths, by the multiple.

    No more than :data:`CHANCE_NATS`, at which a model that predicts all characters alike stands: how far beyond it a
    broken model errs says nothing, and what is no number counts as that.
    """
    found = {}
    for multiple in multiples:
        nats = evaluate(model, windows(codes, multiple * LENGTH, characters))
        found[multiple] = min(nats, CHANCE_NATS) if math.isfinite(nats) else CHANCE_NATS
    return found


def tuning_nats(model: char_lm.CharLM, codes: Tensor, characters: int) -> float:
    """The loss at the training length on the last ``characters`` codes: with half of them or fewer, on other text."""
    return nats_by_length(model, codes[-characters - 1 :], characters, (1,))[1]


def passkeys(count: int, length: int, random: torch.Generator) -> Tensor:
    """Random letters that hide ``#`` and the key, then ``?`` and the key again, int64 [count, length + 1].

    The key is ``KEY_DIGITS`` digits; a model that reads the first ``length`` codes must predict it at the end.
    """
    filler = length + 1 - 2 * (1 + KEY_DIGITS)
    key = _DIGITS[torch.randint(10, (count, KEY_DIGITS), generator=random)]
    letters = _LETTERS[torch.randint(len(_LETTERS), (count, filler), generator=random)]
    hidden = torch.cat([torch.full((count, 1), _MARK), key], dim=1)
    places = torch.randint(filler + 1, (count, 1), generator=random)
    rows = torch.arange(count)[:, None]
    codes = torch.empty(count, length + 1, dtype=torch.int64)
    inside = torch.arange(1 + KEY_DIGITS)
    codes[rows, places + inside] = hidden
    before = torch.arange(filler)
    codes[rows, before + (1 + KEY_DIGITS) * (before >= places)] = letters
    codes[:, -1 - KEY_DIGITS] = _ASK
    codes[:, -KEY_DIGITS:] = key
    return codes


class KeyFinder(nn.Module):
    """A language model that is trained on nothing but the answer."""

    def __init__(self, model: char_lm.CharLM):
        super().__init__()
        self.model = model

    def loss(self, codes: Tensor) -> Tensor:
        """Mean cross entropy of the key's digits, over rows of :func:`passkeys`."""
        logits = self.model(codes[:, :-1])[:, -KEY_DIGITS:]
        return cross_entropy(logits.flatten(0, 1), codes[:, -KEY_DIGITS:].flatten())

    @torch.no_grad()
    def accuracy(self, codes: Tensor) -> float:
        """Share of rows whose whole key is right; equal to that of greedy decoding."""
        right = 0
        for part in codes.split(max(1, _TOKENS_AT_ONCE // codes.shape[1])):
            found = self.model(part[:, :-1])[:, -KEY_DIGITS:].argmax(-1)
            right += int((found == part[:, -KEY_DIGITS:]).all(-1).sum())
        return right / len(codes)


def train_key_finder(setting: Setting) -> tuple[KeyFinder, History]:
    """From scratch on fresh strings of 64 characters at every step."""
    finder = KeyFinder(language_model(setting.variant, setting.init_seed))

    def stream() -> Iterator[Batch]:
        random = generator("passkeys", setting.data_seed)
        while True:
            yield (passkeys(setting.batch, LENGTH, random),)

    validation = passkeys(64, LENGTH, generator("passkeys", "validation", setting.data_seed))
    return finder, _trained(finder.model, finder, Batches(stream, ((validation,),), ""), setting)


def accuracy_by_length(finder: KeyFinder, count: int, seed: int) -> dict[int, float]:
    """Accuracy on ``count`` new strings of 1, 2, 4 and 8 training lengths, by the multiple."""
    return {multiple: finder.accuracy(passkeys(count, multiple * LENGTH, generator("passkeys", "test", multiple, seed)))
            for multiple in KEY_MULTIPLES}
