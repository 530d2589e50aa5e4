"""LAME, after Boudiaf et al., Parameter-free Online Test-time Adaptation (CVPR 2022).

Only the outputs of a frozen classifier change. For a batch with probabilities q_i and affinities w_ij of the images,
rows z_i of the simplex are sought that stay near q_i and agree among similar images:

    min_Z  sum_i KL(z_i || q_i) - 1/2 sum_ij w_ij z_i . z_j

Linearising the second term, which is concave where W is positive semi-definite, at the current Z gives the iteration

    Z <- softmax(log Q + W Z),  from Z = Q,

with no learning rate, no gradient, and nothing that outlives the batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, normalize

Kind = Literal["knn", "rbf", "linear"]

FLOOR = 1e-10  # keeps log q finite
TOLERANCE = 1e-8
MAX_STEPS = 100


@dataclass(frozen=True)
class Refined:
    """The rows Z float [n, classes], the steps it took, and the monitored energy after each of them."""

    probabilities: Tensor
    steps: int
    energies: tuple[float, ...]


def refine(Q: Tensor, W: Tensor, tolerance: float = TOLERANCE, max_steps: int = MAX_STEPS) -> Refined:
    """Iterate Z <- softmax(log(Q + 1e-10) + W Z) from Z = Q.

    `Q` float [n, classes], rows on the simplex, before any temperature. `W` is an affinity: dense float [n, n], or
    int64 [n, k], whose row i lists the neighbours of image i, each with affinity 1. Stops when the relative change of
    `monitored_energy` is below `tolerance`, or after `max_steps`.
    """
    log_q = (Q + FLOOR).log()
    Z, energies = Q, []
    for _ in range(max_steps):
        pull = product(W, Z)
        Z = (log_q + pull).softmax(1)
        energies.append(monitored_energy(Z, log_q, pull).item())
        if len(energies) > 1 and abs(energies[-1] - energies[-2]) <= tolerance * abs(energies[-2]):
            break
    return Refined(Z, len(energies), tuple(energies))


def product(W: Tensor, Z: Tensor) -> Tensor:
    """W Z for a dense affinity, or the sum of the neighbours' rows for one that lists them."""
    return W @ Z if W.is_floating_point() else embedding_bag(W, Z, mode="sum")


def monitored_energy(Z: Tensor, log_q: Tensor, pull: Tensor) -> Tensor:
    """sum(-Z log Q - Z * (W Z_before) + Z log Z), the quantity whose change stops the iteration.

    Twice the pairwise term of `objective`, at two different Z: it need not fall from step to step.
    """
    return (torch.special.xlogy(Z, Z) - Z * (log_q + pull)).sum()


def objective(Z: Tensor, Q: Tensor, W: Tensor) -> Tensor:
    """sum_i KL(z_i || q_i) - 1/2 sum_ij w_ij z_i . z_j, a scalar.

    No step of the iteration raises it where W is symmetric and positive semi-definite. A matrix of nearest neighbours
    is neither, and there nothing of the kind is guaranteed.
    """
    return (torch.special.xlogy(Z, Z) - Z * (Q + FLOOR).log()).sum() - 0.5 * (Z * product(W, Z)).sum()


def neighbours(features: Tensor, k: int) -> Tensor:
    """The `k` nearest other rows of every row by Euclidean distance, nearest first: int64 [n, min(k, n - 1)]."""
    distance = torch.cdist(features, features)
    distance.fill_diagonal_(torch.inf)
    return distance.topk(min(k, len(features) - 1), largest=False).indices


def affinity(features: Tensor, kind: Kind = "knn", k: int = 5, symmetric: bool = False) -> Tensor:
    """Dense W [n, n] of features [n, width], which are normalised to length 1 first.

    knn: 1 for each of the k nearest others, else 0. rbf: exp(-d_ij^2 / (2 s^2)) with s the mean distance to the k-th
    nearest other. linear: f_i . f_j. `symmetric` takes the mean of W and its transpose. Raises ValueError for an
    unknown kind.
    """
    f = normalize(features, dim=1)
    if kind == "knn":
        W = torch.zeros(len(f), len(f), dtype=f.dtype, device=f.device).scatter_(1, neighbours(f, k), 1.0)
    elif kind == "rbf":
        distance = torch.cdist(f, f)
        width = distance.gather(1, neighbours(f, k)[:, -1:]).mean()
        W = torch.exp(-0.5 * (distance / width).square())
    elif kind == "linear":
        W = f @ f.mT
    else:
        raise ValueError(f"affinity must be knn, rbf or linear, not {kind!r}")
    return 0.5 * (W + W.mT) if symmetric else W


class LAME:
    """A classifier whose predictions are refined batch by batch: call it with images, get probabilities [n, classes].

    `model` has `features(x)` and a last layer `head`; a copy of it is used, in evaluation mode, and never changes.
    """

    def __init__(self, model: nn.Module, kind: Kind = "knn", k: int = 5, symmetric: bool = False):
        self.model = copy.deepcopy(model).eval()
        self.kind, self.k, self.symmetric = kind, k, symmetric

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Images [n, channels, height, width], n at least 2 -> probabilities [n, classes]."""
        features = self.model.features(x)
        Q = self.model.head(features).softmax(1)
        if self.kind == "knn" and not self.symmetric:
            W = neighbours(normalize(features, dim=1), self.k)
        else:
            W = affinity(features, self.kind, self.k, self.symmetric)
        return refine(Q, W).probabilities
