"""The Z-loss: arms against autograd, the estimate over all k, and faults that the oracles catch."""

import numpy as np
import pandas as pd
import pytest

from harness.declare.suite import SkipArm
from harness.run import check
from reference.methods.softmax import z_loss as z
from reference.methods.softmax import z_loss_factored as factored
from reference.methods.softmax.z_loss_words import loss_of
from suites.softmax.z_loss.suite import least_gap, suite

TUNED = {"head_lr": 1.0, "trunk_lr": 0.01, "sharpness": 0.3, "location": 0.25, "epsilon": 0.01}
TOPS = (1, 5, 10, 20, 50, 100)
pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_claim_of_the_paper_is_on_the_card():
    assert suite.card.claim_ids == [
        "cost_independent_of_classes", "better_topk_than_logsoftmax", "beats_other_spherical"]


def test_every_loss_returns_the_metrics_of_the_card_and_repeats_them():
    card = suite.card.experiments["words"].in_profile("smoke")
    for arm in card.arms:
        found = [suite.trials["words"](arm=arm, point=card.grid()[0], seed=0, device="cpu", tuned=TUNED)
                 for _ in range(2)]
        assert set(found[0]) == set(card.metrics), arm
        assert found[0] == found[1], arm
        assert all(np.isfinite(value) for value in found[0].values()), arm


def test_the_losses_of_the_arms():
    assert loss_of("z_loss", TUNED) == z.ZLoss(0.3, 0.25)
    assert loss_of("spherical", TUNED) == z.SphericalSoftmax(0.01)
    kinds = {name: type(loss_of(name, TUNED)) for name in ("log_softmax", "squared", "taylor")}
    assert kinds == {"log_softmax": z.LogSoftmax, "squared": z.SquaredError, "taylor": z.TaylorSoftmax}


@pytest.mark.parametrize("batch", [1, 5])
def test_every_arm_that_is_timed_is_right(batch):
    point = {"classes": 200, "width": 12, "batch": batch, "threads": 1}
    problem = suite.speeds["step"](point=point, rng=np.random.default_rng(0), device="cpu")
    assert set(problem.arms) == set(suite.card.experiments["step"].arms)
    for name, arm in problem.arms.items():
        if isinstance(arm, SkipArm):
            assert (name, batch) == ("factored_torch", 5)
            continue
        proof = check.prove(problem, arm, check.InputSet(problem, np.random.default_rng(1)))
        assert proof.fault is None, (name, proof)


@pytest.mark.parametrize("name", ["_update", "safe_eta"])
def test_a_step_that_is_not_made_is_never_timed(name, monkeypatch):
    replacement = (lambda *rest: None) if name == "_update" else (lambda eta, *rest: -eta)
    monkeypatch.setattr(factored, name, replacement)
    point = {"classes": 200, "width": 12, "batch": 5, "threads": 1}
    problem = suite.speeds["step"](point=point, rng=np.random.default_rng(0), device="cpu")
    proof = check.prove(problem, problem.arms["factored"], check.InputSet(problem, np.random.default_rng(1)))
    assert "exceeds the tolerance" in proof.fault


def table(gaps):
    rows = []
    for seed, jitter in enumerate((-0.002, -0.001, 0.0, 0.001, 0.002)):
        base = {"seed": seed, "unit": seed, "process": 0, "device": "cpu", "cell": seed}
        base |= {"steps": 1, "vocabulary": 2}
        rows.append({**base, "arm": "log_softmax", **{f"error_{k}": 0.5 for k in TOPS}})
        rows.append({**base, "arm": "z_loss", **{f"error_{k}": 0.5 + gap + jitter
                                                 for k, gap in zip(TOPS, gaps, strict=True)}})
    return pd.DataFrame(rows)


def test_the_least_gap_takes_the_best_k_with_an_interval_for_all():
    found = least_gap(table([0.1, 0.05, 0.0, -0.01, -0.03, -0.02]), 0.95, "z_loss", "log_softmax")
    assert found.point == pytest.approx(-0.03)
    assert found.n == 5
    assert found.low < -0.03 < found.high < 0
    # wider than the interval of one k: t at 1 - 0.05 / 6 with four degrees of freedom is 4.82, at 0.95 it is 2.78
    spread = np.std([-0.002, -0.001, 0.0, 0.001, 0.002], ddof=1) / np.sqrt(5)
    assert found.high - found.point == pytest.approx(4.82 * spread, rel=0.01)
    assert "k=50 -0.0300" in found.method


def test_no_k_is_better_when_all_gaps_are_positive():
    found = least_gap(table([0.1, 0.05, 0.03, 0.04, 0.05, 0.06]), 0.95, "z_loss", "log_softmax")
    assert found.low > 0


def scaled(field, factor):
    right = z.ZLoss.slopes

    def slopes(self, parts, classes):
        found = right(self, parts, classes)
        return found._replace(**{field: factor * getattr(found, field)})

    return slopes


@pytest.mark.parametrize(("field", "factor"), [("s", -1.0), ("q", 0.5), ("o", -1.0)])
def test_a_slope_of_wrong_sign_or_size_is_seen(field, factor, monkeypatch):
    monkeypatch.setattr(z.ZLoss, "slopes", scaled(field, factor))
    for name in ("slopes_equal_finite_differences", "factored_steps_equal_autograd"):
        with pytest.raises(AssertionError):
            suite.oracles[name]()


def test_a_mean_over_the_wrong_axis_is_seen(monkeypatch):
    def parts(outputs, targets):
        right = outputs.gather(-1, targets[:, None])[:, 0]
        return z.Parts(outputs.sum().expand(len(outputs)), outputs.square().sum(-1), right)

    monkeypatch.setattr(z, "parts_of", parts)
    with pytest.raises(AssertionError):
        suite.oracles["shift_and_scale_invariance"]()


def test_wbar_updated_after_omega_is_used_is_seen(monkeypatch):
    """The old wbar and rows must be used: here wbar is renewed before it enters Q."""
    right = factored._update

    def update(state, H, targets, k, u1, uc, chosen):
        state.wbar += H @ (len(state.V) * u1)
        right(state, H, targets, k, u1, uc, chosen)

    monkeypatch.setattr(factored, "_update", update)
    with pytest.raises(AssertionError):
        suite.oracles["factored_state_is_consistent"]()
