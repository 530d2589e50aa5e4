"""How far probabilities can be trusted: expected calibration error, risk against coverage, temperature scaling.

Guo et al. 2017 (arXiv 1706.04599) for the first and the last, Geifman and El-Yaniv 2017 (arXiv 1705.08500) for the
second. Everything is computed in float64, on the CPU, whatever the inputs are.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

_TEMPERATURES = (1e-3, 1e3)
_NEWTON_STEPS = 60


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: mean over images of |accuracy - mean confidence| of their bin.

    `probabilities` [n, classes], `labels` int64 [n]. The confidence is the largest probability; the bins (a, b] are
    equally wide over 0..1.
    """
    confidence, right = _top(probabilities, labels)
    index = (confidence * bins).ceil().long().sub_(1).clamp_(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, right - confidence)
    return (gaps.abs().sum() / len(labels)).item()


def aurc(probabilities: Tensor, labels: Tensor) -> float:
    """Area under the risk-coverage curve: mean over k of the error rate among the k most confident images.

    `probabilities` [n, classes], `labels` int64 [n]. Images of equal confidence count as in the mean over their orders.
    """
    confidence, right = _top(probabilities, labels)
    levels, group = torch.unique(-confidence, return_inverse=True)
    sizes = torch.bincount(group, minlength=len(levels))
    wrong = torch.zeros(len(levels), dtype=torch.float64).index_add_(0, group, 1 - right)
    errors = (wrong / sizes).repeat_interleave(sizes)
    return (errors.cumsum(0) / torch.arange(1, len(errors) + 1)).mean().item()


def nll(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Mean cross entropy of softmax(logits / temperature) in nats; `logits` [n, classes], `labels` int64 [n]."""
    return cross_entropy(logits.detach().cpu().double() / temperature, labels.cpu()).item()


def temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T in 0.001..1000 with the smallest mean cross entropy of softmax(logits / T).

    The loss is convex in b = 1/T, with derivatives mean(E[h] - h_y) and mean(Var[h]) under softmax(b h): Newton's steps
    on the first, halving the bracket where a step would leave it. `logits` [n, classes], `labels` int64 [n].
    """
    h, y = logits.detach().cpu().double(), labels.cpu()
    h = h - h.amax(1, keepdim=True)
    target = h.gather(1, y[:, None])[:, 0]
    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    b = 1.0
    for _ in range(_NEWTON_STEPS):
        p = torch.softmax(b * h, 1)
        mean = (p * h).sum(1)
        slope = (mean - target).mean().item()
        curvature = ((p * h.square()).sum(1) - mean.square()).mean().item()
        low, high = (low, b) if slope > 0 else (b, high)
        step = b - slope / curvature if curvature > 0 else low
        following = step if low < step < high else (low * high) ** 0.5
        if abs(following - b) <= 1e-9 * b:
            break
        b = following
    return 1 / b


def _top(probabilities: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability and whether it is the label's, as 0 or 1; float64 [n] both."""
    confidence, chosen = probabilities.detach().cpu().double().max(1)
    return confidence, (chosen == labels.cpu()).double()
