"""Scenes of textured shapes with known boxes, and with as much overlap between objects of a class as is asked for.

Objects come in pairs of one class. The crowding of a scene is the IoU of the two boxes of a pair; boxes of different
pairs are disjoint. So crowding is, by construction, the mean over objects of the largest IoU with another object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reference.testbeds.average_precision import Objects, iou_matrix
from reference.testbeds.seeding import generator

CLASSES = 3  # ellipse, rectangle, triangle
SIDE = 96
MAX_OBJECTS = 6
CROWDING = (0.0, 0.2, 0.4, 0.6)
_SPREAD = 0.1
_SIZES = (16.0, 30.0)
_GAP = 1.0
_NOISE = 0.12
_TRIES = 200

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Scenes:
    """Images float32 [n, 1, side, side]; boxes float32 [n, 6, 4] in pixels; labels int64 [n, 6], -1 where no object."""

    images: Tensor
    boxes: Tensor
    labels: Tensor

    def objects(self) -> Objects:
        """All objects, as the evaluator takes them."""
        image, place = torch.nonzero(self.labels >= 0, as_tuple=True)
        return Objects(image.numpy(), self.labels[image, place].numpy(), self.boxes[image, place].double().numpy())

    def crowding(self) -> float:
        """Mean over objects of the largest IoU with another object of the scene."""
        largest = []
        for boxes, labels in zip(self.boxes.double().numpy(), self.labels.numpy(), strict=True):
            table = iou_matrix(boxes[labels >= 0], boxes[labels >= 0])
            np.fill_diagonal(table, 0.0)
            largest.extend(table.max(axis=1))
        return float(np.mean(largest))


def scenes(count: int, crowding: float | None, seed: int, part: str = "train", side: int = SIDE) -> Scenes:
    """``count`` scenes of 2 or 3 pairs whose IoU is uniform in crowding +- 0.1, or 0 where crowding is 0.

    None mixes: each pair takes one of the levels of ``CROWDING``. Parts and seeds are independent draws. Pixels lie
    around 0.5, with Gaussian noise, not clipped. Raises ValueError for a crowding outside [0, 0.8].
    """
    if crowding is not None and not 0 <= crowding <= 0.8:
        raise ValueError(f"crowding must lie in 0..0.8, not {crowding}")
    random = np.random.default_rng(generator("scenes", part, crowding, seed).initial_seed())
    images = np.empty((count, side, side), np.float32)
    boxes = np.zeros((count, MAX_OBJECTS, 4), np.float32)
    labels = np.full((count, MAX_OBJECTS), -1, np.int64)
    for index in range(count):
        placed = _layout(random, crowding, side)
        images[index] = _background(random, side)
        for place in random.permutation(len(placed)):
            box, label = placed[place]
            boxes[index, place], labels[index, place] = box, label
            _paint(images[index], box, label, random)
    images += _NOISE * random.standard_normal(images.shape, np.float32)
    return Scenes(torch.from_numpy(images)[:, None], torch.from_numpy(boxes), torch.from_numpy(labels))


def _layout(random: np.random.Generator, crowding: float | None, side: int) -> list[tuple[Box, int]]:
    """Two or three pairs; a scene in which a pair found no room is begun anew."""
    while True:
        placed: list[tuple[Box, int]] = []
        for _ in range(random.integers(2, 4)):
            level = random.choice(CROWDING) if crowding is None else crowding
            pair = _pair(random, level, [box for box, _ in placed], side)
            if pair is None:
                break
            label = int(random.integers(CLASSES))
            placed += [(box, label) for box in pair]
        else:
            return placed


def _pair(random: np.random.Generator, level: float, others: list[Box], side: int) -> tuple[Box, Box] | None:
    for _ in range(_TRIES):
        first = _anywhere(random, side)
        if level == 0:
            second = _anywhere(random, side)
            apart = _apart(second, [first])
        else:
            second = _partner(random, first, random.uniform(level - _SPREAD, level + _SPREAD))
            apart = min(second[:2]) >= 0 and max(second[2:]) <= side
        if apart and _apart(first, others) and _apart(second, others):
            return first, second
    return None


def _anywhere(random: np.random.Generator, side: int) -> Box:
    width, height = random.uniform(*_SIZES, 2)
    left, top = random.uniform(0, side - width), random.uniform(0, side - height)
    return left, top, left + width, top + height


def _partner(random: np.random.Generator, first: Box, target: float) -> Box:
    """A box of a similar size, moved in a random direction until its IoU with ``first`` is the target."""
    width, height = first[2] - first[0], first[3] - first[1]
    stretch = 1 + 0.1 * (1 - target) * random.uniform(-1, 1, 2)
    angle = random.uniform(0, 2 * math.pi)
    center = (first[0] + first[2]) / 2, (first[1] + first[3]) / 2

    def moved(by: float) -> Box:
        x, y = center[0] + by * math.cos(angle), center[1] + by * math.sin(angle)
        w, h = width * stretch[0] / 2, height * stretch[1] / 2
        return x - w, y - h, x + w, y + h

    near, far = 0.0, 2 * (width + height)
    for _ in range(24):
        middle = (near + far) / 2
        near, far = (middle, far) if _iou(first, moved(middle)) > target else (near, middle)
    return moved(near)


def _iou(a: Box, b: Box) -> float:
    inter = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def _apart(box: Box, others: list[Box]) -> bool:
    return all(
        box[0] > other[2] + _GAP or box[2] < other[0] - _GAP or box[1] > other[3] + _GAP or box[3] < other[1] - _GAP
        for other in others
    )


def _background(random: np.random.Generator, side: int) -> NDArray[np.float32]:
    """Two faint waves across the whole image."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    waves = [_wave(random, x, y, 0.01, 0.05) for _ in range(2)]
    return np.float32(0.5) + np.float32(0.08) * (waves[0] + waves[1])


def _wave(
    random: np.random.Generator, x: NDArray[np.float32], y: NDArray[np.float32], slowest: float, fastest: float
) -> NDArray[np.float32]:
    angle, phase = random.uniform(0, math.pi), random.uniform(0, 2 * math.pi)
    frequency = random.uniform(slowest, fastest)
    along = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    return np.sin(np.float32(2 * math.pi * frequency) * along + np.float32(phase))


def _paint(image: NDArray[np.float32], box: Box, label: int, random: np.random.Generator) -> None:
    """One shape with its own stripes and a rim of the opposite shade, antialiased, over whatever is there."""
    left, top, right, bottom = (math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3]))
    part = image[top:bottom, left:right]
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32) + np.float32(0.5)
    width, height = box[2] - box[0], box[3] - box[1]
    depth = _depth(label, (x - (box[0] + box[2]) / 2) / (width / 2), (y - (box[1] + box[3]) / 2) / (height / 2))
    depth = depth * np.float32(min(width, height) / 2)  # in pixels below the rim
    sign = random.choice((-1.0, 1.0))
    shade = np.float32(0.5 + sign * random.uniform(0.05, 0.25))
    inside = shade + np.float32(0.15) * _wave(random, x, y, 0.06, 0.2)
    value = np.where(depth < 1.5, np.float32(0.5 - 0.3 * sign), inside)
    alpha = np.clip(depth + 0.5, 0, 1)
    part += (alpha * (value - part)).astype(np.float32)


def _depth(label: int, u: NDArray[np.float32], v: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far inside the shape, in half-widths; u and v run from -1 to 1 across the box."""
    if label == 0:
        return 1 - np.sqrt(u * u + v * v)
    if label == 1:
        return 1 - np.maximum(np.abs(u), np.abs(v))
    return np.minimum((1 + v) / 2 - np.abs(u), 1 - v)
