"""Soft-NMS (Bodla et al. 2017, doi 10.1109/ICCV.2017.593): overlapping detections lose score instead of their place.

Greedy suppression repeats, for the detections of one class: take the remaining box M with the highest current score,
keep it, and multiply the score s_i of every other remaining box b_i by a factor of its overlap with M:

    hard      0 if IoU(M, b_i) > N_t else 1          (ordinary NMS)
    linear    1 - IoU(M, b_i) if IoU(M, b_i) > N_t else 1
    gaussian  exp(-IoU(M, b_i)^2 / sigma)            (for all boxes)

Boxes whose score falls below a floor are dropped. M is chosen anew by the decayed scores at each step: sorting once
would be the hard rule's logic. What is kept carries its decayed score. This file says it plainly, in NumPy and in
torch; :mod:`soft_nms_numba` says it fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Decay = Literal["hard", "linear", "gaussian"]
DECAYS: tuple[Decay, ...] = ("hard", "linear", "gaussian")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How scores decay; the defaults are the paper's (N_t = 0.3, sigma = 0.5, floor 0.001).

    ``pixel_inclusive`` adds 1 to widths and heights, as the authors' code does: their corners are pixels that belong to
    the box. Overlap must exceed ``threshold``: equal is not enough.
    """

    decay: Decay = "gaussian"
    threshold: float = 0.3
    sigma: float = 0.5
    floor: float = 0.001
    pixel_inclusive: bool = False

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay must be one of {', '.join(DECAYS)}, not {self.decay!r}")
        if not (0 <= self.threshold <= 1 and self.sigma > 0 and self.floor > 0):
            raise ValueError("threshold must lie in 0..1, sigma and floor must be positive")

    @property
    def margin(self) -> float:
        """What is added to every width and height."""
        return 1.0 if self.pixel_inclusive else 0.0

    def factor(self, iou: Floats) -> Floats:
        """What scores are multiplied by, for overlaps of any shape."""
        if self.decay == "gaussian":
            return np.exp(-(iou**2) / self.sigma)
        return np.where(iou > self.threshold, 0.0 if self.decay == "hard" else 1.0 - iou, 1.0)


def overlaps(box: Floats, boxes: Floats, margin: float = 0.0) -> Floats:
    """IoU of one box (x1, y1, x2, y2) with each of ``boxes`` [n, 4]: [n]."""
    inter = np.clip(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + margin, 0, None).prod(1)
    areas = (boxes[:, 2:] - boxes[:, :2] + margin).prod(1)
    return inter / ((box[2:] - box[:2] + margin).prod() + areas - inter)


def soft_nms(boxes: Floats, scores: Floats, rule: Rule, labels: NDArray[np.int64] | None = None) -> Floats:
    """The score of every box after suppression, float64 [n] in the order given; 0 where it was dropped.

    ``boxes`` is [n, 4], ``scores`` [n]. With ``labels`` [n] each class is suppressed by itself. Kept boxes by falling
    result are in the order of their selection. Of equal scores the first row is selected.
    """
    result = np.zeros(len(scores))
    for label in [None] if labels is None else np.unique(labels):
        rows = np.arange(len(scores)) if label is None or labels is None else np.flatnonzero(labels == label)
        result[rows] = _one_class(np.asarray(boxes, np.float64)[rows], np.asarray(scores, np.float64)[rows], rule)
    return result


def _one_class(boxes: Floats, scores: Floats, rule: Rule) -> Floats:
    result = np.zeros(len(scores))
    remaining = np.where(scores < rule.floor, 0.0, scores)
    while remaining.any():
        best = int(np.argmax(remaining))
        result[best], remaining[best] = remaining[best], 0.0
        remaining *= rule.factor(overlaps(boxes[best], boxes, rule.margin))
        remaining[remaining < rule.floor] = 0.0
    return result


def soft_nms_torch(boxes: Tensor, scores: Tensor, rule: Rule) -> Tensor:
    """:func:`soft_nms` of one class, vectorised at each step, on the device of its arguments [n, 4] and [n].

    One selection at a time, with one question to the device for each: has it ended.
    """
    result = torch.zeros_like(scores)
    remaining = torch.where(scores < rule.floor, 0.0, scores)
    areas = (boxes[:, 2:] - boxes[:, :2] + rule.margin).prod(1)
    while True:
        top, best = remaining.max(0)
        if top <= 0:
            return result
        result[best] = top
        remaining[best] = 0.0
        corner, far = boxes[best, :2], boxes[best, 2:]
        sides = torch.minimum(far, boxes[:, 2:]) - torch.maximum(corner, boxes[:, :2]) + rule.margin
        inter = sides.clamp_min(0).prod(1)
        iou = inter / (areas[best] + areas - inter)
        if rule.decay == "gaussian":
            remaining *= torch.exp(-(iou**2) / rule.sigma)
        else:
            less = torch.zeros_like(iou) if rule.decay == "hard" else 1.0 - iou
            remaining *= torch.where(iou > rule.threshold, less, 1.0)
        remaining[remaining < rule.floor] = 0.0
