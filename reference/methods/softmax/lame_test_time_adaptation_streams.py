"""Test streams of glyphs for test-time adaptation: a classifier trained without shift, and what it then meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any, cast

import torch
from torch import Tensor

from reference.testbeds import shifts
from reference.testbeds.glyph_nets import ResidualNet, residual_net
from reference.testbeds.glyphs import glyphs
from reference.testbeds.training import array_batches, array_digest, train, warmup_cosine

CLASSES = range(60)
BATCH = 64  # images that arrive together; in training, too
SEVERITY = 2
CORRUPTIONS = {"test": ("clean", "noise", "blur"), "validation": ("impulse", "pixelate", "fog")}
ORDERS = ("iid", "bursts")
PRIORS = ("balanced", "zipf")
_LR = 2e-3
_EPOCHS = 8


@dataclass(frozen=True)
class Scenario:
    """What one stream is like."""

    corruption: str
    order: str
    prior: str


def scenarios(corruption: str, order: str, prior: str) -> list[Scenario]:
    """One scenario, or several: the corruption may be `validation` or `test`, order and prior may be `every`."""
    corruptions = CORRUPTIONS.get(corruption, (corruption,))
    orders, priors = (ORDERS if order == "every" else (order,)), (PRIORS if prior == "every" else (prior,))
    return [Scenario(*names) for names in product(corruptions, orders, priors)]


def classifier(config: Mapping[str, Any]) -> ResidualNet:
    """A residual net with batch norm after `steps` steps of Adam on fresh glyphs, in evaluation mode.

    `config` also names the `side` of the images, the net's `width` and the `seed`. There are as many images as eight
    epochs need.
    """
    seed, side, steps = config["seed"], config["side"], config["steps"]
    net = residual_net(seed, len(CLASSES), config["width"])
    per_class = max(2, steps * BATCH // (_EPOCHS * len(CLASSES)))
    x, y = glyphs(CLASSES, per_class, seed, "train", side=side)
    held_out = glyphs(CLASSES, 1, seed, "val", side=side)
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
    train(net, array_batches(x, y, BATCH, seed, held_out), optimizer, warmup_cosine(steps), steps)
    return net.eval()


def pool(config: Mapping[str, Any]) -> tuple[Tensor, Tensor, str]:
    """`images` test images, their labels in the shares of the `prior`, and the digest of both.

    `config` also names the `side` and the `seed`.
    """
    count, prior, seed = config["images"], config["prior"], config["seed"]
    largest = int(shifts.class_counts(len(CLASSES), count, prior, seed).max())
    x, y = glyphs(CLASSES, largest, seed, "test", side=config["side"])
    rows = shifts.stream(y, count, "iid", prior, seed)
    return x[rows], y[rows], array_digest(x[rows], y[rows])


def stream(x: Tensor, y: Tensor, scenario: Scenario, seed: int) -> tuple[Tensor, Tensor]:
    """All images of a pool with their labels, in the order of the scenario, corrupted."""
    rows = shifts.arrange(y, cast(shifts.Order, scenario.order), seed)
    return shifts.corrupt(x[rows], scenario.corruption, SEVERITY, seed), y[rows]
