"""The two projection suites: every claim of their papers, functions for every experiment, faults that are caught."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.declare.suite import Suite
from harness.run import check
from reference.kernels import project as kernels
from reference.kernels.project.refresh import REFRESHES, Refreshed, gradient_like, refresh_error
from suites.projection.galore import suite as galore
from suites.projection.svd_free_dct_projection import suite as dct

CLAIMS = {
    "galore": ["state_bytes", "pretrain_parity", "subspace_switching", "gradient_low_rank_lemma"],
    "svd_free_dct_projection": ["captured_energy", "training_parity", "faster_rank_independent"],
}
SUITES = {"galore": galore.suite, "svd_free_dct_projection": dct.suite}


def smoke_points(suite: Suite, kind: str):
    for name, declared in suite.card.experiments.items():
        experiment = declared.in_profile("smoke")
        if experiment is not None and experiment.kind == kind:
            yield name, experiment, {axis: values[0] for axis, values in experiment.axes.items()}


@pytest.mark.parametrize("slug", SUITES)
def test_every_claim_of_the_paper_is_on_the_card(slug):
    assert SUITES[slug].card.claim_ids == CLAIMS[slug]


@pytest.mark.parametrize("slug", SUITES)
def test_every_trial_returns_the_metrics_of_its_card_and_repeats_them(slug):
    suite = SUITES[slug]
    for name, experiment, point in smoke_points(suite, "trial"):
        for arm in experiment.arms:
            extra = {"tuned": {"lr": 0.01}} if experiment.tune else {}
            first = suite.trials[name](arm=arm, point=point, seed=0, device="cpu", **extra)
            assert set(first) == set(experiment.metrics), (name, arm)
            assert all(np.isfinite(value).all() for value in first.values()), (name, arm)
            if arm == experiment.arms[-1]:
                assert suite.trials[name](arm=arm, point=point, seed=0, device="cpu", **extra) == first


@pytest.mark.parametrize("slug", SUITES)
def test_every_arm_that_is_timed_is_right(slug):
    suite, rng = SUITES[slug], np.random.default_rng(0)
    for name, experiment, point in smoke_points(suite, "speed"):
        if "cpu" not in experiment.devices:
            continue
        problem = suite.speeds[name](point=point, rng=rng, device="cpu")
        for arm in experiment.arms:
            proof = check.prove(problem, problem.arms[arm], check.InputSet(problem, rng), buffers=None)
            assert proof.fault is None, (name, arm, proof)


def test_a_basis_taken_for_its_transpose_is_wrong_and_never_timed(monkeypatch):
    """Planted faults: P^T instead of P in the step, Q^T instead of Q behind the chosen indices."""
    rng = np.random.default_rng(0)
    problem = galore.suite.speeds["step_time"](point={"shape": "32x32x32"}, rng=rng, device="cpu")
    drawn = check.InputSet(problem, rng)
    assert check.prove(problem, problem.arms["eager"], drawn).fault is None
    right = kernels.eager.project
    monkeypatch.setattr(kernels, "project", lambda G, P, side, **_: right(G, P.mT, side))
    assert "tolerance" in check.prove(problem, problem.arms["eager"], drawn).fault

    G = gradient_like(48, 48, rng)
    found = REFRESHES["dct_matmul"].run(G, 12, kernels.dct_matrix(48))
    swapped = Refreshed(found.R, found.side, found.basis, by="fft")
    assert refresh_error(found, G.double().numpy(), "l1") < 1e-5
    assert refresh_error(swapped, G.double().numpy(), "l1") > 0.1


@pytest.mark.parametrize("name", REFRESHES)
def test_refreshes_that_break_a_promise_are_told_apart(name):
    G = gradient_like(64, 40, np.random.default_rng(1))
    method, exact = REFRESHES[name], G.double().numpy()
    found = method.run(G, 10, kernels.dct_matrix(40))
    assert refresh_error(found, exact, method.best) < 1e-5
    assert refresh_error(Refreshed(found.R * 1.01, found.side, found.basis, found.by), exact, method.best) > 1e-3
    assert np.isnan(refresh_error(Refreshed(found.R * np.nan, found.side, found.basis, found.by), exact, method.best))
    if name == "svd":
        P = kernels.random_basis(G, 10, "right", torch.Generator().manual_seed(0))
        assert refresh_error(Refreshed(G @ P, "right", P), exact, "energy") > 0.1
    if name == "dct_fft":
        others = torch.arange(10, dtype=torch.int32)
        S = kernels.dct_project(G, "fft")
        assert refresh_error(Refreshed(S[:, :10], "right", others, "fft"), exact, "l1") > 1e-3


@pytest.mark.parametrize("slug", SUITES)
def test_oracles_hold(slug):
    suite = SUITES[slug]
    assert len(suite.oracles) >= 4
    for oracle in suite.oracles.values():
        oracle()


def test_steps_inside_the_backward_pass_keep_one_gradient_alive():
    found = {arm: galore.live_gradients(arm, {"rank": 32}, 0, "cpu") for arm in ("after_backward", "per_layer")}
    assert found["after_backward"]["peak_gradient_bytes"] == found["after_backward"]["all_gradient_bytes"]
    # the largest tensor of LM-M is an MLP matrix, 512 x 128
    assert found["per_layer"]["peak_gradient_bytes"] == 4 * 512 * 128


def test_seeds_are_shared_by_arms_and_differ_between_seeds():
    point = {"size": "S", "steps": 2}
    first, second = galore.setting_of(point, 0), galore.setting_of(point, 1)
    assert first == galore.setting_of(point, 0)
    assert (first.data_seed, first.init_seed) != (second.data_seed, second.init_seed)


def test_estimates_over_systems_pool_the_seeds_and_do_not_hide_a_failure():
    import pandas as pd

    table = pd.DataFrame({"x": [[0.5, 0.9], [0.7, 0.1]]})
    worst = galore.largest(table, 0.95, metric="x")
    assert (worst.low, worst.point, worst.high, worst.n) == (0.9, 0.9, 0.9, 4)
    share = galore.share_at_most(table, 0.95, metric="x", limit=0.7)
    assert share.point == 0.75
    assert 0 < share.low < 0.75 < share.high < 1
    broken = pd.DataFrame({"x": [[0.5, np.nan]]})
    assert np.isnan(galore.largest(broken, 0.95, metric="x").point)
    assert galore.share_at_most(broken, 0.95, metric="x", limit=0.7).point == 0.5


@pytest.mark.parametrize("slug", SUITES)
def test_cards_lie_where_their_suites_look(slug):
    assert Path(SUITES[slug].file).parent.name == slug
