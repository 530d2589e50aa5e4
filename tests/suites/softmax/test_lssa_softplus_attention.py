import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from harness.run import check
from reference.methods.softmax import lssa_softplus_attention as method
from suites.softmax.lssa_softplus_attention import speed
from suites.softmax.lssa_softplus_attention import suite as lssa

pytestmark = pytest.mark.usefixtures("one_thread")

CLAIMS = ["flat_loss_at_16x", "parity_at_train_length", "l1_is_the_key", "two_stages_needed", "passkey"]


def test_every_claim_of_the_paper_is_on_the_card():
    assert lssa.suite.card.claim_ids == CLAIMS


def test_the_l1_effect_is_held_against_that_of_the_map():
    losses = {"exp": (2.0, 3.0), "softplus": (2.1, 2.6), "sigmoid": (2.1, 2.5), "relu": (2.3, 2.4)}
    rows = [{"seed": seed, "arm": f"{name}_{way}", "nats_1": value + 0.01 * seed}
            for seed in range(5) for name, pair in losses.items()
            for way, value in zip(("l1", "count"), pair, strict=True)]
    found = lssa.l1_over_map(pd.DataFrame(rows), 0.95)
    assert found.point == pytest.approx((1.0 + 0.5 + 0.4 + 0.1) / 4 - 0.3)
    assert (found.n, found.unit) == (5, "seed")


def test_stage_two_is_put_on_the_model_that_was_trained_without_it(kept, monkeypatch):
    monkeypatch.setattr(lssa.suite, "artefacts", kept)
    point = {"steps": 1, "batch": 2, "characters": 1024, "corpus_bytes": 60_000}
    early, late = (lssa.language(arm=arm, point=point, seed=0, device="cpu", tuned={"lr": 0.01})
                   for arm in ("lssa", "lssa_late"))
    assert [name for name, _ in kept.built] == ["doc", "model"]
    assert set(early) == set(lssa.suite.card.experiments["language"].metrics)
    assert early["nats_1"] != late["nats_1"]
    assert early["val_nats"] != early["nats_1"]


def test_every_arm_that_is_timed_is_right_and_a_wrong_one_is_seen():
    rng = np.random.default_rng(0)
    problem = speed.forward_problem(70, 2)
    for name, arm in problem.arms.items():
        assert check.prove(problem, arm, check.InputSet(problem, rng), buffers=None).fault is None, name
    output = problem.truth(*problem.inputs(rng))
    assert speed.error_of((output["softmax"], "lssar"), output) > 0.01


right = {name: getattr(method, name) for name in ("lssa_rows", "reweight", "softmax_rows", "mapped_rows")}


def length_for_count(time, like):
    return torch.full((time, 1), float(time), dtype=like.dtype)


def along_the_other_axis(q, k):
    weights = right["lssa_rows"](q, k)
    return weights / weights.sum(-2, keepdim=True)


def root_d_kept(q, k):
    return right["lssa_rows"](q, k) * math.sqrt(q.shape[-1])


def other_sign(q, k):
    return right["lssa_rows"](-q, k)


def offset_added(weights, power=15, offset=1.0):
    return right["reweight"](weights, power, -offset)


def no_floor(weights, power=15, offset=1.0):
    raised = (weights * method.visible_counts(weights.shape[-1], weights) - offset).relu() ** power
    return raised / raised.sum(-1, keepdim=True)


FAULTS = [
    ("visible_counts", length_for_count, "stage_one_by_its_definition"),
    ("lssa_rows", other_sign, "stage_one_by_its_definition"),
    ("lssa_rows", along_the_other_axis, "stage_one_by_its_definition"),
    ("lssa_rows", root_d_kept, "stage_one_by_its_definition"),
    ("reweight", offset_added, "stage_two_by_its_definition"),
    ("reweight", partial(right["reweight"], offset=0.5), "stage_two_by_its_definition"),
    ("reweight", no_floor, "a_uniform_row_is_no_zero_over_zero"),
]


@pytest.mark.parametrize(("name", "fault", "oracle"), FAULTS)
def test_planted_faults_are_caught(monkeypatch, name, fault, oracle):
    lssa.suite.oracles[oracle]()
    monkeypatch.setattr(method, name, fault)
    with pytest.raises(AssertionError):
        lssa.suite.oracles[oracle]()


def test_weights_on_the_future_are_caught(monkeypatch):
    monkeypatch.setitem(method.ROWS, "softmax", lambda q, k: (q @ k.mT).softmax(-1))
    with pytest.raises(AssertionError):
        lssa.rows_sum_to_one_and_see_no_future()
