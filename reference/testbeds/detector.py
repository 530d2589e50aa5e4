"""A small fully convolutional detector for the scenes of :mod:`boxes`: a box and class scores at every fourth pixel."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, one_hot

from reference.testbeds.boxes import CLASSES, SIDE, Scenes
from reference.testbeds.seeding import fill_uniform, generator, he_bound
from reference.testbeds.training import Batch, Batches, History, array_digest, train, warmup_cosine

STRIDE = 4
_RADIUS = 1.5 * STRIDE
_PRIOR = 0.02  # an untrained location holds an object with this probability
_SMALLEST, _LARGEST = 0.5, 4.0  # logarithms of a side's distance, in units of pixels


@dataclass(frozen=True)
class Proposals:
    """Raw boxes before any suppression, best first: boxes float32 [n, m, 4], scores float32 [n, m], labels int8 [n, m].

    A score of 0 marks an empty place.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int8]


class Detector(nn.Module):
    """Strided convolution to a quarter of the side, four dilated 3x3 convolutions, one linear map at each location.

    After FCOS (Tian et al. 2019, arXiv 1904.01355) without its centre score: a location predicts class logits and the
    distances to the four sides of its object.
    """

    def __init__(self, seed: int, width: int = 32, side: int = SIDE):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, kernel, stride, dilation in ((1, 8, STRIDE, 1), (width, 3, 1, 1), (width, 3, 1, 2),
                                                 (width, 3, 1, 1), (width, 3, 1, 2)):
            padding = 2 if stride > 1 else dilation
            layers += [
                nn.utils.skip_init(nn.Conv2d, inputs, width, kernel, stride=stride, padding=padding, dilation=dilation),
                nn.BatchNorm2d(width), nn.ReLU(),
            ]
        self.trunk = nn.Sequential(*layers)
        self.head = nn.utils.skip_init(nn.Conv2d, width, CLASSES + 4, 1)
        line = (torch.arange(side // STRIDE) + 0.5) * STRIDE
        y, x = torch.meshgrid(line, line, indexing="ij")
        self.register_buffer("centers", torch.stack([x, y], dim=-1).reshape(-1, 2), persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                fill_uniform(parameter, he_bound(parameter[0].numel()), seed, name)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias[:CLASSES] = -math.log((1 - _PRIOR) / _PRIOR)
            self.head.bias[CLASSES:] = math.log(12.0)  # half of a typical side

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [n, 1, side, side] -> class logits [n, places, classes] and boxes in pixels [n, places, 4]."""
        raw = self.head(self.trunk(images)).flatten(2).mT
        reach = raw[..., CLASSES:].clamp(_SMALLEST, _LARGEST).exp()
        return raw[..., :CLASSES], torch.cat([self.centers - reach[..., :2], self.centers + reach[..., 2:]], dim=-1)

    def loss(self, images: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Focal loss of all places plus 1 - GIoU of those that belong to an object, each per object's place."""
        logits, predicted = self(images)
        owner, owned = assign(self.centers, boxes, labels)
        wanted = one_hot(labels.gather(1, owner).clamp_min(0), CLASSES) * owned[..., None]
        places = owned.sum().clamp_min(1)
        target = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
        return (focal(logits, wanted).sum() + (1 - giou(predicted[owned], target[owned])).sum()) / places


def assign(centers: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which object each place predicts [n, places], and whether it predicts any: one within 6 pixels of its centre.

    Of several objects it is the one with the nearest centre.
    """
    distance = (centers[None, :, None] - (boxes[:, None, :, :2] + boxes[:, None, :, 2:]) / 2).abs().amax(-1)
    distance = distance.masked_fill((labels < 0)[:, None], math.inf)
    nearest, owner = distance.min(-1)
    return owner, nearest < _RADIUS


def focal(logits: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """-alpha_t (1 - p_t)^gamma log p_t, element by element (Lin et al. 2017, arXiv 1708.02002, equation 5)."""
    sign = 2.0 * wanted - 1
    log_p = logsigmoid(sign * logits)
    return -(alpha * wanted + (1 - alpha) * (1 - wanted)) * (1 - log_p.exp()) ** gamma * log_p


def giou(a: Tensor, b: Tensor) -> Tensor:
    """IoU - (hull - union) / hull of boxes pair by pair (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    inter = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return inter / union - (hull - union) / hull


def scene_batches(scenes: Scenes, batch: int, seed: int, validation: Scenes) -> Batches:
    """Endless batches (images, boxes, labels), every epoch in a new order, each batch mirrored with probability 1/2."""
    arrays, side = (scenes.images, scenes.boxes, scenes.labels), scenes.images.shape[-1]

    def stream() -> Iterator[Batch]:
        random = generator("scene_batches", seed)
        while True:
            order = torch.randperm(len(scenes.images), generator=random)
            for rows in order[: len(order) // batch * batch].split(batch):
                images, boxes, labels = (array[rows] for array in arrays)
                if torch.rand((), generator=random) < 0.5:
                    images = images.flip(-1)
                    boxes = torch.stack([side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]], -1)
                yield images, boxes, labels

    held_out = tuple(zip(validation.images.split(64), validation.boxes.split(64), validation.labels.split(64),
                         strict=True))
    return Batches(stream, held_out, array_digest(*arrays))


def trained(seed: int, batches: Batches, steps: int, lr: float = 0.003) -> tuple[Detector, History]:
    """A detector after ``steps`` steps of AdamW with warm-up and cosine."""
    model = Detector(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    return model, train(model, batches, optimizer, warmup_cosine(steps), steps, clip=5.0)


@torch.no_grad()
def propose(model: Detector, images: Tensor, most: int = 200, floor: float = 0.001) -> Proposals:
    """The ``most`` best (place, class) pairs of each image with a score of at least ``floor``."""
    model.eval()
    logits, boxes = (torch.cat(parts) for parts in zip(*(model(part) for part in images.split(64)), strict=True))
    scores, order = logits.sigmoid().flatten(1).topk(min(most, logits[0].numel()), dim=1)
    places = order // CLASSES
    scores = scores * (scores >= floor)
    chosen = boxes.gather(1, places[..., None].expand(-1, -1, 4))
    return Proposals(chosen.numpy(), scores.numpy(), (order % CLASSES).to(torch.int8).numpy())


def simulated(scenes: Scenes, seed: int, per_object: int = 8, noise: float = 0.15) -> Proposals:
    """Proposals without a detector: jittered boxes of the objects, each with its IoU plus Gaussian noise as score."""
    random = np.random.default_rng(generator("simulated", seed).initial_seed())
    true = np.repeat(scenes.boxes.double().numpy(), per_object, axis=1)
    labels = np.repeat(scenes.labels.numpy(), per_object, axis=1)
    sides = true[..., 2:] - true[..., :2]
    jitter = np.abs(random.normal(0, 0.1, (*labels.shape, 1))) * random.choice((-1, 1), (*labels.shape, 4))
    boxes = true + jitter * np.concatenate([sides, sides], axis=-1)
    overlap = np.minimum(boxes[..., 2:], true[..., 2:]) - np.maximum(boxes[..., :2], true[..., :2])
    inter = overlap.clip(0).prod(-1)
    iou = inter / np.maximum(sides.prod(-1) + (boxes[..., 2:] - boxes[..., :2]).prod(-1) - inter, 1e-9)
    scores = np.where(labels >= 0, (iou + random.normal(0, noise, iou.shape)).clip(0.001, 1), 0.0)
    order = np.argsort(-scores, axis=1, kind="stable")
    return Proposals(np.take_along_axis(boxes, order[..., None], 1).astype(np.float32),
                     np.take_along_axis(scores, order, 1).astype(np.float32),
                     np.take_along_axis(labels, order, 1).astype(np.int8))
