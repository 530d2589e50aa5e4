"""The builders of the projection suites' speed experiments: every backend that can run here, and why others cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from harness.declare.suite import SkipArm
from harness.run import check
from reference.kernels import project as kernels
from reference.kernels.backend import missing
from reference.kernels.project import blas, cost
from reference.kernels.project.refresh import gradient_like
from suites.projection.galore import speed as galore
from suites.projection.galore import suite as galore_suite
from suites.projection.svd_free_dct_projection import speed as dct
from suites.projection.svd_free_dct_projection import suite as dct_suite

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PROBLEMS = {
    "step": lambda device: galore.step_problem("24x40x8", device, ("cuda", "triton", "eager")),
    "tall step": lambda device: galore.step_problem("40x24x8", device, ("cuda", "triton", "eager")),
    "refresh": lambda device: dct.refresh_problem(
        32, {name: (name, 8) for name in ("dct_matmul", "dct_fft", "svd")}, device),
    "select": lambda device: dct.select_problem(40, 9, device),
}
GPU = [(suite, name) for suite, names in ((galore_suite.suite, ["gpu_step_time"]),
                                          (dct_suite.suite, ["gpu_refresh", "gpu_select"])) for name in names]


def proofs(problem):
    rng = np.random.default_rng(0)
    drawn = check.InputSet(problem, rng)
    can_run = {name: arm for name, arm in problem.arms.items() if not isinstance(arm, SkipArm)}
    return {name: check.prove(problem, arm, drawn) for name, arm in can_run.items()}


@pytest.mark.parametrize("device", sorted({"cpu", DEVICE}))
@pytest.mark.parametrize("name", PROBLEMS)
def test_arms_that_can_run_here_are_right(name, device):
    found = proofs(PROBLEMS[name](device))
    assert {"eager", "dct_matmul"} & set(found)
    assert {arm: proof.fault for arm, proof in found.items() if proof.fault} == {}


@pytest.mark.parametrize("name", ["step", "select"])
def test_a_backend_that_cannot_run_is_skipped_for_its_reason(name):
    arms = PROBLEMS[name]("cpu").arms
    assert isinstance(arms["cuda"], SkipArm)
    for backend in ("cuda", "triton"):
        reason = missing(backend, "cpu")
        assert isinstance(arms[backend], SkipArm) == (reason is not None)
        if reason is not None:
            assert str(arms[backend]) == reason


def test_compile_on_a_gpu_needs_triton():
    reason = missing("triton", "cuda")
    arm = galore.step_arm("compile", (8, 8, 2), "cuda")
    assert (str(arm) if isinstance(arm, SkipArm) else None) == reason
    assert not isinstance(galore.step_arm("compile", (8, 8, 2), "cpu"), SkipArm)


@pytest.mark.parametrize(("suite", "name"), GPU)
def test_gpu_experiments_build_their_arms_and_no_claim_waits_for_them(suite, name):
    experiment = suite.card.experiments[name]
    assert experiment.devices == ["cuda"]
    assert name not in {part.experiment for claim in suite.card.claims for part in claim.resolved_parts()}
    smoke = experiment.in_profile("smoke")
    point = {axis: values[0] for axis, values in smoke.axes.items()}
    problem = suite.speeds[name](point=point, rng=np.random.default_rng(0), device="cpu")
    assert list(problem.arms) == experiment.arms


def test_the_svd_is_left_out_where_it_would_take_minutes():
    table = torch.empty(0)
    assert "4096" in str(dct.refresh_arm(8192, "svd", 128, table))
    assert not isinstance(dct.refresh_arm(4096, "svd", 128, table), SkipArm)
    assert not isinstance(dct.refresh_arm(8192, "dct_fft", 128, table), SkipArm)
    assert (dct.rank_of({"n": 2048, "rank": "quarter"}), dct.rank_of({"n": 2048, "rank": 128})) == (512, 128)


def test_the_rivals_are_torch_from_end_to_end(monkeypatch):
    """The eager arm takes none of the op's fast products, so that it stays a rival."""
    problem = galore.step_problem("160x128x128", "cpu", ("eager", "numba"))
    drawn = check.InputSet(problem, np.random.default_rng(0))
    before = check.prove(problem, problem.arms["eager"], drawn)
    monkeypatch.setattr(blas, "_by_onednn", None)
    assert check.prove(problem, problem.arms["eager"], drawn).error == before.error
    if blas.gemm_route() == "onednn":
        with pytest.raises(TypeError, match="NoneType"):
            check.prove(problem, problem.arms["numba"], drawn)


def test_our_arms_declare_their_workspace_by_the_cost_model():
    arms = galore.step_problem("160x128x32", "cpu", ("eager", "numba")).arms
    assert arms["numba"].workspace_bytes == cost.lowrank_adam_workspace_bytes(160, 128, 32, "right") >= 4 * 160 * 32
    assert arms["eager"].workspace_bytes is None
    fft = dct.refresh_arm(96, "dct_fft", 12, torch.empty(0))
    assert fft.workspace_bytes == cost.dct_select_workspace_bytes(96, 96) + 4 * 96**2
    assert dct.refresh_arm(96, "svd", 12, torch.empty(0)).workspace_bytes is None


def test_selections_that_break_a_promise_are_caught():
    problem = dct.select_problem(40, 9, "cpu")
    drawn = check.InputSet(problem, np.random.default_rng(3))
    eager = problem.arms["eager"]

    def fault(change):
        return check.prove(problem, replace(eager, run=lambda S: change(S, *eager.run(S))), drawn).fault

    assert fault(lambda S, kept, columns: (kept, columns)) is None
    assert fault(lambda S, kept, columns: (kept * 1.001, columns))
    assert fault(lambda S, kept, columns: (kept * float("nan"), columns))
    assert fault(lambda S, kept, columns: (kept[:, :-1], columns[:-1]))
    assert fault(lambda S, kept, columns: (kept[:, [0] * 9], columns[[0] * 9]))
    least = kernels.column_norms(drawn.inputs[0]).argsort()[:9].to(torch.int32)
    assert fault(lambda S, kept, columns: (S[:, least], least))


def test_a_refresh_returns_its_arrays_so_that_their_bytes_count():
    G = gradient_like(32, 32, np.random.default_rng(0))
    R, columns, name = dct.refresh_arm(32, "dct_fft", 8, torch.empty(0)).run(G)
    assert (R.shape, columns.shape, name) == ((32, 8), (8,), "dct_fft")
