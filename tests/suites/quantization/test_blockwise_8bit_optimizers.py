"""The suite of the 8-bit optimizers: its own oracles, the estimate it brings, and that its checks catch faults."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from suites.quantization.blockwise_8bit_optimizers import suite as blockwise
from suites.quantization.blockwise_8bit_optimizers.arms import OPTIONS, adam_for, eligible
from suites.quantization.blockwise_8bit_optimizers.step import STEP, step_error, step_problem

SPEC_CLAIMS = ["parity_without_retuning", "each_component_needed", "memory", "block_outlier_isolation"]


@pytest.mark.parametrize("name", blockwise.suite.oracles)
def test_oracle_holds(name):
    assert blockwise.suite.oracles[name]() is None


def test_the_card_has_every_claim_of_the_paper_and_every_experiment_a_function():
    card = blockwise.suite.card
    assert card.claim_ids == SPEC_CLAIMS
    assert set(card.experiments) == {*blockwise.suite.trials, *blockwise.suite.speeds}


def test_only_the_32_bit_arm_is_tuned_and_its_optimum_lies_inside_the_grid():
    for name, experiment in blockwise.suite.card.experiments.items():
        if experiment.tune is None:
            continue
        assert list(experiment.tune.grid) == ["fp32"]
        tuned = blockwise.suite.tuned.experiments[name]
        rates = sorted(trial.values["lr"] for trial in tuned.arms["fp32"].trials)
        assert rates[0] < tuned.arms["fp32"].values["lr"] < rates[-1]
        assert dict(tuned.point) == dict(experiment.tune.point)


def table(losses):
    rows = [
        {"cell": f"{seed}-{lr}", "seed": seed, "arm": arm, "val_loss": value}
        for seed in range(5) for lr in (1, 4) for arm, value in losses.items()
    ]
    return pd.DataFrame(rows)


def gap(losses):
    return blockwise.failure_gap(table(losses), 0.95, of="plain", minus="ours", reference="fp32", beyond=1.5)


def test_failure_gap_counts_infinite_nan_and_too_large_losses():
    for bad in (math.inf, math.nan, 3.01):
        found = gap({"fp32": 2.0, "ours": 2.9, "plain": bad})
        assert (found.point, found.n) == (1.0, 5)
        assert 0 < found.low < found.high <= 1.0


def test_failure_gap_can_refute_and_can_stay_open():
    assert gap({"fp32": 2.0, "ours": math.inf, "plain": 2.0}).high < 0
    even = gap({"fp32": 2.0, "ours": 2.0, "plain": 2.0})
    assert even.low < 0 < even.high
    assert even.point == 0


def test_stable_embedding_keeps_its_states_in_32_bits():
    for stable in (False, True):
        model = blockwise.char_lm.make("S", 0, stable_embedding=stable)
        chosen = [id(p) for p in eligible(adam_for("block256", model, 1e-3))]
        assert (id(model.token_embedding.weight) in chosen) is not stable
        assert id(model.blocks[0].attention.query.weight) in chosen


@pytest.mark.parametrize("arm", OPTIONS)
def test_training_is_deterministic_and_starts_alike_in_every_arm(arm, monkeypatch):
    small = blockwise.text.corpus("DOC", 50_000)
    monkeypatch.setattr(blockwise, "corpus", lambda size: small)
    point = {"steps": 2, "batch": 2, "corpus_bytes": 50_000}
    first, again = (blockwise.parity(arm, point, 0, "cpu", {"lr": 1e-3}) for _ in range(2))
    assert first == again
    assert first["train_curve"][0] == blockwise.parity("fp32", point, 0, "cpu", {"lr": 1e-3})["train_curve"][0]


def faulty_step(fault):
    """The error of the fused arm's result after ``fault`` altered it."""
    problem = step_problem(3001)
    inputs = problem.inputs(np.random.default_rng(0))
    arm = problem.arms["fused_8bit"]
    buffers = arm.buffers(*inputs)
    arm.run(*inputs, *buffers)
    fault(inputs, buffers)
    return step_error(arm.outputs(*buffers), problem.truth(*inputs)), problem.tolerance


def test_the_speed_arms_are_right_and_faults_in_them_are_caught():
    error, tolerance = faulty_step(lambda inputs, buffers: None)
    assert error <= tolerance
    faults = {
        "parameters not written": lambda inputs, buffers: buffers[0].copy_(inputs[0]),
        "first moment not written": lambda inputs, buffers: buffers[1].copy_(inputs[2]),
        "second moment's scale not written": lambda inputs, buffers: buffers[4].copy_(inputs[5]),
        "codes of the last block lost": lambda inputs, buffers: buffers[1][-100:].fill_(127),
        "parameters stepped twice": lambda inputs, buffers: buffers[0].mul_(2).sub_(inputs[0]),
    }
    for name, fault in faults.items():
        error, tolerance = faulty_step(fault)
        assert not error <= tolerance, name


def test_the_outlier_measure_leaves_the_outliers_out():
    x = torch.linspace(-1, 1, 1000)
    ordinary = torch.ones(1000, dtype=torch.bool)
    ordinary[500] = False
    clean = blockwise.relative_l1(x, ordinary, None)
    x[500] = 1e6
    assert blockwise.relative_l1(x, ordinary, 100) < 0.2
    assert blockwise.relative_l1(x, ordinary, None) > 10 * clean


def test_the_suite_stands_where_the_catalog_looks():
    assert blockwise.suite.name == "quantization/blockwise_8bit_optimizers"
    assert (Path(blockwise.__file__).parent / "tuned.yaml").exists()
    assert STEP > 1  # so that bias correction counts
