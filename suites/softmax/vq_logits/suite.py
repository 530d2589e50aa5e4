"""VQ-Logits (arXiv 2505.10202): perplexity by map and size, loss at equal bytes, and the time of the logits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from harness.declare.seeds import seed_for
from harness.declare.suite import Point, Problem, Suite
from reference.methods.softmax import vq_logits as vq
from reference.methods.softmax import vq_logits_words as experiment
from reference.methods.softmax.heads import stored_bytes
from reference.testbeds import training, word_lm
from reference.testbeds.seeding import generator
from suites.softmax.vq_logits.speed import logits_problem

Metrics = dict[str, Any]

suite = Suite(__file__)

TEST_WINDOWS = 384
RIVALS = ("low_rank", "adaptive", "int4")


@suite.trial("perplexity")
def perplexity(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """A share of the vocabulary as codes, or the full head."""
    count = None if arm == "full" else max(2, round(point["fraction"] * point["vocabulary"]))
    return fitted(arm, count, 0, point, seed, tuned["lr"])


@suite.trial("pareto")
def pareto(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """As many codes, or as much of another head, as the budget allows."""
    budget = 1024 * point["budget_kib"]
    count = None if arm in RIVALS else vq.largest_count(experiment.WIDTH, point["vocabulary"], budget)
    return fitted(arm, count, budget, point, seed, tuned["lr"])


def fitted(arm: str, count: int | None, budget: int, point: Point, seed: int, lr: float) -> Metrics:
    """Train the arm's head in the pretrained model, score it; integers are what the full head ends as."""
    config = {name: point[name] for name in ("vocabulary", "pretraining")} | {
        "data_seed": seed_for("data", seed), "init_seed": seed_for("init", seed)}
    text = suite.prepare("words", {"vocabulary": point["vocabulary"]}, experiment.text_of)
    suite.uses_data("DOC words", text.digest)
    setting = experiment.Setting(text, config["data_seed"], config["init_seed"])
    model = experiment.loaded(setting, suite.prepare("pretrained", config, experiment.pretrained_of))
    rows = model.head.weight.detach()
    if count is not None:
        mapping = "kmeans" if arm in ("learned", "kmeans_bias") else arm
        codes = suite.prepare(f"codes_{mapping}", {**config, "count": count}, lambda c: experiment.codes_for(
            mapping, rows, text.counts, c["count"], seed_for("codes", seed)))
        model.head = experiment.vq_head(arm, rows, codes, text.counts)
    elif arm not in ("full", "int4"):
        model.head = experiment.rival_head(arm, model, setting, budget)
    experiment.train_on(setting, model, lr, point["steps"])
    if arm == "int4":
        model.head = experiment.rival_head(arm, model, setting, budget)
    return scored(model, setting)


def scored(model: word_lm.WordLM, setting: experiment.Setting) -> Metrics:
    """The metrics of the card; a head without codes has one for each word."""
    windows = word_lm.windows(setting.text.test, experiment.WINDOW, TEST_WINDOWS)
    found = experiment.scores(model, windows)
    head = model.head
    shared = {"used_codes": float(len(setting.text.vocabulary)), "within_code": 0.0, "unigram_floor": 0.0}
    if isinstance(head, vq.VQHead):
        shared = experiment.code_scores(head, setting.text.counts, windows[:, 1:].flatten())
    validation = training.evaluate(model, setting.batches(2).validation)
    return {"val_ce": validation, **found, "head_bytes": float(stored_bytes(head)), **shared}


@suite.speed("logits")
def logits(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One batch of rows."""
    return logits_problem(point, device)


@suite.speed("gpu_logits")
def gpu_logits(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """One batch of rows on a CUDA device."""
    return logits_problem(point, device)


def _example(rows: int = 40, width: int = 8, count: int = 9, vocabulary: int = 50) -> tuple[Any, ...]:
    """A float64 head with random codes, hidden vectors and targets."""
    codes = vq.random_codes(vocabulary, count, generator("oracle", vocabulary))
    book, hidden = (torch.randn(n, width, dtype=torch.float64, generator=generator("oracle", n)) for n in (count, rows))
    return vq.VQHead(book, codes), hidden, torch.randint(vocabulary, (rows,), generator=generator("oracle targets"))


@suite.oracle
def identity_map_is_the_full_head() -> None:
    """K = V with the identity map: the same logits and the same loss, bit for bit."""
    head, hidden, targets = _example(count=50)
    own = vq.VQHead(head.codebook.detach(), vq.Codes(torch.arange(50), 50))
    full = word_lm.LinearHead(8, 50, 0).double()
    full.weight.data.copy_(head.codebook)
    assert torch.equal(own.scattered(hidden), full.scores(hidden)), "logits differ"
    assert torch.equal(own.scattered_loss(hidden, targets), full.loss(hidden, targets)), "losses differ"
    assert math.isclose(own.loss(hidden, targets).item(), full.loss(hidden, targets).item(), rel_tol=1e-12)


@suite.oracle
def code_level_equals_scattered() -> None:
    """The cross entropy from code logits, with and without biases, and log probabilities that sum to one."""
    head, hidden, targets = _example()
    biased = vq.VQHead(head.codebook.detach(), head.codes, bias=True)
    biased.bias.data.normal_(generator=generator("oracle bias"))
    for each in (head, biased):
        gap = abs(each.loss(hidden, targets).item() - each.scattered_loss(hidden, targets).item())
        assert gap <= 1e-6, f"code-level and scattered cross entropy differ by {gap:.2g}"
        total = each.log_probabilities(hidden).exp().sum(1)
        assert (total - 1).abs().max() <= 1e-9, "probabilities do not sum to one"


@suite.oracle
def codebook_gradient_is_the_sum_of_members() -> None:
    """dC[c] = the sum of what a full head with those rows would get for the words of c."""
    head, hidden, targets = _example()
    full = word_lm.LinearHead(8, 50, 0).double()
    full.weight.data.copy_(head.codebook.detach()[head.codes.of])
    head.loss(hidden, targets).backward()
    full.loss(hidden, targets).backward()
    expected = torch.zeros_like(head.codebook).index_add_(0, head.codes.of, full.weight.grad)
    worst = (head.codebook.grad - expected).abs().max().item()
    assert worst <= 1e-12, f"the codebook's gradient is off by {worst:.2g}"


@suite.oracle
def trained_loss_is_entropy_plus_penalty() -> None:
    """A Markov source of 10 words: the best codebook loses exactly E[log n] - H(Y | code, context), and no less."""
    chain = torch.softmax(torch.randn(10, 10, dtype=torch.float64, generator=generator("oracle chain")), dim=1)
    state = torch.linalg.matrix_power(chain, 200)[0]
    codes = vq.Codes(torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 3]), 4)
    head = vq.VQHead(torch.zeros(4, 10, dtype=torch.float64), codes)
    contexts, joint = torch.eye(10, dtype=torch.float64), state[:, None] * chain
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -(joint * head.log_probabilities(contexts)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    entropy, penalty = -torch.special.xlogy(joint, chain).sum().item(), vq.excess_over_bayes(chain, state, codes)
    gap = closure().item() - entropy - penalty
    assert -1e-9 <= gap <= 1e-4, f"the trained loss is off entropy + penalty by {gap:.2g}"
    assert penalty >= vq.unigram_floor(state, codes) - 1e-12 > 0, "the penalty lies below its bound"
