"""A frozen word model, TempNets on its logits, and how good their temperatures are for predicting and writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from reference.methods import calibration
from reference.methods.softmax import tempnet_dro
from reference.methods.softmax.tempnet_dro import Range, TempNet
from reference.testbeds import training
from reference.testbeds.decoding import sample
from reference.testbeds.seeding import generator
from reference.testbeds.word_lm import WordLM, hidden_and_targets, windows, word_batches
from reference.testbeds.words import Words, words

CONTEXT, BATCH, LR = 32, 32, 0.01
_BLOCK, _EVERY = 330, 10
_TEMPNET_BATCH = 64
Temperatures = Callable[[Tensor], Tensor]


def without_some_blocks(text: Words) -> tuple[Words, Tensor]:
    """The words with every tenth block of 330 of the training side taken out, and these blocks.

    They are text of modules that the model knows, which neither the model nor any TempNet was trained on.
    """
    blocks = text.train[: len(text.train) // _BLOCK * _BLOCK].view(-1, _BLOCK)
    held_out = torch.arange(len(blocks)) % _EVERY == 0
    return replace(text, train=blocks[~held_out].flatten()), blocks[held_out].flatten()


def language_model(text: Words, width: int, steps: int, data_seed: int, init_seed: int) -> WordLM:
    """A GRU trained by AdamW, gradients clipped at norm 1."""
    model = WordLM("gru", len(text.vocabulary), init_seed, width)
    batches = word_batches(text, BATCH, CONTEXT, data_seed, validation_windows=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    training.train(model, batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    return model


def frozen(text: Words, width: int, steps: int, data_seed: int, init_seed: int, tokens: int) -> dict[str, Any]:
    """A trained model's state, and hidden vectors and next words of four texts.

    ``train`` is what the model was trained on, ``inside`` other text of the same modules, ``validation`` and ``test``
    text of modules that it has never seen; ``tokens`` of each, twenty times as many of ``train``.
    """
    kept, inside = without_some_blocks(text)
    model = language_model(kept, width, steps, data_seed, init_seed)
    texts = {"train": kept.train, "inside": inside, "validation": text.validation, "test": text.test}
    counts = {name: tokens // CONTEXT * (20 if name == "train" else 1) for name in texts}
    return {"state": model.state_dict(), "width": width, "head": model.head.weight.detach().clone(),
            "digest": text.digest, **{name: hidden_and_targets(model, windows(part, CONTEXT, counts[name]))
                                      for name, part in texts.items()}}


def frozen_bed(config: Mapping[str, Any]) -> dict[str, Any]:
    """`frozen` on DOC; `config` has its arguments but the text, and how large the `vocabulary` is."""
    return frozen(words(config["vocabulary"]), config["width"], config["steps"], config["data_seed"],
                  config["init_seed"], config["tokens"])


def judge(config: Mapping[str, Any]) -> WordLM:
    """`language_model` on DOC, to score samples with; `config` as above, without `tokens`."""
    return language_model(words(config["vocabulary"]), config["width"], config["steps"], config["data_seed"],
                          config["init_seed"])


class Amortised(nn.Module):
    """A TempNet over frozen logits, trained on F or, for comparison, on the cross entropy of softmax(h / tau)."""

    def __init__(self, net: TempNet, head: Tensor, rho: float | None):
        super().__init__()
        self.net, self.rho = net, rho
        self.register_buffer("head", head)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean F, or where ``rho`` is None the mean cross entropy; a scalar."""
        logits = linear(hidden, self.head)
        tau = self.net(logits)
        if self.rho is None:
            return nn.functional.cross_entropy(logits / tau[:, None], targets)
        return tempnet_dro.robust_loss(logits, tau, self.rho, targets).mean()


def amortise(
    bed: dict[str, Any], rho: float | None, steps: int, lr: float, seed: int, top: int | None = None
) -> TempNet:
    """Train a TempNet on the model's training text; the model stays as it is."""
    net = TempNet(len(bed["head"]), seed, top=top)
    model = Amortised(net, bed["head"], rho)
    batches = training.array_batches(*bed["train"], _TEMPNET_BATCH, seed, bed["validation"])
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    training.train(model, batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    net.eval()
    return net


@torch.no_grad()
def amortisation(bed: dict[str, Any], net: TempNet, rho: float) -> dict[str, float]:
    """Share of the gap between the best constant of the training text and bisection that the network closes."""
    allowed, found = net.allowed, {}
    train = linear(bed["train"][0][:2048], bed["head"])
    constant = tempnet_dro.constant_tau(train, rho, allowed)
    for name in ("inside", "test", "validation"):
        logits = linear(bed[name][0], bed["head"])
        found[f"gap_closed_{name}"] = tempnet_dro.gap_closed(logits, net(logits), rho, constant, allowed)
    best = tempnet_dro.exact_tau(linear(bed["inside"][0], bed["head"]), rho, allowed)
    return {**found, "clamped": tempnet_dro.clamped(best, allowed).float().mean().item(), "constant": constant}


def temperatures(arm: str, bed: dict[str, Any], rho: float | None, net: TempNet | None) -> Temperatures:
    """What an arm divides logits [n, V] by: [n].

    ``tau1`` 1, ``constant`` the temperature with the smallest cross entropy on validation text, ``bisection`` tau* of
    ``rho``, anything else the network.
    """
    if arm in {"tau1", "constant"}:
        hidden, targets = bed["validation"]
        value = 1.0 if arm == "tau1" else calibration.temperature(linear(hidden, bed["head"]), targets)
        return lambda logits: torch.full((len(logits),), value)
    if arm == "bisection":
        assert rho is not None
        return lambda logits: tempnet_dro.exact_tau(logits, rho, Range())
    assert net is not None
    return net


@torch.no_grad()
def prediction(bed: dict[str, Any], part: str, tau_of: Temperatures) -> dict[str, float]:
    """Cross entropy and calibration error of softmax(h / tau) on a text, and the spread of the temperatures."""
    hidden, targets = bed[part]
    logits = linear(hidden, bed["head"])
    tau = tau_of(logits)
    scaled = logits / tau[:, None]
    return {"nll": calibration.nll(scaled, targets), "ece": calibration.ece(scaled.softmax(1), targets),
            "tau_mean": tau.mean().item(), "tau_std": tau.std().item()}


@torch.no_grad()
def writing(
    bed: dict[str, Any], judge: WordLM, tau_of: Temperatures, prompts: Tensor, length: int, seed: int
) -> dict[str, float]:
    """Text sampled behind prompts [n, time]: its cross entropy under another model, and its share of distinct pairs."""
    model = WordLM("gru", len(bed["head"]), 0, bed["width"])
    model.load_state_dict(bed["state"])
    random, text = generator("writing", seed), prompts
    for _ in range(length):
        logits = linear(model.hidden(text)[:, -1], bed["head"])
        p = (logits / tau_of(logits)[:, None]).softmax(1)
        text = torch.cat([text, sample(p, random)[:, None]], 1)
    log_p = judge(text[:, :-1])[:, prompts.shape[1] - 1 :]
    written = text[:, prompts.shape[1] :]
    pairs = torch.stack([written[:, :-1], written[:, 1:]], -1).flatten(0, 1)
    return {"sample_nll": -log_p.gather(2, written[..., None]).mean().item(),
            "distinct_2": len(pairs.unique(dim=0)) / len(pairs)}
