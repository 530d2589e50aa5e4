"""Soft-NMS and ordinary greedy NMS in Numba: batches of images, classes by themselves, results as in :mod:`soft_nms`.

Both run over columns of coordinates in float64. A step is two loops: the overlaps of all remaining boxes with the
selected one, which the compiler vectorises, and a second that decays scores and finds the next box, so that selection
costs no pass of its own. Once half of the columns are dropped, the rest is moved together.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from reference.kernels.jit import kernel
from reference.methods.softmax.soft_nms import DECAYS, Rule

_OPTIONS = {"error_model": "numpy", "nogil": True}
_inline = njit(inline="always", **_OPTIONS)
_HARD, _LINEAR = 0, 1

Array = NDArray[np.floating]
Floats = NDArray[np.float64]


def soft_nms(
    boxes: Array, scores: Array, rule: Rule, labels: NDArray[np.integer] | None = None, out: Floats | None = None
) -> Floats:
    """The score of every box after suppression, float64 [..., n], 0 where it was dropped.

    ``boxes`` is [..., n, 4], ``scores`` and ``labels`` [..., n]: images are suppressed by themselves, and so are the
    classes 0, 1, ... of an image. Of equal scores the first is selected. ``out`` takes the result, if given.
    """
    arrays = _batched(boxes, scores, labels, out)
    _soft(*arrays, DECAYS.index(rule.decay), rule.threshold, rule.sigma, rule.floor, rule.margin)
    return arrays[-1].reshape(np.shape(scores))


def hard_nms(
    boxes: Array, scores: Array, threshold: float, labels: NDArray[np.integer] | None = None, floor: float = 0.001,
    out: Floats | None = None,
) -> Floats:
    """What :func:`soft_nms` gives with the hard rule, by the ordinary algorithm: sort once, skip what is suppressed."""
    arrays = _batched(boxes, scores, labels, out)
    _hard(*arrays, threshold, floor)
    return arrays[-1].reshape(np.shape(scores))


def _batched(
    boxes: Array, scores: Array, labels: NDArray[np.integer] | None, out: Floats | None
) -> tuple[Floats, Floats, NDArray[np.int64], Floats]:
    *batch, count = np.shape(scores)
    flat = np.ascontiguousarray(scores, np.float64).reshape(math.prod(batch), count)
    classes = np.zeros(flat.shape, np.int64) if labels is None else np.ascontiguousarray(labels, np.int64)
    result = np.empty(flat.shape) if out is None else out.reshape(flat.shape)
    return np.ascontiguousarray(boxes, np.float64).reshape(*flat.shape, 4), flat, classes.reshape(flat.shape), result


@_inline
def _gather(boxes, scores, labels, label, floor, work, place):  # type: ignore[no-untyped-def]
    """Columns x1, y1, x2, y2, score of the boxes of a class at or above the floor; how many there are."""
    count = 0
    for i in range(len(scores)):
        if labels[i] == label and scores[i] >= floor:
            for side in range(4):
                work[side, count] = boxes[i, side]
            work[4, count] = scores[i]
            place[count] = i
            count += 1
    return count


@_inline
def _overlaps(work, box, first, last, margin, iou):  # type: ignore[no-untyped-def]
    x1, y1, x2, y2 = box
    area = (x2 - x1 + margin) * (y2 - y1 + margin)
    for i in range(first, last):
        width = max(min(x2, work[2, i]) - max(x1, work[0, i]) + margin, 0.0)
        height = max(min(y2, work[3, i]) - max(y1, work[1, i]) + margin, 0.0)
        inter = width * height
        other = (work[2, i] - work[0, i] + margin) * (work[3, i] - work[1, i] + margin)
        iou[i] = inter / (area + other - inter)


@_inline
def _compacted(work, place, first, last):  # type: ignore[no-untyped-def]
    """Columns with a score moved together from 0 on, in their order; how many there are."""
    count = 0
    for i in range(first, last):
        if work[4, i] > 0.0:
            for row in range(5):
                work[row, count] = work[row, i]
            place[count] = place[i]
            count += 1
    return count


@kernel(**_OPTIONS)
def _soft(boxes, scores, labels, out, decay, threshold, sigma, floor, margin):  # type: ignore[no-untyped-def]
    images, n = scores.shape
    work, iou, place = np.empty((5, n)), np.empty(n), np.empty(n, np.int64)
    for image in range(images):
        out[image] = 0.0
        for label in range(labels[image].max() + 1 if n else 0):
            count = _gather(boxes[image], scores[image], labels[image], label, floor, work, place)
            best, alive = (np.argmax(work[4, :count]) if count else -1), count
            while best >= 0:
                out[image, place[best]] = work[4, best]
                box = (work[0, best], work[1, best], work[2, best], work[3, best])
                work[4, best] = 0.0
                alive -= 1
                if 2 * alive < count:
                    count = _compacted(work, place, 0, count)
                _overlaps(work, box, 0, count, margin, iou)
                best, top = -1, 0.0
                for i in range(count):
                    score = work[4, i]
                    if score > 0.0 and iou[i] > (threshold if decay <= _LINEAR else 0.0):
                        if decay == _HARD:
                            score = 0.0
                        elif decay == _LINEAR:
                            score *= 1.0 - iou[i]
                        else:
                            score *= math.exp(-iou[i] * iou[i] / sigma)
                        if score < floor:
                            score = 0.0
                            alive -= 1
                        work[4, i] = score
                    if score > top:
                        best, top = i, score


@kernel(**_OPTIONS)
def _hard(boxes, scores, labels, out, threshold, floor):  # type: ignore[no-untyped-def]
    images, n = scores.shape
    work, iou, place = np.empty((5, n)), np.empty(n), np.empty(n, np.int64)
    for image in range(images):
        out[image] = 0.0
        order = np.argsort(-scores[image], kind="mergesort")
        for label in range(labels[image].max() + 1 if n else 0):
            count = _gather(boxes[image][order], scores[image][order], labels[image][order], label, floor, work, place)
            at, alive = 0, count
            while at < count:
                if work[4, at] == 0.0:
                    at += 1
                    continue
                out[image, order[place[at]]] = work[4, at]
                box = (work[0, at], work[1, at], work[2, at], work[3, at])
                at += 1
                alive -= 1
                if 2 * alive < count - at:
                    count = _compacted(work, place, at, count)
                    at = 0
                _overlaps(work, box, at, count, 0.0, iou)
                for i in range(at, count):
                    if work[4, i] > 0.0 and iou[i] > threshold:
                        work[4, i] = 0.0
                        alive -= 1
