"""The suite of the 8-bit optimizers: its own oracles, the estimate it brings, and that its checks catch faults."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.declare.suite import SkipArm
from harness.run import check
from reference.kernels.quantize import dequantize_blockwise, dynamic_map, truth
from suites.quantization.blockwise_8bit_optimizers import suite as blockwise
from suites.quantization.blockwise_8bit_optimizers.arms import OPTIONS, adam_for, eligible
from suites.quantization.blockwise_8bit_optimizers.blockwise import CHUNK, blockwise_problem, code_error, value_error
from suites.quantization.blockwise_8bit_optimizers.step import STEP, step_error, step_problem

ROOT = Path(__file__).resolve().parents[3]
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


OPS = ("quantize", "dequantize")
SIZES = (1, 256, 5001, CHUNK + 300)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("op", OPS)
def test_every_arm_that_codes_is_right_also_on_redrawn_inputs(op, n):
    rng = np.random.default_rng(n)
    problem = blockwise_problem(op, n)
    drawn = check.InputSet(problem, rng)
    arms = {name: arm for name, arm in problem.arms.items() if not isinstance(arm, SkipArm)}
    assert {"numba", "numba_out", "eager", "copy"} <= set(arms)
    for _ in range(2):
        for name, arm in arms.items():
            buffers = check.buffers_of(problem, arm, drawn.inputs)
            assert check.prove(problem, arm, drawn, buffers).fault is None, name
        drawn.redraw(rng)


@pytest.mark.parametrize("op", OPS)
def test_on_a_cpu_the_arms_of_a_gpu_say_why_they_skip(op):
    arms = blockwise_problem(op, 300).arms
    assert "CUDA device" in str(arms["cuda"]) and isinstance(arms["cuda"], SkipArm)
    step = step_problem(300).arms
    assert "CUDA device" in str(step["fused_8bit_cuda"]) and isinstance(step["fused_8bit_cuda"], SkipArm)


def test_experiments_of_a_gpu_have_their_arms_and_stand_apart_from_the_claims():
    card = blockwise.suite.card
    points = {"blockwise": {"op": "quantize", "n": 300}, "gpu_blockwise": {"op": "dequantize", "n": 300},
              "step": {"n": 300}, "gpu_step": {"n": 300}}
    assert set(points) == set(blockwise.suite.speeds)
    for name, point in points.items():
        problem = blockwise.suite.speeds[name](point=point, rng=np.random.default_rng(0), device="cpu")
        assert set(card.experiments[name].arms) <= set(problem.arms), name
        assert (card.experiments[name].devices == ["cuda"]) is name.startswith("gpu_")
    asked = {part.experiment for claim in card.claims for part in (claim, *claim.parts, *claim.requires)}
    assert not [name for name in asked if name and name.startswith("gpu_")]


@pytest.mark.parametrize("n", [1, 300, 5001])
def test_the_nearest_codes_have_no_error_and_a_neighbour_has_its_own(n):
    x = np.random.default_rng(n).standard_normal(n, dtype=np.float32)
    code = dynamic_map(True).numpy()
    codes, scales = truth.quantize(x, code, 256)
    assert code_error((codes, scales), x) == 0.0
    moved = codes.copy()
    moved[-1] = codes[-1] + 1 if codes[-1] < 255 else 254
    scaled = float(x[-1]) / scales[-1]
    distances = [abs(float(code[item[-1]]) - scaled) for item in (moved, codes)]
    assert code_error((moved, scales), x) == pytest.approx(distances[0] - distances[1], rel=1e-6)
    assert code_error((codes, scales * (1 + 1e-5)), x) == pytest.approx(1e-5)
    assert code_error((codes, np.full_like(scales, np.nan)), x) == math.inf
    assert code_error((codes[:-1], scales), x) == math.inf


def test_a_wrong_value_is_found():
    rng = np.random.default_rng(0)
    problem = blockwise_problem("dequantize", 5001)
    codes, scales = problem.inputs(rng)
    values = dequantize_blockwise(codes, scales, dynamic_map(True), block=256)
    expected = problem.truth(codes, scales)
    assert value_error(values, expected) <= problem.tolerance
    zero = int(torch.nonzero(dynamic_map(True) == 0)[0])
    faults = {
        "one entry two roundings off": lambda y: y[7].mul_(1 + 2.0**-22),
        "a zero that is none": lambda y: y.masked_fill_(codes == zero, 1e-30),
        "an entry not written": lambda y: y[-1].fill_(math.nan),
        "the last block by the scale before it": lambda y: y[4864:].mul_(scales[-2] / scales[-1]),
    }
    for name, fault in faults.items():
        spoiled = values.clone()
        fault(spoiled)
        assert not value_error(spoiled, expected) <= problem.tolerance, name
    assert value_error(values[:-1], expected) == math.inf


TRITON = """
import numpy as np
from harness.run import check
from suites.quantization.blockwise_8bit_optimizers.blockwise import blockwise_problem
from suites.quantization.blockwise_8bit_optimizers.step import step_problem
problems = {"triton": [blockwise_problem(op, 700) for op in ("quantize", "dequantize")],
            "fused_8bit_triton": [step_problem(700)]}
for name, held in problems.items():
    for problem in held:
        drawn = check.InputSet(problem, np.random.default_rng(0))
        buffers = check.buffers_of(problem, problem.arms[name], drawn.inputs)
        assert check.prove(problem, problem.arms[name], drawn, buffers).fault is None, name
"""


def test_the_triton_arms_are_wired_to_their_kernels():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", TRITON], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr
