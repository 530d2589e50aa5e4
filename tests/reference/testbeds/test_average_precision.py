import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.testbeds.average_precision import (
    THRESHOLDS,
    Detections,
    Objects,
    average_precision,
    iou_matrix,
    precision_table,
)

ONE = np.array([[10.0, 10.0, 30.0, 30.0]])


def objects(boxes, images=None, labels=None):
    count = len(boxes)
    return Objects(np.zeros(count, int) if images is None else np.asarray(images),
                   np.zeros(count, int) if labels is None else np.asarray(labels), np.asarray(boxes, float))


def detections(boxes, scores, images=None, labels=None):
    base = objects(boxes, images, labels)
    return Detections(base.image, base.label, np.asarray(scores, float), base.box)


def random_case(seed, images=6, classes=3, ties=False):
    """Objects, and detections of which half are jittered objects; some images and classes stay empty."""
    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, 60, (40, 2)), random.uniform(8, 30, (40, 2))
    true = objects(np.hstack([corner, corner + size]), random.integers(0, images, 40), random.integers(0, classes, 40))
    near = random.integers(0, 40, 120)
    jittered = true.box[near] + random.normal(0, 1.5, (120, 4))
    corner, size = random.uniform(0, 60, (120, 2)), random.uniform(8, 30, (120, 2))
    scores = random.random(240)
    found = detections(np.vstack([jittered, np.hstack([corner, corner + size])]),
                       np.round(scores, 1) if ties else scores,
                       np.r_[true.image[near], random.integers(0, images + 2, 120)],
                       np.r_[true.label[near], random.integers(0, classes + 1, 120)])
    return true, found


def cocos_table(true, found, most):
    """The same by pycocotools: precision averaged over recalls, [thresholds, classes with objects]."""
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    def xywh(box):
        return [box[0], box[1], box[2] - box[0], box[3] - box[1]]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_module.COCO()
        truth.dataset = {
            "images": [{"id": int(i)} for i in np.union1d(true.image, found.image)],
            "categories": [{"id": int(k)} for k in np.unique(true.label)],
            "annotations": [
                {"id": n + 1, "image_id": int(i), "category_id": int(k), "bbox": xywh(b), "iscrowd": 0,
                 "area": (b[2] - b[0]) * (b[3] - b[1])}
                for n, (i, k, b) in enumerate(zip(true.image, true.label, true.box, strict=True))],
        }
        truth.createIndex()
        rows = [{"image_id": int(i), "category_id": int(k), "bbox": xywh(b), "score": float(s)}
                for i, k, b, s in zip(found.image, found.label, found.box, found.score, strict=True)]
        judge = COCOeval(truth, truth.loadRes(rows), "bbox")
        judge.params.maxDets = [most]
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][:, :, :, 0, 0].mean(axis=1)


@pytest.mark.peer
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("most", [100, 7])
def test_equals_pycocotools(seed, most):
    true, found = random_case(seed, ties=seed % 2 == 1)
    table = precision_table(true, found, most)
    expected = cocos_table(true, found, most)
    assert table.shape == expected.shape == (10, 3)
    assert 0.01 < table.mean() < 0.9
    assert np.abs(table - expected).max() < 1e-6


def test_perfect_detections_have_precision_1_and_none_0():
    true, _ = random_case(0)
    assert average_precision(true, detections(true.box, np.ones(40), true.image, true.label)) == 1.0
    assert average_precision(true, detections(np.empty((0, 4)), [])) == 0.0
    with pytest.raises(ValueError, match="without an object"):
        average_precision(objects(np.empty((0, 4))), detections(ONE, [1.0]))


def test_the_hand_case():
    """Right, wrong, right by falling score: precision 1 up to recall 1/2, then 2/3; at looser boxes less."""
    true = objects([[0, 0, 10, 10], [50, 50, 60, 60]])
    found = detections([[0, 0, 10, 10], [80, 80, 90, 90], [50, 50, 60, 57]], [0.9, 0.8, 0.7])
    table = precision_table(true, found)[:, 0]
    both = (51 * 1 + 50 * 2 / 3) / 101
    assert table[THRESHOLDS <= 0.7] == pytest.approx(both)
    assert table[THRESHOLDS > 0.71] == pytest.approx(51 / 101)


def test_a_second_detection_of_one_object_is_wrong():
    once, twice = (average_precision(objects([*ONE, [60, 60, 80, 80]]), detections(boxes, scores))
                   for boxes, scores in (([*ONE, [60, 60, 80, 80]], [0.9, 0.7]),
                                         ([*ONE, *ONE, [60, 60, 80, 80]], [0.9, 0.8, 0.7])))
    assert once == 1.0
    assert twice == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_another_class_or_image_never_matches():
    for other in ({"labels": [1]}, {"images": [1]}):
        assert average_precision(objects(ONE), detections(ONE, [0.9], **other)) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_order_of_rows_and_monotone_scores_do_not_matter_and_doubtful_additions_never_help(seed):
    true, found = random_case(seed)
    value = average_precision(true, found)
    mixed = np.random.default_rng(seed).permutation(len(found.score))
    again = Detections(found.image[mixed], found.label[mixed], found.score[mixed] ** 3, found.box[mixed])
    assert average_precision(true, again) == pytest.approx(value, abs=1e-12)
    worse = detections(np.vstack([found.box, ONE + 500]), np.append(found.score, 2.0), np.append(found.image, 0),
                       np.append(found.label, 0))
    assert average_precision(true, worse) < value


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_iou_is_symmetric_and_one_with_itself(seed):
    true, found = random_case(seed)
    table = iou_matrix(true.box, found.box)
    assert np.array_equal(table, iou_matrix(found.box, true.box).T)
    assert (table >= 0).all() and (table <= 1 + 1e-12).all()
    assert np.diagonal(iou_matrix(true.box, true.box)) == pytest.approx(1.0)
