"""The timed problems: suppression of the same boxes by the hard and the soft rule, and by several implementations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem, SkipArm
from reference.methods.softmax.soft_nms import Rule, soft_nms, soft_nms_torch
from reference.methods.softmax.soft_nms_detection import random_proposals
from reference.methods.softmax.soft_nms_numba import hard_nms
from reference.methods.softmax.soft_nms_numba import soft_nms as soft_nms_fast

SOFT, HARD = Rule("gaussian"), Rule("hard")
_BOX_BYTES, _IOU_FLOPS = 32, 12


@dataclass(frozen=True)
class Result:
    """Scores [images, n] after suppression by the rule called ``rule``."""

    rule: str
    scores: np.ndarray


def _plain(boxes: np.ndarray, scores: np.ndarray, rule: Rule) -> np.ndarray:
    return np.stack([soft_nms(*image, rule) for image in zip(boxes, scores, strict=True)])


def _error(found: Result, truth: dict[str, np.ndarray]) -> float:
    """The largest difference of a score to that of the plain form; NaN where one is not a number."""
    return float(np.abs(found.scores - truth[found.rule]).max())


def _problem(images: int, n: int, objects: int, arms: dict[str, Arm | SkipArm]) -> Problem:
    return Problem(
        inputs=lambda rng: random_proposals(rng, images, n, objects),
        buffers=lambda boxes, scores: (np.empty_like(scores),),
        truth=lambda boxes, scores: {"hard": _plain(boxes, scores, HARD), "soft": _plain(boxes, scores, SOFT)},
        error=_error,
        arms=arms,
        input_bytes=images * n * (_BOX_BYTES + 8),
        tolerance=1e-9,
    )


def _arm(rule: str, images: int, n: int, run: Callable[..., Any]) -> Arm:
    """Cost: every pair of boxes once, n^2 / 2 overlaps; what is dropped early makes it less."""
    pairs = images * n * n / 2
    return Arm(run, bytes_moved=pairs * _BOX_BYTES, flops=pairs * _IOU_FLOPS, outputs=lambda out: Result(rule, out))


def complexity_problem(n: int, objects: int) -> Problem:
    """One image, both rules."""
    return _problem(1, n, objects, {
        "hard": _arm("hard", 1, n, lambda boxes, scores, out: _done(hard_nms(boxes, scores, HARD.threshold, out=out))),
        "soft": _arm("soft", 1, n, lambda boxes, scores, out: _done(soft_nms_fast(boxes, scores, SOFT, out=out))),
    })


def throughput_problem(images: int, n: int) -> Problem:
    """Gaussian soft-NMS of several images, ten boxes about each object."""

    def in_torch(boxes: np.ndarray, scores: np.ndarray, out: np.ndarray) -> None:
        for image in range(images):
            result = soft_nms_torch(torch.from_numpy(boxes[image]), torch.from_numpy(scores[image]), SOFT)
            out[image] = result.numpy()

    def in_numpy(boxes: np.ndarray, scores: np.ndarray, out: np.ndarray) -> None:
        out[:] = _plain(boxes, scores, SOFT)

    return _problem(images, n, n // 10, {
        "numba": _arm("soft", images, n, lambda boxes, scores, out: _done(soft_nms_fast(boxes, scores, SOFT, out=out))),
        "torch": _arm("soft", images, n, in_torch),
        "numpy": _arm("soft", images, n, in_numpy),
        "ensemble_boxes": _ensemble_boxes(images, n),
    })


def _ensemble_boxes(images: int, n: int) -> Arm | SkipArm:
    """The library's own loop; its public function returns the scores from before the decay, so this asks one below."""
    try:
        from ensemble_boxes.ensemble_boxes_nms import cpu_soft_nms_float
    except ImportError:
        return SkipArm("ensemble-boxes is not installed")

    def run(boxes: np.ndarray, scores: np.ndarray, out: np.ndarray) -> None:
        out[:] = 0.0
        for image in range(images):
            decayed = scores[image].copy()  # overwritten, in the order of selection
            kept = cpu_soft_nms_float(boxes[image], decayed, SOFT.threshold, SOFT.sigma, SOFT.floor, 2)
            out[image, kept] = decayed[decayed > SOFT.floor]

    return _arm("soft", images, n, run)


def _done(result: np.ndarray) -> None:
    """The result is in the buffer; what a function returns would be taken for it."""
