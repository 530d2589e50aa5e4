"""Output layers other than the full one: low-rank, adaptive softmax, two-level softmax, rows of 4-bit integers.

Each is a module with `loss(hidden, targets)` and `log_probabilities(hidden)` and can be the head of a
`reference.testbeds.word_lm.WordLM`, whose `LinearHead` is the full output layer. Word ids must go by falling frequency.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, log_softmax

from reference.testbeds.seeding import fill_normal

_INT4_LARGEST = 7
_CLIPPED_SHARES = torch.linspace(0.6, 1.0, 17)
_DIV_VALUES = (2, 4, 8, 16, 32, 64, 128)
_SECOND_CUTOFF = 4  # the second cluster begins at this multiple of the shortlist


def stored_bytes(head: nn.Module) -> int:
    """Bytes of a head's parameters and buffers, as stored for inference: a head that packs them says so itself."""
    packed = getattr(head, "packed_bytes", None)
    if packed is not None:
        return int(packed)
    tensors = [*head.parameters(), *head.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class LowRankHead(nn.Module):
    """Logits up (down hidden): W = up @ down of rank r, `down` [r, width] and `up` [vocabulary, r]."""

    def __init__(self, down: Tensor, up: Tensor):
        super().__init__()
        self.down, self.up = nn.Parameter(down.clone()), nn.Parameter(up.clone())

    @classmethod
    def from_rows(cls, rows: Tensor, rank: int) -> LowRankHead:
        """The best approximation of the rows [vocabulary, width] in the Frobenius norm (Eckart-Young)."""
        left, values, right = torch.linalg.svd(rows, full_matrices=False)
        root = values[:rank].sqrt()
        return cls(root[:, None] * right[:rank], left[:, :rank] * root)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[n, width] -> [n, vocabulary]."""
        return log_softmax(self._logits(hidden), dim=-1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats, a scalar."""
        return cross_entropy(self._logits(hidden), targets)

    def _logits(self, hidden: Tensor) -> Tensor:
        return linear(linear(hidden, self.down), self.up)


def largest_rank(width: int, vocabulary: int, budget_bytes: int) -> int:
    """The largest rank whose float32 factors fit into the budget. Raises ValueError when rank 1 does not."""
    rank = min(budget_bytes // (4 * (width + vocabulary)), width)
    if rank < 1:
        raise ValueError(f"rank 1 needs {4 * (width + vocabulary)} bytes, more than {budget_bytes}")
    return rank


class AdaptiveHead(nn.Module):
    """torch.nn.AdaptiveLogSoftmaxWithLoss (Grave et al. 2017, arXiv 1609.04309) with a bias in its shortlist layer.

    Words from `cutoffs[i]` on form clusters of width / div_value^(i + 1) dimensions. Weights N(0, 0.02^2), biases 0.
    """

    def __init__(self, width: int, vocabulary: int, cutoffs: tuple[int, ...], div_value: float, seed: int = 0):
        super().__init__()
        self.layer = nn.utils.skip_init(
            nn.AdaptiveLogSoftmaxWithLoss, width, vocabulary, list(cutoffs), div_value=div_value, head_bias=True)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                nn.init.zeros_(parameter)
            else:
                fill_normal(parameter, 0.02, seed, name)

    @classmethod
    def from_rows(cls, rows: Tensor, counts: Tensor, cutoffs: tuple[int, ...], div_value: float) -> AdaptiveHead:
        """Start from a trained full head: the shortlist's rows, each cluster by SVD, its logit from its mean row.

        The logsumexp of a cluster's logits is close to that of its mean row, weighted by `counts`, plus log(size).
        """
        vocabulary, width = rows.shape
        head = cls(width, vocabulary, cutoffs, div_value)
        layer, shortlist = head.layer, cutoffs[0]
        with torch.no_grad():
            layer.head.weight[:shortlist] = rows[:shortlist]
            for index, (low, high) in enumerate(zip(cutoffs, (*cutoffs[1:], vocabulary), strict=True)):
                part, weight = rows[low:high], counts[low:high].to(rows)
                mean = (weight[:, None] * part).sum(0) / weight.sum()
                layer.head.weight[shortlist + index] = mean
                layer.head.bias[shortlist + index] = math.log(high - low)
                down, up = layer.tail[index]
                svd = LowRankHead.from_rows(part - mean, down.out_features)
                down.weight[: len(svd.down)], up.weight[:, : len(svd.down)] = svd.down, svd.up
        return head

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[n, width] -> [n, vocabulary]."""
        return self.layer.log_prob(hidden)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats, a scalar."""
        return self.layer(hidden, targets).loss


def adaptive_bytes(width: int, vocabulary: int, cutoffs: tuple[int, ...], div_value: float) -> int:
    """Bytes of an `AdaptiveHead`, without building it."""
    entries = (cutoffs[0] + len(cutoffs)) * (width + 1)
    for index, (low, high) in enumerate(zip(cutoffs, (*cutoffs[1:], vocabulary), strict=True)):
        inner = int(width // div_value ** (index + 1))
        entries += inner * (width + high - low)
    return 4 * entries


def adaptive_shapes(width: int, vocabulary: int, budget_bytes: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """(cutoffs, div_value) of one and two clusters, each with the largest shortlist that the budget allows."""
    for div_value in _DIV_VALUES:
        for clusters in (1, 2):
            if width // div_value**clusters < 1:
                continue
            largest = 0
            for shortlist in range(1, vocabulary // (_SECOND_CUTOFF if clusters == 2 else 1)):
                cutoffs = (shortlist, _SECOND_CUTOFF * shortlist)[:clusters]
                if adaptive_bytes(width, vocabulary, cutoffs, div_value) <= budget_bytes:
                    largest = shortlist
            if largest:
                yield (largest, _SECOND_CUTOFF * largest)[:clusters], div_value


def best_adaptive(
    rows: Tensor, counts: Tensor, budget_bytes: int, hidden: Tensor, targets: Tensor
) -> tuple[tuple[int, ...], int]:
    """The shape within the budget that, started from the rows, has the lowest loss on held-out (hidden, targets).

    Raises ValueError when no shape fits.
    """
    found = []
    with torch.no_grad():
        for cutoffs, div_value in adaptive_shapes(rows.shape[1], rows.shape[0], budget_bytes):
            head = AdaptiveHead.from_rows(rows, counts, cutoffs, div_value)
            found.append((head.loss(hidden, targets).item(), cutoffs, div_value))
    if not found:
        raise ValueError(f"no adaptive softmax of {tuple(rows.shape)} rows fits into {budget_bytes} bytes")
    return min(found)[1:]


class HierarchicalHead(nn.Module):
    """Two-level softmax: p(word) = p(class) p(word | class), classes of about sqrt(vocabulary) neighbouring ids.

    `class_weight` [classes, width], `word_weight` [classes, size, width]; the last class may have places without a
    word, which get no probability (Goodman 2001, arXiv cs/0108006).
    """

    def __init__(self, width: int, vocabulary: int, seed: int):
        super().__init__()
        self.vocabulary = vocabulary
        self.size = math.ceil(math.sqrt(vocabulary))
        self.classes = math.ceil(vocabulary / self.size)
        self.class_weight = nn.Parameter(torch.empty(self.classes, width))
        self.word_weight = nn.Parameter(torch.empty(self.classes, self.size, width))
        for name, parameter in self.named_parameters():
            fill_normal(parameter, 0.02, seed, name)

    def mask(self, classes: Tensor) -> Tensor:
        """0 for places with a word and -inf for those without one, [n, size], of class indices [n]."""
        places = classes[:, None] * self.size + torch.arange(self.size, device=classes.device)
        return torch.zeros(places.shape, device=classes.device).masked_fill(places >= self.vocabulary, -math.inf)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats, a scalar; costs O((classes + size) width) a row."""
        classes, places = targets // self.size, targets % self.size
        words = torch.einsum("nd,nsd->ns", hidden, self.word_weight[classes]) + self.mask(classes)
        return cross_entropy(linear(hidden, self.class_weight), classes) + cross_entropy(words, places)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[n, width] -> [n, vocabulary]."""
        classes = log_softmax(linear(hidden, self.class_weight), dim=-1)
        words = torch.einsum("nd,csd->ncs", hidden, self.word_weight) + self.mask(torch.arange(self.classes))
        return (classes[..., None] + log_softmax(words, dim=-1)).flatten(1)[:, : self.vocabulary]


class Int4Head(nn.Module):
    """A full head whose rows are 4-bit integers -7..7 times one float16 scale each; for inference alone.

    The scale of a row is the one of 17, from 0.6 to 1 times max|w| / 7, that leaves the smallest squared error. Two
    integers share a byte, the even column in its lower half.
    """

    def __init__(self, rows: Tensor):
        super().__init__()
        if rows.shape[1] % 2:
            raise ValueError(f"the width must be even, not {rows.shape[1]}")
        scale, integers = _rounded_rows(rows.detach())
        codes = (integers + 8).to(torch.uint8)
        self.register_buffer("scale", scale.to(torch.float16))
        self.register_buffer("packed", codes[:, 0::2] | (codes[:, 1::2] << 4))

    def rows(self) -> Tensor:
        """The rows that the integers stand for, float32 [vocabulary, width]."""
        codes = torch.stack([self.packed & 15, self.packed >> 4], dim=-1).flatten(1)
        return (codes.float() - 8) * self.scale.float()[:, None]

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[n, width] -> [n, vocabulary]."""
        return log_softmax(linear(hidden, self.rows()), dim=-1)

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats, a scalar."""
        return cross_entropy(linear(hidden, self.rows()), targets)


def _rounded_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale [n] and integers [n, width] of the smallest squared error among the clipped shares."""
    largest = rows.abs().amax(dim=1).clamp_min(torch.finfo(torch.float16).tiny)
    scales = (largest[:, None] * _CLIPPED_SHARES.to(rows) / _INT4_LARGEST).half().to(rows)
    best = torch.full_like(largest, math.inf)
    scale, integers = scales[:, 0].clone(), torch.zeros_like(rows)
    for candidate in scales.clamp_min(torch.finfo(torch.float16).tiny).unbind(1):
        rounded = (rows / candidate[:, None]).round().clamp(-_INT4_LARGEST, _INT4_LARGEST)
        error = (rounded * candidate[:, None] - rows).square().sum(1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, candidate, scale)
        integers = torch.where(better[:, None], rounded, integers)
    return scale, integers
