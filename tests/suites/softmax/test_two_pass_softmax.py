"""The suite: arms against truth, oracles that can fail, and the estimate behind gain_vanishes_in_cache."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.declare.suite import NotTestable, SkipArm
from harness.run import check
from harness.run.worker import load_suite
from reference.kernels.softmax import eager
from reference.kernels.softmax.cost import workspace_bytes
from suites.softmax.two_pass_softmax.gpu import gpu_problem

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/two_pass_softmax")


@pytest.fixture(autouse=True)
def denormals_as_before():
    yield
    torch.set_flush_denormal(False)


def make(suite, experiment, **point):
    rng = np.random.default_rng(0)
    problem = suite.speeds[experiment](point=point, rng=rng, device="cpu")
    return problem, check.InputSet(problem, rng), rng


POINTS = [
    ("throughput", {"n": 4096, "threads": 1}),
    ("throughput", {"n": 2**17, "threads": "all"}),
    ("passes", {"n": 4096, "threads": 1}),
    ("passes", {"n": 2**17 + 3, "threads": "all"}),
    ("rows", {"shape": "512x128", "threads": "all"}),
]


@pytest.mark.parametrize(("experiment", "point"), POINTS, ids=str)
def test_every_arm_is_right_also_on_redrawn_inputs(suite, experiment, point):
    problem, drawn, rng = make(suite, experiment, **point)
    assert set(problem.arms) == set(suite.card.experiments[experiment].arms)
    buffers = {name: check.buffers_of(problem, arm, drawn.inputs) for name, arm in problem.arms.items()}
    for _ in range(2):
        for name, arm in problem.arms.items():
            assert check.prove(problem, arm, drawn, buffers[name]).fault is None, name
        drawn.redraw(rng)


GPU_POINTS = [("gpu_throughput", {"n": 5000}), ("gpu_rows", {"shape": "64x100"})]


@pytest.mark.parametrize(("experiment", "point"), GPU_POINTS, ids=str)
def test_without_cuda_the_arms_of_a_gpu_say_why_and_the_others_are_right(suite, experiment, point):
    problem, drawn, rng = make(suite, experiment, **point)
    assert set(suite.card.experiments[experiment].arms) <= set(problem.arms)
    skipped = {name: str(arm) for name, arm in problem.arms.items() if isinstance(arm, SkipArm)}
    assert all("CUDA device" in skipped[name] for name in problem.arms if name.startswith("cuda_"))
    assert not {"torch", "copy"} & set(skipped)
    buffers = problem.buffers(*drawn.inputs)
    for _ in range(2):
        for name in ("torch", "copy"):
            assert check.prove(problem, problem.arms[name], drawn, buffers).fault is None, name
        drawn.redraw(rng)
    (y,) = buffers
    problem.arms["torch"].run(*drawn.inputs, y)
    assert problem.error(y, drawn.truth) <= problem.arms["torch"].tolerance
    assert not problem.error(y.roll(1), drawn.truth) <= problem.arms["torch"].tolerance


def test_a_cuda_device_that_is_not_there_skips_every_arm_of_ours():
    problem = gpu_problem(2, 300, f"cuda:{torch.cuda.device_count()}")
    ours = [arm for name, arm in problem.arms.items() if name.startswith(("cuda_", "triton_"))]
    assert len(ours) == 8 and all(isinstance(arm, SkipArm) for arm in ours)


def test_every_experiment_has_a_function_and_those_of_a_gpu_stand_apart_from_the_claims(suite):
    assert set(suite.card.experiments) == set(suite.speeds)
    for name, experiment in suite.card.experiments.items():
        assert (experiment.devices == ["cuda"]) is name.startswith("gpu_")
        assert "threads" not in experiment.axes or experiment.devices == ["cpu"]
    asked = {part.experiment for claim in suite.card.claims for part in (claim, *claim.parts, *claim.requires)}
    assert not [name for name in asked if name and name.startswith("gpu_")]


TRITON = """
import numpy as np
from harness.run import check
from suites.softmax.two_pass_softmax.gpu import gpu_problem
rng = np.random.default_rng(0)
problem = gpu_problem(3, 700, "cpu")
drawn = check.InputSet(problem, rng)
for name in ("triton_two_pass", "triton_online"):
    assert check.prove(problem, problem.arms[name], drawn, problem.buffers(*drawn.inputs)).fault is None, name
"""


def test_the_triton_arms_are_wired_to_their_kernels():
    pytest.importorskip("triton")
    done = subprocess.run([sys.executable, "-c", TRITON], cwd=ROOT, capture_output=True, text=True, check=False,
                          env={**os.environ, "TRITON_INTERPRET": "1"})
    assert done.returncode == 0, done.stderr


def test_the_kernels_declare_what_they_allocate_and_the_peers_nothing(suite):
    problem, _, _ = make(suite, "throughput", n=2**20, threads=2)
    for name, arm in problem.arms.items():
        expected = None if name in ("torch", "scipy") else workspace_bytes(1, 2**20, algorithm=name, threads=2)
        assert arm.workspace_bytes == expected, name


@pytest.mark.parametrize(
    ("arm", "outputs"),
    [
        ("store", np.zeros_like),
        ("store", lambda y: np.roll(y, 1)),
        ("max", lambda sums, exponents: exponents - 1),
        ("sum_exp", lambda sums, exponents: sums * (1 + 1e-6)),
    ],
)
def test_a_wrong_pass_is_found(suite, arm, outputs):
    problem, drawn, _ = make(suite, "passes", n=4096, threads=1)
    right = problem.arms[arm]
    buffers = check.buffers_of(problem, right, drawn.inputs)
    right.run(*drawn.inputs, *buffers)
    changed = outputs(*buffers)
    index = 1 if arm == "max" else 0
    spoiled = [changed if i == index else buffer for i, buffer in enumerate(buffers)]
    assert problem.error(right.outputs(*buffers), drawn.truth) <= problem.tolerance
    assert problem.error(right.outputs(*spoiled), drawn.truth) > problem.tolerance


def test_inputs_are_aligned_and_follow_the_papers_law(suite):
    problem, drawn, _ = make(suite, "throughput", n=2**14, threads=1)
    (x,) = drawn.inputs
    y, tensors = problem.buffers(x)
    assert x.ctypes.data % 64 == y.ctypes.data % 64 == 0
    assert (tensors.x.data_ptr(), tensors.y.data_ptr()) == (x.ctypes.data, y.ctypes.data)
    assert -1000 <= x.min() < -990 and 990 < x.max() <= 1000 and abs(x.mean()) < 20
    assert problem.input_bytes == x.nbytes and problem.rotate >= 2


@pytest.mark.parametrize("name", ["sums_to_one", "masked_inputs", "nothing_overflows", "shift_invariance"])
def test_oracles_agree(suite, name):
    suite.oracles[name]()


def test_a_wrong_constant_makes_the_oracle_fail(suite, monkeypatch):
    suite.oracles["within_4_units_of_float64"]()
    monkeypatch.setattr(eager, "LN2_LOW", -eager.LN2_LOW)
    with pytest.raises(AssertionError, match=r"two_pass \(eager\)"):
        suite.oracles["within_4_units_of_float64"]()


def records(speedups: dict[int, float], noise: float = 0.002) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for n, speedup in speedups.items():
        arms = {"two_pass": 1.0, "three_pass_recompute": speedup, "three_pass_reload": 1.3 * speedup}
        for unit in range(20):
            process, machine = unit // 4, math.exp(rng.normal(0, 0.3))
            for arm, cost in arms.items():
                time = n * machine * cost * math.exp(rng.normal(0, noise))
                rows.append({"cell": f"c{n}", "arm": arm, "seed": 0, "process": process, "unit": f"{process}/{unit}",
                             "n": n, "threads": 1, "time": time})
    return pd.DataFrame(rows)


def test_the_gap_is_the_difference_of_speedups_over_the_better_baseline(suite):
    table = records({2**12: 0.8, 2**14: 0.9, 2**20: 0.95, 2**25: 1.25})
    found = suite.estimates["speedup_gap"](table, 0.95, inside=2**14, outside=2**25)
    assert found.low < 0.35 < found.high
    assert found.high - found.low < 0.02
    assert "from about n = 2^20.9 on" in found.method


def test_no_gap_is_not_called_one(suite):
    found = suite.estimates["speedup_gap"](records({2**14: 1.2, 2**25: 1.2}), 0.95, inside=2**14, outside=2**25)
    assert found.low < 0.0 < found.high
    assert "ahead at every size" in found.method


def test_the_gap_needs_both_sizes(suite):
    with pytest.raises(NotTestable, match="this run has 4096"):
        suite.estimates["speedup_gap"](records({4096: 1.0}), 0.95, inside=2**14, outside=2**25)


def test_crossover_of_a_method_that_falls_back_again():
    from suites.softmax.two_pass_softmax.suite import crossover

    assert crossover({1024: 1.1, 2048: 0.9}) == "two_pass is ahead from no measured size on"
    assert crossover({1024: 1.1, 2048: 0.5, 4096: 2.0}) == "two_pass is ahead from about n = 2^11.5 on"


def test_the_card_has_the_papers_claims(suite):
    assert suite.card.claim_ids == [
        "out_of_cache_speedup", "passes_bandwidth_bound", "gain_vanishes_in_cache", "beats_online_softmax",
    ]
