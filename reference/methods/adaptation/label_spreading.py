"""Label spreading over a batch (Zhou et al. 2004), by scikit-learn: sure predictions are labels for the unsure."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

_ITERATIONS = 200
_TOLERANCE = 1e-3


class LabelSpreading:
    """A frozen classifier whose surer half of a batch labels the other half along a graph of nearest features.

    `k` neighbours span the graph; `alpha` in (0, 1) is the weight of the neighbours against the image's own label. Call
    it with images [n, channels, height, width], get probabilities [n, classes].
    """

    def __init__(self, model: nn.Module, k: int = 5, alpha: float = 0.2):
        self.model = copy.deepcopy(model).eval()
        self.k, self.alpha = k, alpha

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Probabilities of the batch; classes of no sure image get 0, an image that no label reaches keeps its own."""
        from sklearn import semi_supervised

        features = self.model.features(x)
        Q = self.model.head(features).softmax(1)
        sure, label = Q.max(1)
        known = torch.where(sure >= sure.median(), label, -1)
        spreading = semi_supervised.LabelSpreading(
            kernel="knn", n_neighbors=min(self.k, len(x) - 1), alpha=self.alpha, max_iter=_ITERATIONS, tol=_TOLERANCE
        ).fit(normalize(features, dim=1).numpy(), known.numpy())
        spread = torch.from_numpy(np.nan_to_num(spreading.label_distributions_)).to(Q.dtype)
        found = torch.zeros_like(Q).index_copy_(1, torch.from_numpy(spreading.classes_), spread)
        return torch.where(spread.sum(1, keepdim=True) > 0, found, Q)
