"""Retrieval among glyphs that training never saw: a net under a margin loss, and how well its features find a class."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from reference.methods.softmax.cfcd_adaptive_softmax import AdaCos, Adapted, ArcFace, CosFace, CosineHead, MadaCos, Rule
from reference.testbeds.glyph_nets import embedder
from reference.testbeds.glyphs import CLASSES, Look, glyphs
from reference.testbeds.seeding import fill_normal, generator
from reference.testbeds.training import History, array_batches, train, warmup_cosine

# set so that the normalised softmax has a mAP of 0.5 to 0.6 on the validation classes
LOOK = Look(noise=0.03, clutter=0.1, occlusion=0.1)
WARMUP = 0.1
_WEIGHT_DECAY = 1e-4
_QUERIES, _GALLERY = 6, 14


@dataclass(frozen=True)
class Setting:
    """What a run is trained and tested on: `classes` seen and `unseen` new ones, which the data seed decides."""

    steps: int
    data_seed: int
    init_seed: int
    classes: int = 150
    unseen: int = 100
    per_class: int = 60
    side: int = 16
    batch: int = 128
    dim: int = 64
    width: int = 16
    look: Look = LOOK

    def split(self) -> tuple[list[int], list[int], list[int]]:
        """Positions in CLASSES to train on, to tune by (four for every five to test on) and to test on, disjoint."""
        order = torch.randperm(len(CLASSES), generator=generator("retrieval classes", self.data_seed)).tolist()
        validation = 4 * self.unseen // 5
        new = order[self.classes : self.classes + validation + self.unseen]
        return order[: self.classes], new[:validation], new[validation:]

    def images(self, classes: list[int], per_class: int, part: str) -> tuple[Tensor, Tensor]:
        """Images of those classes with their labels."""
        return glyphs(classes, per_class, self.data_seed, part, self.look, self.side)


class Retriever(nn.Module):
    """An embedding net and the head that trains it."""

    def __init__(self, net: nn.Module, head: nn.Module):
        super().__init__()
        self.net, self.head = net, head

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The head's loss of images [n, 1, side, side] with labels int64 [n], a scalar."""
        return self.head(self.net(x), y)

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """Normalised features [n, dim] in evaluation mode; the mode is restored."""
        was_training = self.training
        self.eval()
        found = torch.cat([self.net(part) for part in x.split(512)])
        self.train(was_training)
        return normalize(found, dim=1)


@dataclass(frozen=True)
class Trained:
    """A net after training, the history and, of an adaptive rule, what every batch gave."""

    model: Retriever
    history: History
    log: list[Adapted] = field(default_factory=list)


def rule_of(name: str, classes: int, values: Mapping[str, float]) -> Rule:
    """The rule called softmax, arcface, cosface, adacos or madacos with its values: scale, margin, alpha."""
    if name == "madacos":
        return MadaCos(values["alpha"])
    if name == "adacos":
        return AdaCos(classes)
    if name == "arcface":
        return ArcFace(values["scale"], values["margin"])
    if name in ("softmax", "cosface"):
        return CosFace(values["scale"], values.get("margin", 0.0))
    raise ValueError(f"no rule is called {name}")


def head_of(name: str, setting: Setting, values: Mapping[str, float]) -> nn.Module:
    """The loss called softmax, arcface, cosface, subcenter, adacos or madacos with its values: scale, margin, alpha.

    Sub-centre ArcFace is that of pytorch-metric-learning; ImportError where it is not installed.
    """
    if name == "subcenter":
        return subcenter_head(setting, values["scale"], values["margin"])
    return CosineHead(rule_of(name, setting.classes, values), setting.classes, setting.dim, setting.init_seed)


def subcenter_head(setting: Setting, scale: float, margin: float, centers: int = 3) -> nn.Module:
    """Sub-centre ArcFace of pytorch-metric-learning, its weights set by our seed; the margin in radians."""
    from pytorch_metric_learning.losses import SubCenterArcFaceLoss

    random_state = torch.get_rng_state()
    head = SubCenterArcFaceLoss(
        num_classes=setting.classes, embedding_size=setting.dim, scale=scale, margin=math.degrees(margin),
        sub_centers=centers,
    )  # fmt: skip
    torch.set_rng_state(random_state)
    fill_normal(head.W, setting.dim**-0.5, setting.init_seed, "class weights")
    return head


def train_retriever(setting: Setting, head: nn.Module, lr: float) -> Trained:
    """Train from scratch on the seen classes: AdamW at `lr`, warm-up over a tenth of the steps, then half a cosine."""
    seen, _, _ = setting.split()
    x, y = setting.images(seen, setting.per_class, "train")
    model = Retriever(embedder(setting.init_seed, setting.dim, setting.width, setting.side), head)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=_WEIGHT_DECAY)
    batches = array_batches(x, y, min(setting.batch, len(x)), setting.data_seed, (x[:256], y[:256]))
    history = train(model, batches, optimizer, warmup_cosine(setting.steps, WARMUP), setting.steps)
    rule = getattr(head, "rule", None)
    return Trained(model, history, rule.log if isinstance(rule, MadaCos | AdaCos) else [])


def retrieval(model: Retriever, setting: Setting, part: str) -> dict[str, float]:
    """`map` and `recall_at_1` among the unseen classes of `part` ("val" or "test"): queries against a gallery."""
    classes = setting.split()[1 if part == "val" else 2]
    query = setting.images(classes, _QUERIES, f"{part} query")
    gallery = setting.images(classes, _GALLERY, f"{part} gallery")
    similarity = model.features(query[0]) @ model.features(gallery[0]).T
    return {
        "map": mean_average_precision(similarity, query[1], gallery[1]),
        "recall_at_1": recall_at_1(similarity, query[1], gallery[1]),
    }


def intra_class_angle_deg(model: Retriever, setting: Setting) -> float:
    """Mean angle in degrees between a feature and the mean direction of its class: fresh images of the seen classes."""
    x, y = setting.images(setting.split()[0], _GALLERY, "seen")
    return mean_angle_deg(model.features(x), y)


def mean_angle_deg(features: Tensor, labels: Tensor) -> float:
    """Mean angle in degrees between normalised features [n, dim] and the normalised mean of their class."""
    sums = torch.zeros(int(labels.max()) + 1, features.shape[1], dtype=torch.float64)
    sums.index_add_(0, labels, features.double())
    cosine = (features.double() * normalize(sums, dim=1)[labels]).sum(1)
    return torch.rad2deg(torch.acos(cosine.clamp(-1, 1))).mean().item()


def mean_average_precision(similarity: Tensor, query: Tensor, gallery: Tensor) -> float:
    """Mean over queries of the mean precision at the ranks of its class; `similarity` [queries, gallery].

    `query` and `gallery` are the labels. Every query needs one of its class or more in the gallery.
    """
    order = similarity.argsort(dim=1, descending=True, stable=True)
    right = (gallery[order] == query[:, None]).double()
    precision = right.cumsum(1) / torch.arange(1, right.shape[1] + 1)
    return ((precision * right).sum(1) / right.sum(1)).mean().item()


def recall_at_1(similarity: Tensor, query: Tensor, gallery: Tensor) -> float:
    """Share of queries whose most similar gallery image is of their class."""
    return (gallery[similarity.argmax(1)] == query).double().mean().item()


def progress(log: list[Adapted], warmup: float = WARMUP) -> dict[str, float]:
    """How scale and margin went after warm-up; all 0 for the empty log of a rule with fixed values.

    `scale_rho` and `margin_rho` are Spearman's rho of each with the step, 0 for a constant; `last_scale` and
    `last_margin` the means over the last tenth of the steps.
    """
    after, last = log[round(warmup * len(log)) :], log[-math.ceil(len(log) / 10) :]
    found = {}
    for name in ("scale", "margin"):
        found[f"{name}_rho"] = _rank_correlation([getattr(item, name) for item in after])
        found[f"last_{name}"] = fmean(getattr(item, name) for item in last) if log else 0.0
    return found


def _rank_correlation(values: list[float]) -> float:
    from scipy.stats import spearmanr

    if len(set(values)) < 2:
        return 0.0
    return float(spearmanr(range(len(values)), values).statistic)
