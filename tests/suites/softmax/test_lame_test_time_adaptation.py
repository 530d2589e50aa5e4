"""The suite of LAME: its oracles, that they fail when an equation is broken, its estimate, its arms."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from harness.run import check
from harness.run.worker import load_suite
from reference.methods.softmax import lame_test_time_adaptation as lame

ROOT = Path(__file__).resolve().parents[3]
TINY = {"corruption": "noise", "order": "bursts", "prior": "balanced", "images": 128, "steps": 8}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/lame_test_time_adaptation")


@pytest.fixture(scope="module")
def module(suite):
    """The suite's functions by name."""
    return suite.trials["streams"].__globals__


@pytest.fixture(scope="module")
def prepared(suite, kept):
    before, suite.artefacts = suite.artefacts, kept
    yield suite
    suite.artefacts = before


def test_every_oracle_agrees(suite):
    for name, oracle in suite.oracles.items():
        assert oracle() is None, name


def broken_sum(factor, transpose=False):
    def product(W, Z):
        dense = W if W.is_floating_point() else torch.zeros(len(Z), len(Z), dtype=Z.dtype).scatter_(1, W, 1.0)
        return factor * (dense.mT if transpose else dense) @ Z

    return product


FAULTS = {
    "sign": ("product", broken_sum(-1.0), "two_images_reach_the_minimum_scipy_finds"),
    "factor": ("product", broken_sum(0.5), "ends_at_a_fixed_point"),
    "axis": ("product", broken_sum(1.0, transpose=True), "ends_at_a_fixed_point"),
    "half": ("objective", lambda Z, Q, W: lame.monitored_energy(Z, (Q + lame.FLOOR).log(), W @ Z),
             "objective_falls_where_the_affinity_is_positive"),
    "itself": ("neighbours", lambda f, k: torch.cdist(f, f).topk(k, largest=False).indices, "ends_at_a_fixed_point"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(suite, monkeypatch, fault):
    name, replacement, oracle = FAULTS[fault]
    monkeypatch.setattr(lame, name, replacement)
    with pytest.raises(AssertionError):
        suite.oracles[oracle]()


def records(differences, seeds=5):
    random = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        for order in ("iid", "bursts"):
            base = random.uniform(0.5, 0.9)
            place = {"seed": seed, "corruption": "noise", "order": order, "prior": "zipf"}
            rows.append({**place, "arm": "none", "accuracy": base})
            for arm, by_order in differences.items():
                rows.append({**place, "arm": arm, "accuracy": base + by_order[order] + random.normal(0, 0.002)})
    return pd.DataFrame(rows)


def test_largest_loss_finds_the_worst_arm_and_place(module):
    table = records({"a": {"iid": 0.05, "bursts": -0.2}, "b": {"iid": 0.0, "bursts": -0.02}})
    found = module["largest_loss"](table, 0.95, of=["a", "b"], to="none")
    assert found.point == pytest.approx(-0.2, abs=0.01)
    assert found.low < found.point < found.high < -0.15
    assert "a noise bursts zipf" in found.method
    mild = module["largest_loss"](table, 0.95, of=["b"], to="none")
    assert mild.low > -0.1


@pytest.mark.parametrize("arm", ["none", "lame", "adabn", "tent", "shot_im", "pseudo_label", "label_spreading"])
def test_a_stream_gives_an_accuracy_and_repeats(prepared, arm):
    first = prepared.trials["streams"](arm, TINY, 0, "cpu", {})
    assert 0.0 <= first["accuracy"] <= 1.0
    assert prepared.trials["streams"](arm, TINY, 0, "cpu", {}) == first


def test_many_scenarios_are_averaged(prepared, module):
    def each(corruption, order, prior):
        point = {**TINY, "corruption": corruption, "order": order, "prior": prior}
        return module["accuracies"](prepared, "none", point, 0, [{}, {}])

    singles = [each("clean", order, prior)[0] for order in ("iid", "bursts") for prior in ("balanced", "zipf")]
    whole = each("clean", "every", "every")
    assert whole[0] == whole[1] == pytest.approx(np.mean(singles))


def test_gradient_methods_allocate_more_than_lame(suite):
    found = {arm: suite.trials["memory"](arm, {"width": 4}, 0, "cpu") for arm in ("none", "lame", "tent", "shot_im")}
    assert found["lame"]["over_lame"] == 1.0
    assert found["none"]["allocated_bytes"] <= found["lame"]["allocated_bytes"]
    assert min(found[arm]["over_lame"] for arm in ("tent", "shot_im")) > 1.0


@pytest.mark.parametrize(("experiment", "point"), [
    ("batch", {"width": 4, "steps": 8}), ("refine", {"n": 64, "classes": 10}), ("refine", {"n": 100, "classes": 33}),
])
def test_arms_are_right_and_a_wrong_one_is_caught(prepared, experiment, point):
    rng = np.random.default_rng(0)
    problem = prepared.speeds[experiment](point=point, rng=rng, device="cpu")
    assert set(problem.arms) == set(prepared.card.experiments[experiment].arms)
    drawn = check.InputSet(problem, rng)
    for name, arm in problem.arms.items():
        assert check.prove(problem, arm, drawn).fault is None, name
        outputs = arm.run(*drawn.inputs, *check.buffers_of(problem, arm, drawn.inputs))
        spoiled = (outputs[0].roll(1, 0), *outputs[1:])
        assert problem.error(spoiled, drawn.truth) > problem.tolerance, name


def test_a_farther_neighbour_counts_as_an_error(prepared):
    rng = np.random.default_rng(0)
    problem = prepared.speeds["refine"](point={"n": 64, "classes": 10}, rng=rng, device="cpu")
    f, Q = problem.inputs(rng)
    lists = torch.cdist(f, f).argsort(1)[:, 2:7]
    Z = lame.refine(Q, lists, 0.0, 10).probabilities
    assert problem.error((Z, lists), problem.truth(f, Q)) > problem.tolerance
