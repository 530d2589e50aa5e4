import itertools

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from reference.testbeds.average_precision import iou_matrix
from reference.testbeds.boxes import scenes
from reference.testbeds.detector import Detector, assign, focal, giou, propose, scene_batches, simulated, trained


@pytest.fixture(scope="module")
def batches():
    return scene_batches(scenes(64, None, 0), 8, 0, scenes(16, None, 0, "val"))


def test_a_place_predicts_the_object_whose_centre_is_nearest():
    centers = torch.tensor([[10.0, 10.0], [13.0, 10.0], [40.0, 40.0]])
    boxes = torch.tensor([[[0.0, 0, 20, 20], [8.0, 0, 28, 20], [0.0, 0, 0, 0]]])
    owner, owned = assign(centers, boxes, torch.tensor([[0, 0, -1]]))
    assert owned.tolist() == [[True, True, False]]
    assert owner[0, 0] == 0
    assert assign(centers + 4, boxes, torch.tensor([[0, 0, -1]]))[0][0, 1] == 1


def test_focal_loss_without_focus_is_half_the_cross_entropy():
    logits, wanted = torch.linspace(-4, 4, 9), (torch.arange(9) % 2).float()
    plain = binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    assert torch.allclose(focal(logits, wanted, alpha=0.5, gamma=0.0), plain / 2)
    assert (focal(logits, wanted) < plain).all()


def test_giou_is_iou_less_the_empty_share_of_the_hull():
    a = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 1, 1]])
    b = torch.tensor([[1.0, 0, 3, 2], [2.0, 0, 3, 1]])
    assert giou(a, b).tolist() == pytest.approx([1 / 3, -1 / 3])
    assert giou(a, a).tolist() == [1.0, 1.0]


def test_mirrored_batches_keep_boxes_on_their_objects(batches):
    plain = scenes(64, None, 0)
    known = {tuple(row.tolist()) for row in plain.boxes.flatten(0, 1)}
    mirrored = 0
    for images, boxes, labels in itertools.islice(iter(batches), 10):
        assert images.shape == (8, 1, 96, 96) and labels.shape == (8, 6)
        if tuple(boxes[0, 0].tolist()) not in known:
            mirrored += 1
            back = torch.stack([96 - boxes[..., 2], boxes[..., 1], 96 - boxes[..., 0], boxes[..., 3]], -1)
            row = (plain.boxes - back[0]).abs().amax((1, 2)).argmin()
            assert torch.equal(plain.images[row].flip(-1), images[0])
    assert 1 <= mirrored <= 9


def test_training_lowers_the_loss_and_repeats(batches):
    (first, history), (second, again) = (trained(3, batches, 6) for _ in range(2))
    assert history.train_loss == again.train_loss and not history.failed
    states = [list(model.state_dict().values()) for model in (first, second)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    _, longer = trained(3, batches, 25)
    assert np.mean(longer.train_loss[-5:]) < 0.75 * longer.train_loss[0]


def test_proposals_are_the_best_pairs_in_order():
    model = Detector(0)
    found = propose(model, scenes(3, None, 0).images, most=50, floor=0.0201)
    assert found.boxes.shape == (3, 50, 4) and found.scores.shape == found.labels.shape == (3, 50)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert ((found.scores == 0) | (found.scores >= 0.0201)).all()
    with torch.no_grad():
        logits, boxes = model.eval()(scenes(3, None, 0).images)
    best = logits[1].sigmoid().max()
    place, label = divmod(int(logits[1].argmax()), 3)
    assert found.scores[1, 0] == pytest.approx(float(best)) and found.labels[1, 0] == label
    assert torch.allclose(torch.from_numpy(found.boxes[1, 0]), boxes[1, place])


def test_simulated_scores_without_noise_are_the_overlaps():
    drawn = scenes(4, 0.4, 0)
    found = simulated(drawn, 0, noise=0.0)
    for image in range(4):
        true = drawn.boxes[image].double().numpy()
        for box, score, label in zip(found.boxes[image], found.scores[image], found.labels[image], strict=True):
            if score > 0:
                overlaps = iou_matrix(box[None].astype(float), true)[0]
                assert np.abs(overlaps - score).min() < 1e-6
                assert label in drawn.labels[image]
