"""The second stage of CFCD (2023): triplets of local descriptors, with hard negatives.

Two images of one class are matched place by place: nearest neighbours of each other, clearly nearer than the second
nearest, and at a place of the positive that attention holds for important. Each match is pushed away from the most
similar descriptor of every negative image:

    loss = sum over matches (a, p) and negatives k of max(0, |a - p|^2 - min_j |a - n_kj|^2 + margin)
"""

import torch
from torch import Tensor
from torch.nn.functional import relu

MAX_RATIO = 0.9
MARGIN = 1.1


def matches(anchor: Tensor, positive: Tensor, attention: Tensor, max_ratio: float = MAX_RATIO) -> Tensor:
    """Pairs int64 [m, 2] of places (in the anchor, in the positive) that show the same thing.

    `anchor` [n, dim] and `positive` [p, dim] are local descriptors, p at least 2, `attention` [p] the weight of each
    place of the positive. A pair counts when each is the other's nearest, the distance is at most `max_ratio` of that
    to the anchor's second nearest, and the attention is among the upper half.
    """
    distance = torch.cdist(anchor, positive)
    nearest = distance.topk(2, largest=False)
    chosen = nearest.indices[:, 0]
    reciprocal = distance.argmin(0)[chosen] == torch.arange(len(anchor), device=anchor.device)
    clear = nearest.values[:, 0] <= max_ratio * nearest.values[:, 1]
    important = attention[chosen] >= attention.sort(descending=True).values[(len(attention) - 1) // 2]
    rows = torch.nonzero(reciprocal & clear & important)[:, 0]
    return torch.stack([rows, chosen[rows]], 1)


def local_triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negatives: Tensor,
    attention: Tensor,
    margin: float = MARGIN,
    max_ratio: float = MAX_RATIO,
) -> Tensor:
    """The sum above, a scalar; `negatives` [k, q, dim] are the descriptors of k images of other classes.

    Zero where nothing matches. Which descriptors are paired is decided without gradient; the distances carry one.
    """
    with torch.no_grad():
        pairs = matches(anchor, positive, attention, max_ratio)
        hardest = torch.cdist(anchor[pairs[:, 0]], negatives).argmin(2)  # [k, m]
    a, p = anchor[pairs[:, 0]], positive[pairs[:, 1]]
    n = negatives.gather(1, hardest[:, :, None].expand(-1, -1, anchor.shape[1]))
    gap = (a - p).square().sum(1) - (a - n).square().sum(2)
    return relu(gap + margin).sum()
