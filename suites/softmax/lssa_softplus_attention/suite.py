"""Softplus attention with re-weighting (arXiv 2501.13428): long windows, l1 normalisation, two stages, passkeys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from harness.judge.stats.intervals import t_interval
from reference.methods.softmax import lssa_softplus_attention as method
from reference.methods.softmax import lssa_softplus_attention_language as models
from reference.testbeds.char_lm import CharLM
from suites.softmax.lssa_softplus_attention.speed import forward_problem

if TYPE_CHECKING:
    import pandas as pd

Metrics = dict[str, Any]

suite = Suite(__file__)


@suite.trial("language")
def language(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Train on short windows, read long ones."""
    model, codes = trained(arm, point, seed, tuned["lr"])
    found = models.nats_by_length(model, codes, point["characters"])
    return {
        "val_nats": models.tuning_nats(model, codes, point["characters"]),
        "nats_1": found[1], "nats_8": found[8], "nats_16": found[16], "rise_16": found[16] - found[1],
        "by_length": list(found.values()),
    }


@suite.trial("maps")
def maps(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """A positive map and a normalisation, at the training length."""
    model, codes = trained(arm, point, seed, tuned["lr"])
    return {"val_nats": models.tuning_nats(model, codes, point["characters"]),
            "nats_1": models.nats_by_length(model, codes, point["characters"], (1,))[1]}


def trained(arm: str, point: Point, seed: int, lr: float) -> tuple[CharLM, Tensor]:
    """The arm's language model and the validation text; arms that are trained alike share the training."""
    trained_as, read_as = ("lssa", "lssar") if arm == "lssa_late" else (arm, arm)
    corpus = suite.prepare("doc", {"bytes": point["corpus_bytes"]}, models.doc_corpus)
    suite.uses_data("DOC", corpus.digest)
    setting = setting_of(trained_as, point, seed, lr)
    weights = suite.prepare("model", {**asdict(setting), "bytes": point["corpus_bytes"]},
                            lambda _: models.train_language_model(setting, corpus)[0].state_dict())
    model = models.language_model(read_as, 0)
    model.load_state_dict(weights)
    return model, corpus.validation


def setting_of(variant: str, point: Point, seed: int, lr: float) -> models.Setting:
    """Equal data and, of what arms have in common, equal initial values for every arm."""
    return models.Setting(variant, point["steps"], point["batch"], lr, seed_for("data", seed), seed_for("init", seed))


@suite.trial("passkey")
def passkey(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> Metrics:
    """Train on short strings, search long ones."""
    finder, history = models.train_key_finder(setting_of(arm, point, seed, tuned["lr"]))
    found = list(models.accuracy_by_length(finder, point["strings"], seed_for("test", seed)).values())
    return {"val_nats": history.val_loss, "accuracy_1": found[0], "beyond": fmean(found[1:]), "by_length": found}


@suite.speed("forward")
def forward(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Both stages and softmax, forward."""
    return forward_problem(point["length"], point["heads"])


@suite.estimate("l1_over_map")
def l1_over_map(records: pd.DataFrame, level: float) -> Estimate:
    """What leaving l1 out costs, averaged over the maps, less the largest difference that the map makes with l1."""
    table = records.pivot_table(index="seed", columns="arm", values="nats_1")
    with_l1, without = (table[[f"{name}_{way}" for name in method.POSITIVE_MAPS]].to_numpy() for way in ("l1", "count"))
    gaps = (without - with_l1).mean(axis=1) - np.ptp(with_l1, axis=1)
    low, high = t_interval(gaps, level)
    return Estimate(float(gaps.mean()), low, high, len(gaps), level, "seed", f"t interval over {len(gaps)} seeds")


def drawn(time: int = 40, width: int = 16) -> tuple[Tensor, Tensor]:
    """Queries and keys N(0, 1), float64 [2, 3, time, width]."""
    q, k = torch.randn(2, 2, 3, time, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return q, k


@suite.oracle
def stage_one_by_its_definition() -> None:
    """Entry by entry with plain numbers, N_i being the row's count."""
    queries, keys = drawn(7, 4)
    found = method.lssa_rows(queries, keys)[0, 0].numpy()
    q, k = queries[0, 0].numpy(), keys[0, 0].numpy()
    for i in range(7):
        cosines = [float(q[i] @ k[j] / np.linalg.norm(q[i]) / np.linalg.norm(k[j])) for j in range(i + 1)]
        row = np.array([np.log1p(np.exp(np.log(4) * np.log(i + 1) * cosine)) for cosine in cosines])
        assert np.abs(found[i, : i + 1] - row / row.sum()).max() < 1e-12, i


@suite.oracle
def stage_two_by_its_definition() -> None:
    """Without the division by the maximum, which therefore changes nothing; with p = 1 and O = 0 it is stage 1."""
    weights = method.lssa_rows(*drawn(30))
    counts = torch.arange(1, 31, dtype=torch.float64)[:, None]
    for power in (1, 3, 15):
        raised = (weights * counts - (counts > 3).double()).clamp_min(0) ** power
        found = method.reweight(weights, power)
        assert (found - raised / raised.sum(-1, keepdim=True)).abs().max() < 1e-6, power
    assert (method.reweight(weights, power=1, offset=0.0) - weights).abs().max() < 1e-7


@suite.oracle
def rows_sum_to_one_and_see_no_future() -> None:
    """Other keys and queries from token 21 on leave rows 1 to 20 as they are."""
    q, k = drawn()
    changed = [torch.cat([part[..., :20, :], part[..., 20:, :].flip(-2) + 1], dim=-2) for part in (q, k)]
    for name, rows in method.ROWS.items():
        before, after = rows(q, k), rows(*changed)
        assert torch.allclose(before[..., :20, :], after[..., :20, :], atol=1e-12), name
        assert (before.triu(1) == 0).all(), name
        if not name.endswith("_count"):
            first = 10 if name == "relu_l1" else 0  # all of a short row may be 0
            assert (before.sum(-1)[..., first:] - 1).abs().max() < 1e-6, name


@suite.oracle
def a_uniform_row_is_no_zero_over_zero() -> None:
    """Nothing of it is above its mean; and 499^15 is beyond float32."""
    uniform = torch.ones(8, 8).tril() / torch.arange(1.0, 9.0)[:, None]
    found = method.reweight(uniform)
    assert torch.isfinite(found).all()
    assert torch.allclose(found[:3], uniform[:3], atol=1e-6)
    assert torch.isfinite(method.reweight(torch.eye(500))).all()
