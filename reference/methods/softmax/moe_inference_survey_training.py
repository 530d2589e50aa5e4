"""The models that the survey's techniques are compared on: a mixture of experts and a dense one, trained on DOC."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reference.testbeds import char_lm, moe_lm, training
from reference.testbeds.text import Corpus, corpus

MODELS = {"moe": moe_lm.make, "dense": moe_lm.make_dense}
BATCH, CONTEXT, TEST_WINDOWS, TEST_BATCH = 16, 64, 512, 64


def doc(config: Mapping[str, Any]) -> Corpus:
    """DOC up to ``corpus_bytes``."""
    return corpus("DOC", config["corpus_bytes"])


def pretrained(config: Mapping[str, Any]) -> dict[str, Any]:
    """The state and the losses of ``moe`` (16 experts, 2 called) or ``dense`` (as many active multiplications).

    AdamW with 10 % warm-up and a cosine down to 10 %, batches of 16 windows of 64 characters, gradients clipped at norm
    1. ``val_loss`` is on the first half of the held-out text, ``test_loss`` on the second.
    """
    steps, text = config["steps"], doc(config)
    model = MODELS[config["arm"]](config["init_seed"])
    choices, _ = moe_lm.validation_and_test(text)
    batches = training.text_batches(choices, BATCH, CONTEXT, config["data_seed"], validation_windows=TEST_WINDOWS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    history = training.train(model, batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    return {"state": model.state_dict(), "val_loss": history.val_loss, "parameters": char_lm.parameter_count(model),
            "test_loss": training.evaluate(model, test_batches(text)), "digest": text.digest}


def test_windows(text: Corpus, count: int = TEST_WINDOWS) -> Tensor:
    """Windows [count, 65], or as many as fit, spread evenly over the text that no choice has seen."""
    _, held_out = moe_lm.validation_and_test(text)
    batches = training.text_batches(held_out, 1, CONTEXT, 0, validation_windows=count, validation_batch=count)
    return batches.validation[0][0]


def test_batches(text: Corpus, count: int = TEST_WINDOWS) -> tuple[training.Batch, ...]:
    """The test windows, 64 at a time: 4096 tokens share the buffers of a capacity."""
    return tuple((part,) for part in test_windows(text, count).split(TEST_BATCH))
