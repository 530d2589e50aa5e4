"""Classifiers of glyphs under four kinds of targets: one-hot, smoothed, a teacher's, and their own earlier answers."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from reference.methods.calibration import aurc, ece, nll, temperature
from reference.methods.softmax.ps_kd import Answers, alpha_at, gradient_pulls, mixed, smoothed, soft_cross_entropy
from reference.testbeds.glyph_nets import residual_net
from reference.testbeds.glyphs import Look, glyphs
from reference.testbeds.seeding import generator
from reference.testbeds.training import Batch, Batches, History, array_digest, train

# set so that plain cross entropy errs on 20 to 30 % of the validation images
LOOK = Look(noise=0.06, clutter=0.22, occlusion=0.12)
_ROUNDING = 1e-9
_MILESTONES = (0.5, 0.75)  # of all steps: the rate falls to a tenth, as at epochs 150 and 225 of the paper's 300


@dataclass(frozen=True)
class Setting:
    """The glyphs, the net and the length of training; images of a data seed are the same in every arm."""

    epochs: int
    data_seed: int
    init_seed: int
    classes: int = 100
    per_class: int = 20
    test_per_class: int = 40
    batch: int = 128
    side: int = 16
    width: int = 12
    look: Look = LOOK

    def images(self, part: str) -> tuple[Tensor, Tensor]:
        """Images float32 [n, 1, side, side] and labels int64 [n] of "train", "val" or "test"."""
        count = self.per_class if part == "train" else self.test_per_class
        return glyphs(range(self.classes), count, self.data_seed, part, self.look, self.side)


@dataclass(frozen=True)
class Recipe:
    """What the targets are, "ce", "label_smoothing", "kd" or "ps_kd", with their strength, and SGD's two values."""

    targets: str
    strength: float = 0.0
    lr: float = 0.1
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is a share between 0 and 1, not {self.strength}")


@dataclass
class Mining:
    """How strongly each image pulled in each epoch, relative to cross entropy, and how hard it was, 1 - P_y.

    `shares` are magnitudes over all logits, `factors` the signed ones of the true class's logit.
    """

    shares: list[Tensor] = field(default_factory=list)
    factors: list[Tensor] = field(default_factory=list)
    difficulties: list[Tensor] = field(default_factory=list)

    def begin_epoch(self, images: int) -> None:
        """Room for one more epoch; images that it leaves out stay NaN."""
        for kept in (self.shares, self.factors, self.difficulties):
            kept.append(torch.full((images,), torch.nan, dtype=torch.float64))

    def keep(self, rows: Tensor, logits: Tensor, targets: Tensor, labels: Tensor) -> None:
        """Note a batch of the epoch."""
        pulls = gradient_pulls(logits, targets, labels)
        self.shares[-1][rows], self.factors[-1][rows], self.difficulties[-1][rows] = pulls

    def rank_correlations(self) -> dict[str, float]:
        """Spearman's rho over images with the difficulty averaged over epochs.

        `share_rho` and `factor_rho` are means over the epochs but the first. `total_share_rho` is that of the pulls of
        all these epochs together, over what cross entropy's would have been: hard images pull longest, at the end, too.
        """
        difficulties = torch.stack(self.difficulties)
        mean = difficulties.nanmean(0)
        later = difficulties[1:]
        total = (torch.stack(self.shares)[1:] * later).nansum(0) / later.nansum(0)
        return {
            "share_rho": fmean(_spearman(pull, mean) for pull in self.shares[1:]),
            "factor_rho": fmean(_spearman(pull, mean) for pull in self.factors[1:]),
            "total_share_rho": _spearman(total, mean),
        }


def _spearman(values: Tensor, difficulty: Tensor) -> float:
    """Over the images that have a value; 0 where all values are equal but for rounding."""
    from scipy.stats import spearmanr

    seen = ~values.isnan()
    if values[seen].max() - values[seen].min() < _ROUNDING:
        return 0.0
    return float(spearmanr(values[seen], difficulty[seen]).statistic)


class Distilled(nn.Module):
    """A classifier and the targets that a recipe gives it. `teacher` are a teacher's answers [images, classes]."""

    def __init__(self, net: nn.Module, recipe: Recipe, setting: Setting, labels: Tensor, teacher: Tensor | None = None):
        super().__init__()
        self.net, self.recipe, self.setting, self.teacher = net, recipe, setting, teacher
        self.answers = Answers(labels, setting.classes)
        self.mining = Mining()
        self.epoch = -1

    def begin_epoch(self) -> None:
        """Call before the first batch of each epoch."""
        self.epoch += 1
        self.mining.begin_epoch(len(self.answers.table))

    def targets(self, labels: Tensor, rows: Tensor) -> Tensor:
        """Targets [n, classes] of the training images `rows` in this epoch."""
        kind, strength = self.recipe.targets, self.recipe.strength
        if kind == "ps_kd":
            return self.answers.targets(rows, labels, alpha_at(self.epoch, self.setting.epochs, strength))
        if kind == "kd":
            assert self.teacher is not None
            return mixed(labels, self.teacher[rows], strength)
        return smoothed(labels, self.setting.classes, strength if kind == "label_smoothing" else 0.0)

    def loss(self, x: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
        """Mean cross entropy with the targets of the training images `rows`; without rows, with the labels."""
        logits = self.net(x)
        if rows is None:
            return cross_entropy(logits, labels)
        targets = self.targets(labels, rows)
        self.mining.keep(rows, logits, targets, labels)
        self.answers.keep(rows, logits)
        return soft_cross_entropy(logits, targets).mean()


def fit(setting: Setting, recipe: Recipe, teacher: Tensor | None = None) -> tuple[Distilled, History]:
    """Train from scratch by the paper's recipe in small: SGD with Nesterov momentum 0.9, a tenth of the rate twice."""
    x, y = setting.images("train")
    net = residual_net(setting.init_seed, setting.classes, setting.width)
    model = Distilled(net, recipe, setting, y, teacher)
    batches = indexed_batches(x, y, min(setting.batch, len(x)), setting.data_seed)
    per_epoch = len(x) // min(setting.batch, len(x))
    steps = per_epoch * setting.epochs
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )

    def before_step(step: int) -> None:
        if step % per_epoch == 0:
            model.begin_epoch()

    history = train(
        model, batches, optimizer, lambda step: 0.1 ** sum(step >= share * steps for share in _MILESTONES), steps,
        before_step=before_step,
    )  # fmt: skip
    return model, history


def indexed_batches(x: Tensor, y: Tensor, batch: int, seed: int) -> Batches:
    """Batches (images, labels, rows): every epoch visits the rows in a new order and leaves the ragged rest out."""

    def stream() -> Iterator[Batch]:
        random = generator("indexed_batches", seed)
        while True:
            order = torch.randperm(len(x), generator=random)
            for rows in order[: len(x) // batch * batch].split(batch):
                yield x[rows], y[rows], rows

    return Batches(stream, ((x[:batch], y[:batch]),), array_digest(x, y))


@torch.no_grad()
def logits_of(model: Distilled, x: Tensor) -> Tensor:
    """Logits [n, classes] in evaluation mode; the mode is restored."""
    was_training = model.training
    model.eval()
    found = torch.cat([model.net(part) for part in x.split(512)])
    model.train(was_training)
    return found


def teacher_answers(config: Mapping[str, Any]) -> Tensor:
    """What a net trained by plain cross entropy answers for its own training images, float32 [images, classes].

    `config` names the rate `lr` and the fields of the Setting.
    """
    setting = Setting(**{name: value for name, value in config.items() if name != "lr"})
    model, _ = fit(setting, Recipe("ce", lr=config["lr"]))
    return torch.softmax(logits_of(model, setting.images("train")[0]), 1)


def quality(model: Distilled, setting: Setting) -> dict[str, float]:
    """Error, NLL, ECE and AURC on the test images, before and after temperature scaling on the validation images."""
    (val_x, val_y), (x, y) = setting.images("val"), setting.images("test")
    val_logits, logits = logits_of(model, val_x), logits_of(model, x)
    scale = temperature(val_logits, val_y)
    p, scaled = torch.softmax(logits.double(), 1), torch.softmax(logits.double() / scale, 1)
    return {
        "val_nll": nll(val_logits, val_y), "val_error": (val_logits.argmax(1) != val_y).double().mean().item(),
        "error": (logits.argmax(1) != y).double().mean().item(),
        "nll": nll(logits, y), "ece_10": ece(p, y, 10), "ece_15": ece(p, y, 15), "aurc": aurc(p, y),
        "temperature": scale, "nll_scaled": nll(logits, y, scale), "ece_15_scaled": ece(scaled, y, 15),
    }  # fmt: skip
