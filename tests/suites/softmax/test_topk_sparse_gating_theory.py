"""The suite of top-K gated mixtures: trials and arms at toy sizes, and broken equations that its oracles notice."""

from pathlib import Path

import numpy as np
import pytest

from harness.run import check
from harness.run.worker import load_suite
from reference.methods.softmax import topk_sparse_gating_theory as theory
from reference.methods.softmax import topk_sparse_gating_theory_numba as kernels
from suites.softmax.topk_sparse_gating_theory import suite as module

ROOT = Path(__file__).resolve().parents[3]
CLAIMS = ["exact_rate_half", "overspecified_slow_parameters", "kbar_condition"]


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/topk_sparse_gating_theory")


def test_every_claim_and_every_function_is_there(suite):
    assert suite.card.claim_ids == CLAIMS
    assert set(suite.card.experiments) == {*suite.trials, *suite.speeds}


@pytest.mark.parametrize("d", [1, 2])
def test_trials_return_the_metrics_of_the_card_and_repeat_them(suite, d):
    experiment = suite.card.experiments["rates"]
    for arm in experiment.arms if d == 1 else ["exact", "narrow_exact_start"]:
        point = {"d": d, "n": 120}
        found = suite.trials["rates"](arm=arm, point=point, seed=0, device="cpu")
        assert set(found) == set(experiment.metrics)
        assert np.isfinite(list(found.values())).all()
        assert 0 < found["hellinger"] < 1 and (found["gain"] > -1 or (d == 2 and arm.startswith("narrow")))
    assert found == suite.trials["rates"](arm=arm, point=point, seed=0, device="cpu")


def test_arms_of_a_size_share_their_random_starts_and_only_theory_gets_the_truth():
    true = theory.truth()
    x, y = theory.sample(true, 200, np.random.default_rng(0))
    counts = {arm: len(module.starts(arm, true, x, y, 3)) for arm in module.SIZES}
    assert counts == {"exact": 11, "wide": 13, "narrow": 10, "narrow_exact_start": 11}
    drawn, with_exact = (module.starts(arm, true, x, y, 3) for arm in ("narrow", "narrow_exact_start"))
    for mine, other in zip(drawn, with_exact[:-1], strict=True):
        assert np.array_equal(mine.b1, other.b1) and np.array_equal(mine.b, other.b)


def test_every_timed_arm_is_right(suite):
    rng = np.random.default_rng(0)
    problem = suite.speeds["em_iteration"](point={"n": 300, "k": 8}, rng=rng, device="cpu")
    drawn = check.InputSet(problem, rng)
    for arm in suite.card.experiments["em_iteration"].arms:
        assert check.prove(problem, problem.arms[arm], drawn).fault is None, arm


def test_adding_the_bias_before_selecting_is_noticed(monkeypatch):
    """Planted fault: the common wrong TopK."""
    right = theory.selection

    def biased(mixture, x):
        padded = np.column_stack([x, np.ones(len(x))])
        b1 = np.column_stack([mixture.b1, mixture.b0])
        wide = theory.Mixture(b1, mixture.b0, np.column_stack([mixture.a, mixture.b]), mixture.b, mixture.sigma,
                              mixture.selected)
        return right(wide, padded)

    monkeypatch.setattr(theory, "selection", biased)
    with pytest.raises(AssertionError):
        module.selection_ignores_the_bias()


def test_gates_normalised_along_the_wrong_axis_are_noticed(monkeypatch):
    def wrong(mixture, x):
        weights = np.where(theory.selection(mixture, x), np.exp(x @ mixture.b1.T + mixture.b0), 0.0)
        return weights / (weights.sum(axis=0) + 1e-9)

    monkeypatch.setattr(theory, "gates", wrong)
    with pytest.raises(AssertionError):
        module.density_integrates_to_one()


def test_a_variance_without_its_half_is_noticed(monkeypatch):
    def wrong(mixture, x, y):
        scaled = (y[..., None] - (x @ mixture.a.T + mixture.b)[:, None]) / mixture.sigma
        return np.exp(-(scaled**2)) / (mixture.sigma * np.sqrt(2 * np.pi))

    monkeypatch.setattr(theory, "expert_densities", wrong)
    for oracle in (module.density_integrates_to_one, module.with_all_selected_it_is_the_dense_mixture):
        with pytest.raises(AssertionError):
            oracle()


def test_a_score_of_the_wrong_sign_is_noticed(monkeypatch):
    right = kernels.scores

    def wrong(theta, x, y, selected, found):
        value = right(theta, x, y, selected, found)
        found[:, 4::5] *= -1
        return value

    monkeypatch.setattr(kernels, "scores", wrong)
    with pytest.raises(AssertionError, match="parameter 4"):
        module.scores_are_the_gradient()


def test_an_unweighted_loss_is_noticed(monkeypatch):
    monkeypatch.setattr(module, "voronoi_loss", lambda fit, true: theory.voronoi_loss(
        theory.replace(fit, b0=fit.b0 * 0), theory.replace(true, b0=true.b0 * 0)))
    with pytest.raises(AssertionError):
        module.voronoi_loss_by_hand()
