"""scikit-learn's 1797 handwritten digits, as they are and made hard enough that accuracies do not saturate."""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from reference.testbeds.seeding import generator

CLASSES = 10
_HARD_TRAINING_IMAGES = 600
_HARD_SIDE = 12
_HARD_NOISE = 0.3


@dataclass(frozen=True)
class Split:
    """Images float32 [n, 1, side, side], the ink in 0..1, and labels int64 [n], in three disjoint stratified parts."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor
    test_x: Tensor
    test_y: Tensor


def digits(seed: int) -> Split:
    """All 1797 images of 8x8, split 60/20/20 by the seed, every class in proportion."""
    images, labels = _all_digits()
    train, rest = _stratified(torch.arange(len(labels)), labels, 0.4, seed)
    val, test = _stratified(rest, labels, 0.5, seed)
    return Split(images[train], labels[train], images[val], labels[val], images[test], labels[test])


def digits_hard(seed: int) -> Split:
    """`digits(seed)` on a 12x12 canvas at a random place, with pixel noise of 0.3 of the range, 600 training images.

    Place and noise of an image are drawn once. Noise is Gaussian and not clipped, so pixels leave 0..1.
    """
    clean = digits(seed)
    count = len(clean.train_y)
    kept, _ = _stratified(torch.arange(count), clean.train_y, count - _HARD_TRAINING_IMAGES, seed)
    return Split(
        _spoil(clean.train_x[kept], "train", seed),
        clean.train_y[kept],
        _spoil(clean.val_x, "val", seed),
        clean.val_y,
        _spoil(clean.test_x, "test", seed),
        clean.test_y,
    )


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    bunch = load_digits()
    return torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16, torch.tensor(bunch.target)


def _stratified(rows: Tensor, labels: Tensor, second: float | int, seed: int) -> tuple[Tensor, Tensor]:
    """The rows in two parts; `second` is the share, or the number, of rows in the second."""
    parts = train_test_split(rows.numpy(), test_size=second, random_state=seed % 2**32, stratify=labels[rows].numpy())
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])


def _spoil(images: Tensor, part: str, seed: int) -> Tensor:
    random = generator("digits_hard", part, seed)
    count, side = len(images), images.shape[-1]
    shifts = torch.randint(_HARD_SIDE - side + 1, (2, count, 1), generator=random)
    rows, columns = shifts + torch.arange(side)
    canvas = torch.zeros(count, 1, _HARD_SIDE, _HARD_SIDE)
    canvas[torch.arange(count)[:, None, None], 0, rows[:, :, None], columns[:, None, :]] = images[:, 0]
    return canvas + _HARD_NOISE * torch.empty_like(canvas).normal_(generator=random)
