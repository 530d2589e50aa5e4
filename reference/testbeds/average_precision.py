"""COCO's average precision: greedy matching at ten IoU thresholds, precision interpolated at 101 recalls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reference.kernels.jit import kernel

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Objects:
    """What is there to be found, one row per object: image [n], label [n], box float64 [n, 4] as (x1, y1, x2, y2)."""

    image: Integers
    label: Integers
    box: Floats


@dataclass(frozen=True)
class Detections:
    """What was found, one row per detection: image [n], label [n], score [n], box float64 [n, 4]."""

    image: Integers
    label: Integers
    score: Floats
    box: Floats


def average_precision(objects: Objects, found: Detections, max_per_image: int = 100) -> float:
    """AP@[.5:.95] in 0..1: the mean of :func:`precision_table`. Raises ValueError where there is no object at all."""
    if len(objects.label) == 0:
        raise ValueError("average precision is not defined without an object")
    return float(precision_table(objects, found, max_per_image).mean())


def precision_table(objects: Objects, found: Detections, max_per_image: int = 100) -> Floats:
    """AP at each of the ten ``THRESHOLDS`` (rows) for each class that has objects (columns, by rising label).

    COCO's protocol without crowds and areas. The ``max_per_image`` best detections of a class in an image take, in
    falling order of score, the free object they overlap most, if IoU >= threshold. Precision is made non-increasing in
    recall from the right and read at 101 recalls; where a recall is never reached it is 0. Equal scores keep the order
    of images and, inside one, of rows.
    """
    columns = [_class_precisions(objects, found, label, max_per_image) for label in np.unique(objects.label)]
    return np.stack(columns, axis=1) if columns else np.empty((len(THRESHOLDS), 0))


def _class_precisions(objects: Objects, found: Detections, label: int, max_per_image: int) -> Floats:
    mine = np.flatnonzero(objects.label == label)
    mine = mine[np.argsort(objects.image[mine], kind="stable")]
    rows = np.flatnonzero(found.label == label)
    rows = rows[np.lexsort((-found.score[rows], found.image[rows]))]
    rows = rows[_rank_in_group(found.image[rows]) < max_per_image]
    images = np.union1d(objects.image[mine], found.image[rows])
    right = np.zeros((len(THRESHOLDS), len(rows)), np.bool_)
    _match(
        np.ascontiguousarray(found.box[rows]), _starts(found.image[rows], images),
        np.ascontiguousarray(objects.box[mine]), _starts(objects.image[mine], images), THRESHOLDS, right,
    )
    order = np.argsort(-found.score[rows], kind="stable")
    return np.array([_interpolated(hits, len(mine)) for hits in right[:, order]])


def _rank_in_group(sorted_keys: Integers) -> Integers:
    """0, 1, 2, ... inside each run of equal keys."""
    places = np.arange(len(sorted_keys))
    first = np.r_[True, sorted_keys[1:] != sorted_keys[:-1]] if len(sorted_keys) else np.zeros(0, bool)
    return places - np.maximum.accumulate(np.where(first, places, 0))


def _starts(sorted_images: Integers, images: Integers) -> Integers:
    """Where each image's rows begin, and behind them the number of rows."""
    return np.append(np.searchsorted(sorted_images, images), len(sorted_images)).astype(np.int64)


def _interpolated(hits: NDArray[np.bool_], objects: int) -> float:
    """Mean precision at the 101 recalls, ``hits`` in falling order of score."""
    true = np.cumsum(hits)
    precision = np.maximum.accumulate((true / np.arange(1, len(hits) + 1))[::-1])[::-1]
    reached = np.searchsorted(true / objects, RECALLS, side="left")
    return float(np.append(precision, 0.0)[reached].mean())


@kernel(error_model="numpy", nogil=True)
def iou_matrix(first, second):  # type: ignore[no-untyped-def]
    """IoU of every box of ``first`` [n, 4] with every box of ``second`` [m, 4]: [n, m]. Boxes without area give 0."""
    table = np.zeros((len(first), len(second)))
    for i in range(len(first)):
        for j in range(len(second)):
            width = min(first[i, 2], second[j, 2]) - max(first[i, 0], second[j, 0])
            height = min(first[i, 3], second[j, 3]) - max(first[i, 1], second[j, 1])
            if width > 0 and height > 0:
                inter = width * height
                areas = ((first[i, 2] - first[i, 0]) * (first[i, 3] - first[i, 1])
                         + (second[j, 2] - second[j, 0]) * (second[j, 3] - second[j, 1]))
                table[i, j] = inter / (areas - inter)
    return table


@kernel(error_model="numpy", nogil=True)
def _match(found, found_start, true, true_start, thresholds, right):  # type: ignore[no-untyped-def]
    """right[t, d]: whether detection d takes an object at threshold t; rows of an image lie together, best first."""
    for image in range(len(found_start) - 1):
        first, last = found_start[image], found_start[image + 1]
        low, high = true_start[image], true_start[image + 1]
        table = iou_matrix(found[first:last], true[low:high])
        for t in range(len(thresholds)):
            taken = np.zeros(high - low, np.bool_)
            for d in range(last - first):
                best, most = -1, min(thresholds[t], 1 - 1e-10)
                for g in range(high - low):
                    if not taken[g] and table[d, g] >= most:
                        best, most = g, table[d, g]
                if best >= 0:
                    taken[best] = True
                    right[t, first + d] = True
