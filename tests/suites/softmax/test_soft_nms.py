"""The suite of soft-NMS: trials and arms at toy sizes, its estimates, and broken equations that its oracles notice."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.run import check
from harness.run.worker import load_suite
from reference.methods.softmax import soft_nms as plain
from suites.softmax.soft_nms import suite as module

ROOT = Path(__file__).resolve().parents[3]
CLAIMS = ["ap_gain", "gain_grows_with_overlap", "same_complexity"]


@pytest.fixture(scope="module")
def suite():
    return load_suite(ROOT, "softmax/soft_nms")


def test_every_claim_and_every_function_is_there(suite):
    assert suite.card.claim_ids == CLAIMS
    assert set(suite.card.experiments) == {*suite.trials, *suite.speeds}


def test_trials_return_the_metrics_of_the_card_and_repeat_them(suite):
    points = {"detection": {"proposals": "simulated"}, "crowding": {"proposals": "simulated", "crowding": 0.6}}
    for name, point in points.items():
        experiment = suite.card.experiments[name]
        for arm in experiment.arms:
            extra = {"tuned": {}} if experiment.tune else {}
            found = suite.trials[name](arm=arm, point=point, seed=0, device="cpu", **extra)
            assert set(found) == set(experiment.metrics)
            assert 5 < found["ap"] < 95
            assert found == suite.trials[name](arm=arm, point=point, seed=0, device="cpu", **extra)


@pytest.mark.parametrize(("name", "point"), [("complexity", {"layout": "spread", "n": 60}),
                                             ("complexity", {"layout": "clustered", "n": 60}),
                                             ("throughput", {"n": 60})], ids=str)
def test_every_timed_arm_is_right_and_the_hard_rule_is_not_taken_for_the_soft(suite, name, point):
    rng = np.random.default_rng(0)
    problem = suite.speeds[name](point=point, rng=rng, device="cpu")
    drawn = check.InputSet(problem, rng)
    for arm in suite.card.experiments[name].arms:
        assert check.prove(problem, problem.arms[arm], drawn).fault is None, arm
    truth = drawn.truth
    assert np.abs(truth["hard"] - truth["soft"]).max() > 0.01


def test_the_gain_slope_is_that_of_the_difference(suite):
    rows = [{"seed": seed, "arm": arm, "crowding": c, "ap": 50 + seed * (1 + c) + gain * c}
            for seed in range(5) for arm, gain in (("soft", 3), ("nms", 0)) for c in (0.0, 0.2, 0.4)]
    found = suite.estimates["gain_slope"](pd.DataFrame(rows), 0.95, of="soft", minus="nms")
    assert (found.point, found.low, found.high) == pytest.approx((3.0, 3.0, 3.0))
    assert found.n == 5


def test_the_slope_gap_is_the_difference_of_two_slopes(suite):
    rows = [
        {"cell": f"c{n}", "unit": f"{p}/{r}", "process": p, "seed": 0, "layout": "spread", "n": n, "arm": arm,
         "time": (1 + 0.3 * r) * n ** (1.5 if arm == "hard" else 1.8)}
        for n in (100, 1000, 5000) for p in range(2) for r in range(3) for arm in ("hard", "soft")
    ]
    found = suite.estimates["slope_gap"](pd.DataFrame(rows), 0.95, of="soft", to="hard")
    assert found.point == pytest.approx(0.3)
    assert found.low == pytest.approx(0.3) == found.high


FAULTS = {
    "a rising exponent": lambda self, iou: np.exp(iou**2 / self.sigma),
    "no square": lambda self, iou: np.exp(-iou / self.sigma) if self.decay == "gaussian" else RIGHT(self, iou),
    "the overlap instead of the rest": lambda self, iou: (
        np.where(iou > self.threshold, iou, 1.0) if self.decay == "linear" else RIGHT(self, iou)),
}
RIGHT = plain.Rule.factor


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_decay_is_noticed(monkeypatch, fault):
    monkeypatch.setattr(plain.Rule, "factor", FAULTS[fault])
    with pytest.raises(AssertionError):
        module.three_boxes_by_hand()


def test_sorting_once_is_noticed(monkeypatch):
    """Planted fault: boxes are taken in the order of their first scores, which is the hard rule's logic."""

    def sorted_once(boxes, scores, rule):
        result = np.zeros(len(scores))
        remaining = np.array(scores, float)
        for best in np.argsort(-scores):
            result[best], remaining[best] = remaining[best], 0.0
            remaining *= rule.factor(plain.overlaps(boxes[best], boxes, rule.margin))
        return result

    monkeypatch.setattr(plain, "_one_class", sorted_once)
    with pytest.raises(AssertionError, match="numpy"):
        module.three_boxes_by_hand()


def test_areas_along_the_wrong_axis_are_noticed(monkeypatch):
    right = plain.overlaps
    monkeypatch.setattr(plain, "overlaps", lambda box, boxes, margin=0.0: right(box[[0, 2, 1, 3]], boxes, margin))
    with pytest.raises(AssertionError):
        module.three_boxes_by_hand()
