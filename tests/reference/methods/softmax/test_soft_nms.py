"""Soft-NMS in its three forms: what it must keep, how scores may move, and libraries that do the same."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.softmax.soft_nms import DECAYS, Rule, overlaps, soft_nms, soft_nms_torch
from reference.methods.softmax.soft_nms_detection import GRIDS, best_rule, detected, random_proposals, rules, suppress
from reference.methods.softmax.soft_nms_numba import hard_nms
from reference.methods.softmax.soft_nms_numba import soft_nms as soft_nms_fast
from reference.testbeds.average_precision import iou_matrix

RULES = st.builds(
    Rule, decay=st.sampled_from(DECAYS), threshold=st.floats(0.1, 0.9), sigma=st.floats(0.05, 2.0),
    floor=st.sampled_from([1e-4, 1e-3, 0.05]), pixel_inclusive=st.booleans(),
)


def drawn(seed, n=80, objects=8):
    boxes, scores = random_proposals(np.random.default_rng(seed), 1, n, objects)
    return boxes[0], scores[0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), RULES, st.integers(1, 3))
def test_the_fast_forms_agree_with_the_plain_one(seed, rule, classes):
    boxes, scores = drawn(seed)
    labels = np.random.default_rng(seed).integers(0, classes, len(scores))
    expected = soft_nms(boxes, scores, rule, labels)
    assert np.allclose(soft_nms_fast(boxes, scores, rule, labels), expected, rtol=1e-12, atol=0)
    one = soft_nms(boxes, scores, rule)
    assert np.allclose(soft_nms_torch(torch.from_numpy(boxes), torch.from_numpy(scores), rule), one, rtol=1e-9, atol=0)
    if rule.decay == "hard" and not rule.pixel_inclusive:
        assert np.array_equal(hard_nms(boxes, scores, rule.threshold, labels, rule.floor), expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), RULES)
def test_scores_never_rise_and_are_above_the_floor_or_nothing(seed, rule):
    boxes, scores = drawn(seed)
    result = soft_nms_fast(boxes, scores, rule)
    assert (result <= scores).all()
    assert ((result == 0) | (result >= rule.floor)).all()
    assert result.max() == scores.max()
    if rule.decay == "hard":
        assert set(result) <= {0.0, *scores}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), RULES)
def test_a_result_is_its_score_times_the_factors_of_all_that_end_above_it(seed, rule):
    """A closed form of the loop: box i has met exactly the boxes that were selected before it."""
    boxes, scores = drawn(seed, 40, 5)
    result = soft_nms(boxes, scores, rule)
    order = np.argsort(-result, kind="stable")[: (result > 0).sum()]
    for place, i in enumerate(order):
        factors = rule.factor(overlaps(boxes[i], boxes[order[:place]], rule.margin))
        assert result[i] == pytest.approx(scores[i] * np.prod(factors), rel=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), RULES)
def test_the_order_of_input_does_not_matter(seed, rule):
    boxes, scores = drawn(seed)
    mixed = np.random.default_rng(seed).permutation(len(scores))
    assert np.allclose(soft_nms_fast(boxes[mixed], scores[mixed], rule), soft_nms_fast(boxes, scores, rule)[mixed],
                       rtol=1e-12, atol=0)


def test_batches_are_images_by_themselves():
    boxes, scores = random_proposals(np.random.default_rng(0), 3, 50, 6)
    labels = np.random.default_rng(1).integers(0, 2, (3, 50)).astype(np.int8)
    together = soft_nms_fast(boxes, scores, Rule(), labels)
    hard = hard_nms(boxes, scores, 0.4, labels)
    out = np.full((3, 50), np.nan)
    assert np.shares_memory(soft_nms_fast(boxes, scores, Rule(), labels, out=out), out)
    assert np.array_equal(out, together)
    for image in range(3):
        alone = soft_nms(boxes[image], scores[image], Rule(), labels[image])
        assert np.allclose(together[image], alone, rtol=1e-12, atol=0)
        assert np.array_equal(hard[image], soft_nms(boxes[image], scores[image], Rule("hard", 0.4), labels[image]))


def test_nothing_and_one_box_are_fine():
    for rule in map(Rule, DECAYS):
        assert soft_nms_fast(np.empty((0, 4)), np.empty(0), rule).shape == (0,)
        assert soft_nms_fast(np.array([[0.0, 0, 1, 1]]), np.array([0.5]), rule).tolist() == [0.5]


def test_overlaps_are_those_of_the_evaluator_and_count_pixels_if_asked():
    boxes, _ = drawn(0)
    assert np.allclose(overlaps(boxes[0], boxes), iou_matrix(boxes[:1], boxes)[0], rtol=1e-12)
    pixels = np.array([[0.0, 0, 9, 9], [5, 0, 14, 9]])  # 10 x 10 pixels each, 50 shared
    assert overlaps(pixels[0], pixels, margin=1.0).tolist() == [1.0, 50 / 150]
    assert overlaps(pixels[0], pixels).tolist() == [1.0, 36 / 126]


@pytest.mark.parametrize("wrong", [{"decay": "cubic"}, {"threshold": 1.5}, {"sigma": 0.0}, {"floor": 0.0}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        Rule(**wrong)


@pytest.mark.peer
@pytest.mark.parametrize(("method", "rule"), [(1, Rule("linear", 0.4)), (2, Rule("gaussian", sigma=0.3))])
def test_ensemble_boxes_keeps_the_same_with_the_same_scores(method, rule):
    peer = pytest.importorskip("ensemble_boxes.ensemble_boxes_nms")
    for seed in range(5):
        boxes, scores = drawn(seed)
        decayed = scores.copy()
        kept = peer.cpu_soft_nms_float(boxes, decayed, rule.threshold, rule.sigma, rule.floor, method)
        expected = np.zeros(len(scores))
        expected[kept] = decayed[decayed > rule.floor]
        assert np.allclose(soft_nms_fast(boxes, scores, rule), expected, rtol=1e-9, atol=0)


@pytest.mark.peer
def test_torchvision_keeps_what_the_hard_rule_keeps():
    try:
        from torchvision.ops import nms
    except (ImportError, RuntimeError) as error:  # its extension does not load beside every build of torch
        pytest.skip(f"torchvision does not import: {error}")
    boxes, scores = drawn(1)
    kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.4).numpy()
    assert set(kept) >= set(np.flatnonzero(hard_nms(boxes, scores, 0.4)))


def test_suppression_inside_a_detector():
    objects, found = detected(None, 0.4, 12, 0, "test")
    hard, soft = (suppress(found, rule) for rule in (Rule("hard", 0.5), Rule()))
    assert 0 < len(hard.label) < len(soft.label)
    assert np.bincount(suppress(found, Rule(), most=3).image, minlength=12).max() == 3
    for kept in (hard, soft):
        assert kept.score.min() >= 0.001
        assert set(map(tuple, kept.box[:20])) <= set(map(tuple, found.boxes.reshape(-1, 4).astype(float)))
    for decay in DECAYS:
        candidates = rules(decay)
        assert len(candidates) == 7
        assert best_rule(objects, found, candidates) in candidates
    assert {name for name, _ in GRIDS.values()} == {"threshold", "sigma"}
