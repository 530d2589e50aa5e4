import numpy as np
import pytest
import torch

from reference.testbeds.boxes import CLASSES, CROWDING, scenes


@pytest.mark.parametrize("crowding", CROWDING)
def test_the_crowding_is_what_was_asked_for(crowding):
    found = scenes(60, crowding, 0, "test")
    assert found.crowding() == pytest.approx(crowding, abs=0.02 if crowding else 0)


def test_mixed_scenes_lie_in_between():
    assert 0.2 < scenes(100, None, 0).crowding() < 0.4


def test_every_level_has_as_many_objects_of_each_class():
    for crowding in CROWDING:
        found = scenes(150, crowding, 1).objects()
        assert len(found.label) / 150 == pytest.approx(5, abs=0.3)
        assert np.bincount(found.label, minlength=CLASSES) / len(found.label) == pytest.approx(1 / 3, abs=0.08)


def test_objects_lie_inside_and_are_seen():
    found = scenes(40, None, 0)
    assert found.images.shape == (40, 1, 96, 96) and found.images.dtype == torch.float32
    here = found.labels >= 0
    boxes = found.boxes[here]
    assert (boxes >= 0).all() and (boxes <= 96).all() and (boxes[:, 2:] - boxes[:, :2] > 13).all()
    assert (found.boxes[~here] == 0).all()
    inside = torch.zeros(40, 96, 96, dtype=torch.bool)
    for image, box in zip(here.nonzero()[:, 0], boxes.round().long(), strict=True):
        inside[image, box[1] : box[3], box[0] : box[2]] = True
    assert found.images[:, 0][inside].std() > 1.25 * found.images[:, 0][~inside].std()


def test_parts_and_seeds_are_independent_and_repeat():
    first, again = scenes(5, 0.4, 0, "val"), scenes(5, 0.4, 0, "val")
    assert torch.equal(first.images, again.images) and torch.equal(first.boxes, again.boxes)
    for other in (scenes(5, 0.4, 0, "test"), scenes(5, 0.4, 1, "val"), scenes(5, None, 0, "val")):
        assert not torch.equal(first.images, other.images)


def test_a_crowding_that_leaves_nothing_to_tell_apart_is_refused():
    with pytest.raises(ValueError, match="crowding"):
        scenes(1, 0.9, 0)
