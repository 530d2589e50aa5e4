"""What can change between training and test: corrupted images, classes in other shares, and in another order."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad

from reference.testbeds.seeding import generator

Prior = Literal["balanced", "zipf"]
Order = Literal["iid", "bursts"]
SEVERITIES = range(1, 6)

_REFERENCE_SIDE = 32  # lengths below are in pixels of an image this wide
_FOG_CELLS = 4


def corrupt(x: Tensor, kind: str, severity: int, seed: int) -> Tensor:
    """Images float [n, channels, side, side] with one of `KINDS` done to them; the same shape and type, a new tensor.

    Strengths rise with the severity, 1 to 5, in the manner of Hendrycks & Dietterich (2019, arXiv 1903.12261); lengths
    grow with the side. Pixels may leave 0..1. Draws depend on kind, severity, seed and the images' number and size
    only, so that two classifiers meet the same noise. Raises KeyError for an unknown kind, ValueError for a severity.
    """
    if kind not in _CORRUPTIONS:
        raise KeyError(f"no corruption {kind!r}; there are {', '.join(_CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be 1 to 5, not {severity}")
    corruption = _CORRUPTIONS[kind]
    return corruption.apply(x, corruption.strengths[severity - 1], generator("shifts", kind, severity, seed))


@dataclass(frozen=True)
class Corruption:
    """`apply(images, strength, random)` and its strength at each severity."""

    apply: Callable[[Tensor, float, torch.Generator], Tensor]
    strengths: tuple[float, ...]


def _clean(x: Tensor, _: float, __: torch.Generator) -> Tensor:
    return x.clone()


def _noise(x: Tensor, std: float, random: torch.Generator) -> Tensor:
    return x + std * torch.empty(x.shape, dtype=x.dtype).normal_(generator=random).to(x.device)


def _impulse(x: Tensor, share: float, random: torch.Generator) -> Tensor:
    """That share of the pixels becomes black or white."""
    draw = torch.rand(x.shape, generator=random).to(x.device)
    return torch.where(draw < share, (draw < share / 2).to(x.dtype), x)


def _blur(x: Tensor, radius: float, _: torch.Generator) -> Tensor:
    """Gaussian, its standard deviation `radius` pixels of a 32 pixel image."""
    std = radius * x.shape[-1] / _REFERENCE_SIDE
    reach = min(math.ceil(3 * std), x.shape[-1] - 1)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device) / std).square())
    kernel = (taps / taps.sum()).expand(x.shape[1], 1, 1, -1)
    rows = conv2d(pad(x, (reach, reach, 0, 0), mode="reflect"), kernel, groups=x.shape[1])
    return conv2d(pad(rows, (0, 0, reach, reach), mode="reflect"), kernel.mT, groups=x.shape[1])


def _pixelate(x: Tensor, share: float, _: torch.Generator) -> Tensor:
    """Averaged down to that share of the side and up again, in squares."""
    side = max(1, round(share * x.shape[-1]))
    return interpolate(interpolate(x, size=(side, side), mode="area"), size=x.shape[-2:], mode="nearest")


def _contrast(x: Tensor, share: float, _: torch.Generator) -> Tensor:
    """Distances to the image's mean shrink to that share."""
    mean = x.mean((-1, -2), keepdim=True)
    return mean + share * (x - mean)


def _brightness(x: Tensor, offset: float, _: torch.Generator) -> Tensor:
    return x + offset


def _fog(x: Tensor, share: float, random: torch.Generator) -> Tensor:
    """That share of every image is a smooth random field."""
    cells = torch.rand((len(x), 1, _FOG_CELLS, _FOG_CELLS), generator=random).to(x.device, x.dtype)
    return (1 - share) * x + share * interpolate(cells, size=x.shape[-2:], mode="bilinear", align_corners=True)


def _occlusion(x: Tensor, share: float, random: torch.Generator) -> Tensor:
    """A grey square that covers that share of the area lies somewhere in each image."""
    side = x.shape[-1]
    edge = max(1, round(math.sqrt(share) * side))
    top, left = torch.randint(side - edge + 1, (2, len(x), 1), generator=random).to(x.device)
    places = torch.arange(side, device=x.device)
    rows, columns = ((places >= start) & (places < start + edge) for start in (top, left))
    covered = (rows[:, :, None] & columns[:, None, :])[:, None]
    return torch.where(covered, torch.full_like(x, 0.5), x)


_CORRUPTIONS = {
    "clean": Corruption(_clean, (0.0, 0.0, 0.0, 0.0, 0.0)),
    "noise": Corruption(_noise, (0.1, 0.2, 0.3, 0.45, 0.6)),
    "impulse": Corruption(_impulse, (0.03, 0.07, 0.12, 0.2, 0.3)),
    "blur": Corruption(_blur, (0.7, 1.0, 1.4, 1.9, 2.5)),
    "pixelate": Corruption(_pixelate, (0.5, 0.4, 0.3, 0.25, 0.2)),
    "contrast": Corruption(_contrast, (0.6, 0.45, 0.3, 0.2, 0.1)),
    "brightness": Corruption(_brightness, (0.2, 0.35, 0.5, 0.7, 1.0)),
    "fog": Corruption(_fog, (0.3, 0.45, 0.6, 0.7, 0.8)),
    "occlusion": Corruption(_occlusion, (0.05, 0.1, 0.15, 0.22, 0.3)),
}
KINDS = tuple(_CORRUPTIONS)


def class_counts(classes: int, count: int, prior: Prior, seed: int) -> Tensor:
    """How many of `count` images each class gets, int64 [classes]: equal shares, or shares 1/rank (Zipf).

    Which class has which rank depends on the seed; what rounding leaves over goes to the first ranks. Raises ValueError
    for an unknown prior.
    """
    ranks = torch.randperm(classes, generator=generator("shifts", "prior", seed))
    if prior not in ("balanced", "zipf"):
        raise ValueError(f"prior must be balanced or zipf, not {prior!r}")
    weights = torch.ones(classes) if prior == "balanced" else 1.0 / torch.arange(1, classes + 1)
    counts = (count * weights.double() / weights.double().sum()).floor().long()
    counts[: count - int(counts.sum())] += 1
    return counts[ranks]


def arrange(labels: Tensor, order: Order, seed: int, burst: int = 16) -> Tensor:
    """The order in which images with these labels [n] arrive: a permutation, int64 [n].

    `iid` mixes all. `bursts` lets up to `burst` images of one class follow each other, the bursts of all classes mixed:
    a stream in which neighbours in time share their class, as the frames of a video do.
    """
    random = generator("shifts", "order", order, seed)
    mixed = torch.randperm(len(labels), generator=random)
    if order == "iid":
        return mixed
    if order != "bursts":
        raise ValueError(f"order must be iid or bursts, not {order!r}")
    sorted_rows = mixed[labels[mixed].argsort(stable=True)]
    sizes = labels.bincount().tolist()
    bursts = [part for rows in sorted_rows.split(sizes) for part in rows.split(burst)]
    return torch.cat([bursts[i] for i in torch.randperm(len(bursts), generator=random).tolist()])


def stream(labels: Tensor, count: int, order: Order, prior: Prior, seed: int, burst: int = 16) -> Tensor:
    """Rows of a labelled pool as a test stream, int64 [count], none twice: class shares by `prior`, then `arrange`d.

    Raises ValueError where the pool has too few images of a class.
    """
    classes = int(labels.max()) + 1
    wanted = class_counts(classes, count, prior, seed)
    lacking = wanted - labels.bincount(minlength=classes)
    if (lacking > 0).any():
        worst = int(lacking.argmax())
        raise ValueError(f"the pool lacks {int(lacking[worst])} images of class {worst} for {count} by {prior} prior")
    mixed = torch.randperm(len(labels), generator=generator("shifts", "pool", seed))
    chosen = torch.cat([mixed[labels[mixed] == k][: int(wanted[k])] for k in range(classes)])
    return chosen[arrange(labels[chosen], order, seed, burst)]
