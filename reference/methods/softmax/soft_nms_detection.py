"""Suppression inside a detector: from raw proposals to detections and their average precision, rules chosen by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.methods.softmax.soft_nms import Decay, Rule
from reference.methods.softmax.soft_nms_numba import hard_nms, soft_nms
from reference.testbeds.average_precision import Detections, Objects, average_precision
from reference.testbeds.boxes import scenes
from reference.testbeds.detector import Detector, Proposals, propose, scene_batches, simulated, trained

Floats = NDArray[np.float64]
# What is tuned of each decay, and where: as many values for each.
GRIDS: Mapping[Decay, tuple[str, tuple[float, ...]]] = {
    "hard": ("threshold", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "linear": ("threshold", (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
    "gaussian": ("sigma", (0.1, 0.3, 0.5, 0.7, 0.9, 1.3, 2.0)),
}


def suppress(found: Proposals, rule: Rule, most: int = 100) -> Detections:
    """Class by class; of each image the ``most`` best of what is left, with the decayed scores."""
    if rule.decay == "hard":
        scores = hard_nms(found.boxes, found.scores, rule.threshold, found.labels, rule.floor)
    else:
        scores = soft_nms(found.boxes, found.scores, rule, found.labels)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :most]
    image = np.repeat(np.arange(len(scores)), order.shape[1])
    place = order.reshape(-1)
    kept = scores[image, place] > 0
    image, place = image[kept], place[kept]
    boxes, labels = found.boxes[image, place].astype(np.float64), found.labels[image, place].astype(np.int64)
    return Detections(image, labels, scores[image, place], boxes)


def ap_percent(objects: Objects, found: Proposals, rule: Rule) -> float:
    """AP@[.5:.95] in points (0..100) of what the rule leaves."""
    return 100 * average_precision(objects, suppress(found, rule))


def rules(decay: Decay) -> list[Rule]:
    """The rules of its grid."""
    name, values = GRIDS[decay]
    return [Rule(decay, **{name: value}) for value in values]


def best_rule(objects: Objects, found: Proposals, candidates: Sequence[Rule]) -> Rule:
    """The candidate with the highest AP; the first of equals."""
    return max(candidates, key=lambda rule: ap_percent(objects, found, rule))


def detector(config: Mapping[str, Any]) -> Detector:
    """Trained for `steps` on mixed scenes of this `seed`, as many as `images`, whose crowding covers all levels."""
    seed = config["seed"]
    batches = scene_batches(scenes(config["images"], None, seed), 16, seed, scenes(64, None, seed, "val"))
    return trained(seed, batches, config["steps"])[0]


def detected(
    model: Detector | None, crowding: float | None, images: int, seed: int, part: str
) -> tuple[Objects, Proposals]:
    """The objects of a part's scenes, and the raw proposals for them: the detector's, or simulated ones without it."""
    drawn = scenes(images, crowding, seed, part)
    return drawn.objects(), propose(model, drawn.images) if model is not None else simulated(drawn, seed)


def random_proposals(random: np.random.Generator, images: int, n: int, objects: int) -> tuple[Floats, Floats]:
    """Boxes float64 [images, n, 4] jittered about objects, all scores different [images, n].

    Objects are 20 to 40 wide and lie on a canvas with room for about three of them each, however many there are.
    """
    canvas = 50.0 * np.sqrt(objects)
    center, size = random.uniform(0, canvas, (images, objects, 2)), random.uniform(20, 40, (images, objects, 2))
    of = np.broadcast_to(np.arange(n) % objects, (images, n))[..., None]
    center = np.take_along_axis(center, of, 1) + random.normal(0, 3, (images, n, 2))
    size = np.take_along_axis(size, of, 1) * np.exp(random.normal(0, 0.1, (images, n, 2)))
    scores = (random.permuted(np.tile(np.arange(n), (images, 1)), axis=1) + random.uniform(0.1, 0.9, (images, n))) / n
    return np.concatenate([center - size / 2, center + size / 2], axis=-1), scores
