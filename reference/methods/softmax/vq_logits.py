"""VQ-Logits (arXiv 2505.10202): words share the rows of a small codebook instead of having a row each.

With a codebook C [K, d] and a map M from V words to codes, code logits L = h C^T are scattered, logit[i] = L[M(i)],
and a softmax runs over the V words. Hence, with n_c words in code c,

    log Z = logsumexp_c(L_c + log n_c),                     so that training needs no work of size V;
    cross entropy = cross entropy over codes + E[log n_M(y)],   since all words of a code are equally likely;
    excess over the Bayes predictor = E[log n_M(y)] - H(Y | M(Y), context) >= sum_c p(c) KL(p(y | c) || uniform_c).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

MAPPINGS = ("random", "frequency", "equal_mass", "kmeans")
KMEANS_ITERATIONS = 30


@dataclass(frozen=True)
class Codes:
    """A map from words to codes: `of` is int64 [V] with values below `count`; a code may have no word."""

    of: Tensor
    count: int

    def __post_init__(self) -> None:
        if len(self.of) and not 0 <= int(self.of.min()) <= int(self.of.max()) < self.count:
            raise ValueError(f"codes must lie in 0..{self.count - 1}")

    def sizes(self) -> Tensor:
        """n_c, int64 [count]."""
        return torch.bincount(self.of, minlength=self.count)

    def map_bytes(self) -> float:
        """The index map with ceil(log2 K) bits a word."""
        return len(self.of) * math.ceil(math.log2(max(2, self.count))) / 8


def largest_count(width: int, vocabulary: int, budget_bytes: int) -> int:
    """The largest K whose codebook (float32) and index map fit into the budget, at most V."""
    count = min(vocabulary, budget_bytes // (4 * width))
    while count > 0 and 4 * width * count + vocabulary * math.ceil(math.log2(max(2, count))) / 8 > budget_bytes:
        count -= 1
    if count < 1:
        raise ValueError(f"not even one code fits into {budget_bytes} bytes")
    return count


def random_codes(vocabulary: int, count: int, random: torch.Generator) -> Codes:
    """Codes of equal size (to within one word), filled at random."""
    order = torch.randperm(vocabulary, generator=random)
    of = torch.empty(vocabulary, dtype=torch.int64)
    of[order] = torch.arange(vocabulary) * count // vocabulary
    return Codes(of, count)


def frequency_codes(counts: Tensor, count: int) -> Codes:
    """Codes of equal size (to within one word), filled in the order of falling frequency."""
    of = torch.empty(len(counts), dtype=torch.int64)
    of[counts.argsort(descending=True, stable=True)] = torch.arange(len(counts)) * count // len(counts)
    return Codes(of, count)


def equal_mass_codes(counts: Tensor, count: int) -> Codes:
    """Codes in the order of falling frequency, each with an equal share of the occurrences not yet given away.

    A word that has that share by itself gets a code for itself; no code is left empty.
    """
    order = counts.argsort(descending=True, stable=True)
    of = torch.empty(len(counts), dtype=torch.int64)
    left, code, mass = float(counts.sum()), 0, 0.0
    for rank, word in enumerate(order.tolist()):
        of[word] = code
        mass += float(counts[word])
        words_left, codes_left = len(counts) - rank - 1, count - code - 1
        if codes_left and (mass >= left / (codes_left + 1) or words_left <= codes_left):
            left, code, mass = left - mass, code + 1, 0.0
    return Codes(of, count)


def kmeans_codes(rows: Tensor, count: int, seed: int) -> Codes:
    """Lloyd's algorithm from k-means++ on the rows [V, d] of a trained head or embedding."""
    from sklearn.cluster import KMeans

    found = KMeans(count, n_init=1, max_iter=KMEANS_ITERATIONS, random_state=seed % 2**32).fit(rows.double().numpy())
    return Codes(torch.from_numpy(found.labels_.astype("int64")), count)


def mean_rows(rows: Tensor, codes: Codes, weights: Tensor | None = None) -> Tensor:
    """The mean row of each code's words, weighted if asked, [K, d]; zero for a code without words."""
    weights = torch.ones(len(rows)) if weights is None else weights
    weights = weights.to(rows)
    sums = torch.zeros(codes.count, rows.shape[1], dtype=rows.dtype).index_add_(0, codes.of, weights[:, None] * rows)
    mass = torch.zeros(codes.count, dtype=rows.dtype).index_add_(0, codes.of, weights)
    return sums / mass.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]


class VQHead(nn.Module):
    """The output layer: `codebook` [K, d] is trained, the map is given; with `bias` one more scalar for each word.

    A bias repairs the unigram part of what words of one code share: logit[i] = L[M(i)] + bias[i].
    """

    def __init__(self, codebook: Tensor, codes: Codes, bias: bool = False):
        super().__init__()
        if len(codebook) != codes.count:
            raise ValueError(f"{codes.count} codes need as many rows, not {len(codebook)}")
        self.codebook = nn.Parameter(codebook.clone())
        self.bias = nn.Parameter(torch.zeros(len(codes.of), dtype=codebook.dtype)) if bias else None
        self.register_buffer("code_of", codes.of)

    @property
    def codes(self) -> Codes:
        """The map as it is now."""
        return Codes(self.code_of, len(self.codebook))

    @property
    def packed_bytes(self) -> float:
        """Codebook and bias in float32, and the map in ceil(log2 K) bits a word."""
        return 4 * sum(parameter.numel() for parameter in self.parameters()) + self.codes.map_bytes()

    def log_members(self) -> Tensor:
        """log n_c, or the logsumexp of the biases in code c, [K]; -inf for a code without words."""
        if self.bias is None:
            return self.codes.sizes().to(self.codebook).log()
        shifted = (self.bias - self.bias.detach().max()).exp()
        sums = torch.zeros_like(self.codebook[:, 0]).index_add(0, self.code_of, shifted)
        return sums.log() + self.bias.detach().max()

    def scattered(self, hidden: Tensor) -> Tensor:
        """Logits of all words, [n, V]."""
        logits = linear(hidden, self.codebook)[:, self.code_of]
        return logits if self.bias is None else logits + self.bias

    def target_log_probabilities(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """log p(target), [n], from the code logits alone."""
        logits = linear(hidden, self.codebook)
        chosen = logits.gather(1, self.code_of[targets][:, None])[:, 0]
        log_z = torch.logsumexp(logits + self.log_members(), dim=1)
        return chosen - log_z if self.bias is None else chosen + self.bias[targets] - log_z

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy in nats over the V words, a scalar, without work of size V."""
        return -self.target_log_probabilities(hidden, targets).mean()

    def scattered_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """The same by its definition."""
        return cross_entropy(self.scattered(hidden), targets)

    def log_probabilities(self, hidden: Tensor) -> Tensor:
        """[n, d] -> [n, V]."""
        log_z = torch.logsumexp(linear(hidden, self.codebook) + self.log_members(), dim=1, keepdim=True)
        return self.scattered(hidden) - log_z


class LearnedVQHead(VQHead):
    """A `VQHead` that gathers statistics while it trains, and moves words to the code that they fit best.

    Moving word i alone to code c changes the log likelihood of the seen text, to first order in its probability, to
    sum_t:y_t=i (h_t . C_c) - sum_t e^(L_c(t)) / Z(t), plus terms without c: the first sum needs the summed contexts of
    each word alone, the second is the expected number of occurrences of one word of code c.
    """

    def __init__(self, codebook: Tensor, codes: Codes):
        super().__init__(codebook, codes)
        self.register_buffer("context_sums", torch.zeros(len(codes.of), codebook.shape[1], dtype=codebook.dtype))
        self.register_buffer("seen", torch.zeros(len(codes.of), dtype=torch.int64))
        self.register_buffer("expected", torch.zeros(codes.count, dtype=codebook.dtype))
        self.register_buffer("recent", torch.zeros((), dtype=torch.int64))

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """As `VQHead.loss`; in training mode the batch is added to the statistics."""
        if self.training:
            with torch.no_grad():
                logits = linear(hidden, self.codebook)
                log_z = torch.logsumexp(logits + self.log_members(), dim=1, keepdim=True)
                self.context_sums.index_add_(0, targets, hidden.detach())
                self.seen.index_add_(0, targets, torch.ones_like(targets))
                self.expected += (logits - log_z).exp().sum(0)
                self.recent += len(targets)
        return super().loss(hidden, targets)

    @torch.no_grad()
    def reassign(self, share: float = 0.05, least_seen: int = 2) -> int:
        """Move the words that gain most, at most `share` of the vocabulary, seen `least_seen` times or more.

        Returns how many moved. The gains are of single moves, so too many at once would overcrowd the best codes.
        `expected` starts anew, since it holds for the codebook of the last steps.
        """
        if not int(self.recent):
            return 0
        occurrences = self.expected * (self.seen.sum() / self.recent)
        scores = linear(self.context_sums, self.codebook) - occurrences
        best, code = scores.max(dim=1)
        gain = best - scores.gather(1, self.code_of[:, None])[:, 0]
        gain[self.seen < least_seen] = 0.0
        moved = gain.topk(max(1, int(share * len(gain)))).indices
        moved = moved[gain[moved] > 0]
        self.code_of[moved] = code[moved]
        self.expected.zero_()
        self.recent.zero_()
        return len(moved)


def excess_over_bayes(conditional: Tensor, contexts: Tensor, codes: Codes) -> float:
    """E[log n_M(y)] - H(Y | M(Y), context) in nats: what the best head with these codes loses on a known source.

    `conditional` [contexts, V] holds p(y | context), `contexts` their probabilities.
    """
    joint = contexts[:, None] * conditional
    by_code = torch.zeros(len(conditional), codes.count, dtype=conditional.dtype).index_add_(1, codes.of, conditional)
    within = conditional / by_code[:, codes.of].clamp_min(torch.finfo(conditional.dtype).tiny)
    entropy = -torch.special.xlogy(joint, within).sum()
    spread = (joint.sum(0) * codes.sizes()[codes.of].to(joint).log()).sum()
    return float(spread - entropy)


def unigram_floor(probabilities: Tensor, codes: Codes) -> float:
    """sum_c p(c) KL(p(y | c) || uniform_c) in nats, from unigram probabilities [V]: a lower bound of the excess."""
    return excess_over_bayes(probabilities[None], torch.ones(1, dtype=probabilities.dtype), codes)
