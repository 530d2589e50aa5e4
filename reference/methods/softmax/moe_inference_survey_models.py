"""The models that the survey's techniques are compared on, the texts they read, and what a change of gates costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.methods.softmax import moe_inference_survey as survey
from reference.testbeds import char_lm, moe_lm, training
from reference.testbeds.moe_lm import MoELM
from reference.testbeds.seeding import generator
from reference.testbeds.text import Corpus

MODELS = {"moe": moe_lm.make, "dense": moe_lm.make_dense}
MIXTURE = moe_lm.Mixture()
BATCH, CONTEXT, TEST_WINDOWS, TEST_BATCH = 16, 64, 192, 64
PROMPT, TEMPERATURE = 16, 0.8

Traces = dict[str, list[NDArray[np.int64]]]


@dataclass(frozen=True)
class Setting:
    """What is equal for both models: steps, and the seeds of data and initial values."""

    steps: int
    data_seed: int
    init_seed: int


def pretrain(arm: str, setting: Setting, corpus: Corpus, lr: float) -> dict[str, Any]:
    """The state and the losses of ``moe`` (16 experts, 2 called) or ``dense`` (as many active multiplications).

    AdamW with 10 % warm-up and a cosine down to 10 %, batch 16, gradients clipped at norm 1. ``val_loss`` is on the
    first half of the held-out text, ``test_loss`` on the second.
    """
    model = MODELS[arm](setting.init_seed)
    choices, _ = moe_lm.validation_and_test(corpus)
    batches = training.text_batches(choices, BATCH, CONTEXT, setting.data_seed, validation_windows=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = training.warmup_cosine(setting.steps)
    history = training.train(model, batches, optimizer, schedule, setting.steps, clip=1.0)
    return {"state": model.state_dict(), "val_loss": history.val_loss, "parameters": char_lm.parameter_count(model),
            "test_loss": training.evaluate(model, test_batches(corpus)), "digest": corpus.digest}


def mixture_with(state: dict[str, Tensor]) -> MoELM:
    """The trained mixture, in evaluation mode."""
    model = moe_lm.make(0, MIXTURE)
    model.load_state_dict(state)
    model.eval()
    return model


def test_windows(corpus: Corpus, count: int = TEST_WINDOWS) -> Tensor:
    """Windows [count, 65], or as many as fit, spread evenly over the text that no choice has seen."""
    _, held_out = moe_lm.validation_and_test(corpus)
    batches = training.text_batches(held_out, 1, CONTEXT, 0, validation_windows=count, validation_batch=count)
    return batches.validation[0][0]


def test_batches(corpus: Corpus) -> tuple[training.Batch, ...]:
    """The test windows, 64 at a time: 4096 tokens share the buffers of a capacity."""
    return tuple((part,) for part in test_windows(corpus).split(TEST_BATCH))


def calibration(corpus: Corpus, count: int, *keys: object) -> Tensor:
    """Random windows [count, 64] of the training text."""
    starts = torch.randint(len(corpus.train) - CONTEXT, (count, 1), generator=generator("calibration", *keys))
    return corpus.train[starts + torch.arange(CONTEXT)].long()


def cost(model: MoELM, corpus: Corpus, whole: float) -> dict[str, float]:
    """Test loss of a model with other gates above ``whole``, and the share of calls it saves on the first batch."""
    batches = test_batches(corpus)
    excess = training.evaluate(model, batches) - whole
    calls = [survey.expert_calls(seen) for seen in survey.recorded(model, batches[0][0][:, :-1])]
    return {"excess": excess, "ppl_ratio": math.exp(excess), "saved": 1 - float(np.mean(calls)) / MIXTURE.top_k}


def traces(model: MoELM, corpus: Corpus, sequences: int, seed: int) -> Traces:
    """Calls of each layer [sequences, time, k], and at the end those of the last layer that look-ahead guesses.

    ``text`` is held-out text, ``sampled`` what the model writes behind its first 16 characters at temperature 0.8,
    ``calibration`` training text.
    """
    read = test_windows(corpus, sequences)[:, :-1]
    written = survey.decode(model, read[:, :PROMPT], CONTEXT - PROMPT, TEMPERATURE, generator("decode", seed))
    before = calibration(corpus, sequences, seed, "traces")
    found: Traces = {}
    for name, tokens, first in (("text", read, 0), ("sampled", written, PROMPT), ("calibration", before, 0)):
        calls = [seen.all_routes().chosen for seen in survey.recorded(model, tokens)]
        calls.append(survey.look_ahead(model, tokens, layer=len(calls) - 2))
        found[name] = [part.unflatten(0, tokens.shape)[:, first:].numpy() for part in calls]
    return found
