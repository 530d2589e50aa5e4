"""Soft-NMS (doi 10.1109/ICCV.2017.593): average precision against tuned NMS, also by crowding, and time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from harness.declare.estimate_spec import Slope
from harness.declare.seeds import seed_for
from harness.declare.suite import Estimate, Point, Problem, Suite
from reference.methods.softmax import soft_nms_detection as scenes
from reference.methods.softmax.soft_nms import DECAYS, Rule, soft_nms, soft_nms_torch
from reference.methods.softmax.soft_nms_numba import hard_nms
from reference.methods.softmax.soft_nms_numba import soft_nms as soft_nms_fast
from reference.testbeds.average_precision import Objects, iou_matrix
from reference.testbeds.detector import Proposals
from suites.softmax.soft_nms.speed import complexity_problem, throughput_problem

if TYPE_CHECKING:
    import pandas as pd

suite = Suite(__file__)

DECAY = {"nms": "hard", "soft_linear": "linear", "soft_gaussian": "gaussian"}
TRAINING = {"images": 2000, "steps": 400}
SCENES = {"detector": {"val": 200, "test": 300}, "simulated": {"val": 20, "test": 20}}


def proposed(kind: str, crowding: float | None, seed: int, part: str) -> tuple[Objects, Proposals]:
    """Objects and raw boxes of a part; one detector for each seed, trained on scenes of mixed crowding."""
    data, images = seed_for("data", seed), SCENES[kind][part]
    if kind == "simulated":
        return scenes.detected(None, crowding, images, data, part)
    model = suite.prepare("detector", {"seed": data, **TRAINING}, scenes.detector)
    config = {"crowding": crowding, "images": images, "seed": data, "part": part}
    return suite.prepare("proposals", config, lambda config: scenes.detected(model, **config))


@suite.trial("detection")
def detection(arm: str, point: Point, seed: int, device: str, tuned: Mapping[str, Any]) -> dict[str, float]:
    """One rule on scenes of mixed crowding."""
    rule = Rule(DECAY[arm.removesuffix("_default")], **tuned)
    parts = {part: proposed(point["proposals"], None, seed, part) for part in ("val", "test")}
    objects, found = parts["test"]
    return {
        "ap": scenes.ap_percent(objects, found, rule),
        "val_ap": scenes.ap_percent(*parts["val"], rule),
        "kept": len(scenes.suppress(found, rule).label) / len(found.scores),
    }


@suite.trial("crowding")
def crowding(arm: str, point: Point, seed: int, device: str) -> dict[str, float]:
    """The rule that is best on validation scenes of this crowding, on test scenes of it."""
    decay = DECAY[arm]
    val, test = (proposed(point["proposals"], point["crowding"], seed, part) for part in ("val", "test"))
    rule = scenes.best_rule(*val, scenes.rules(decay))
    return {"ap": scenes.ap_percent(*test, rule), "chosen": getattr(rule, scenes.GRIDS[decay][0])}


@suite.speed("complexity")
def complexity(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Hard and soft on the same boxes."""
    return complexity_problem(point["n"], point["n"] // 10 if point["layout"] == "spread" else 20)


@suite.speed("throughput")
def throughput(point: Point, rng: np.random.Generator, device: str) -> Problem:
    """Four images."""
    return throughput_problem(4, point["n"])


@suite.estimate("gain_slope")
def gain_slope(records: pd.DataFrame, level: float, of: str, minus: str) -> Estimate:
    """Least-squares slope of ap(of) - ap(minus) along the crowding, one for each seed, and its mean over seeds."""
    from harness.judge.stats.intervals import t_interval

    table = records.pivot(index="seed", columns=["arm", "crowding"], values="ap")
    gain = table[of] - table[minus]
    slopes = np.polyfit(gain.columns.to_numpy(float), gain.to_numpy(float).T, 1)[0]
    low, high = t_interval(slopes, level)
    return Estimate(float(slopes.mean()), low, high, len(slopes), level, "seed", "t interval over the seeds' slopes")


@suite.estimate("slope_gap")
def slope_gap(records: pd.DataFrame, level: float, of: str, to: str) -> Estimate:
    """Slope of log(time of / time to) on log n, the ratio taken round by round inside a cell."""
    from harness.judge.contrasts import Question
    from harness.judge.slope import slope

    keys = ["cell", "unit"]
    ours, base = (records[records["arm"] == arm].set_index(keys).sort_index() for arm in (of, to))
    paired = ours.assign(time=ours["time"] / base["time"]).reset_index()
    return slope(Slope(slope="time", against="n", of=of), Question(paired, suite.card.experiments["complexity"], level))


def _drawn(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    boxes, scores = scenes.random_proposals(np.random.default_rng(seed), 1, n, n // 8)
    return boxes[0], scores[0]


def _each(boxes: np.ndarray, scores: np.ndarray, rule: Rule) -> list[tuple[str, np.ndarray]]:
    """Decayed scores by every implementation."""
    found = [("numpy", soft_nms(boxes, scores, rule)), ("numba", soft_nms_fast(boxes, scores, rule)),
             ("torch", soft_nms_torch(torch.from_numpy(boxes), torch.from_numpy(scores), rule).numpy())]
    if rule.decay == "hard":
        found.append(("sorted once", hard_nms(boxes, scores, rule.threshold)))
    return found


def _brute_force(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Which boxes NMS keeps, by its definition: no kept box of a higher score overlaps more than the threshold."""
    table, kept = iou_matrix(boxes, boxes), np.zeros(len(scores), bool)
    for i in np.argsort(-scores):
        kept[i] = not (kept & (scores > scores[i]) & (table[i] > threshold)).any()
    return kept


@suite.oracle
def hard_rule_is_nms() -> None:
    """The hard rule keeps what NMS keeps, with its score; so does a Gaussian of vanishing sigma, at threshold 0."""
    for seed in range(3):
        boxes, scores = _drawn(seed)
        for rule, threshold in ((Rule("hard", 0.3), 0.3), (Rule("hard", 0.6), 0.6), (Rule("gaussian", sigma=1e-12), 0)):
            kept = _brute_force(boxes, scores, threshold) & (scores >= rule.floor)
            for name, result in _each(boxes, scores, rule):
                assert np.array_equal(result > 0, kept), f"{name}: {rule} keeps other boxes than NMS"
                assert np.array_equal(result[kept], scores[kept]), f"{name}: {rule} changed the score of a kept box"


@suite.oracle
def three_boxes_by_hand() -> None:
    """A, B, C in a row: IoU(A, B) = 1/3, IoU(B, C) = 3/17. After A the highest score is C's: B is hit by both."""
    boxes = np.array([[0.0, 0, 10, 1], [5, 0, 15, 1], [12, 0, 22, 1]])
    scores = np.array([0.9, 0.8, 0.7])
    twice = 0.8 * np.exp(-((1 / 3) ** 2 + (3 / 17) ** 2) / 0.5)
    for rule, expected in ((Rule("gaussian"), [0.9, twice, 0.7]), (Rule("linear"), [0.9, 0.8 * 2 / 3, 0.7]),
                           (Rule("linear", threshold=0.4), [0.9, 0.8, 0.7]), (Rule("hard"), [0.9, 0.0, 0.7])):
        for name, result in _each(boxes, scores, rule):
            assert np.allclose(result, expected, rtol=1e-12), f"{name}: {rule} gives {result}, not {expected}"
    touching = np.array([[0.0, 0, 9, 0], [10, 0, 19, 0]])  # pixels 0..9 and 10..19 of one row: 20 pixels, none shared
    for name, result in _each(touching, scores[:2], Rule("linear", threshold=0.0, pixel_inclusive=True))[:3]:
        assert np.array_equal(result, scores[:2]), f"{name}: neighbouring rows of pixels overlap"


@suite.oracle
def disjoint_boxes_keep_their_scores() -> None:
    """Whatever the rule."""
    corner = np.arange(40.0)[:, None] * 12
    boxes, scores = np.hstack([corner, corner, corner + 11, corner + 11]), np.linspace(0.01, 0.99, 40)
    for decay in DECAYS:
        for name, result in _each(boxes, scores, Rule(decay)):
            assert np.array_equal(result, scores), f"{name}: {decay} changed disjoint boxes"


@suite.oracle
def order_of_input_does_not_matter_and_scores_never_rise() -> None:
    """Scores are different, so that nothing hangs on ties."""
    for seed, decay in enumerate(DECAYS):
        boxes, scores = _drawn(seed)
        mixed = np.random.default_rng(seed).permutation(len(scores))
        expected = soft_nms(boxes, scores, Rule(decay))
        assert (expected <= scores).all() and expected.max() == scores.max()
        assert decay != "gaussian" or (expected < scores).mean() > 0.5
        for name, result in _each(boxes[mixed], scores[mixed], Rule(decay)):
            assert np.allclose(result, expected[mixed], rtol=1e-12, atol=0), f"{name}: {decay} depends on the order"
