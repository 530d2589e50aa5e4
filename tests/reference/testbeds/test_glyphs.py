import dataclasses
import time

import pytest
import torch

from reference.testbeds import glyph_renders
from reference.testbeds.glyphs import CLASSES, CLEAN, HARD, Look, _blurred, _moved, glyphs


def test_the_classes_are_the_distinct_code_points_in_hash_order():
    assert len(CLASSES) >= 300
    assert len(set(CLASSES)) == len(CLASSES)
    assert sorted(CLASSES, key=glyph_renders._hash) == list(CLASSES)
    assert glyph_renders.distinct(glyph_renders.candidates()) == CLASSES


def test_letters_that_look_alike_across_scripts_are_one_class():
    for alike in ("AΑА", "oоο", "HНΗ", "сϲc"):
        assert len(set(map(ord, alike)) & set(CLASSES)) <= 1
    assert len({ord(letter) for letter in "12345679"} & set(CLASSES)) > 5


def test_no_two_classes_correlate_more_than_the_limit():
    flat = glyph_renders.renders(CLASSES, 16).flatten(2)
    flat = torch.nn.functional.normalize(flat - flat.mean(2, keepdim=True), dim=2)
    alike = torch.einsum("afp,bfp->abf", flat, flat).amax(2).fill_diagonal_(0)
    assert alike.max() <= glyph_renders.LIMIT + 1e-6


def test_a_render_is_centred_in_its_box_and_lies_in_0_to_1():
    for point in CLASSES[:40]:
        image = glyph_renders.render(point, "DejaVuSans", 32)
        assert image.min() >= 0
        assert 0.3 < image.max() <= 1
        inked = torch.nonzero(image > 0)
        low, high = inked.amin(0), inked.amax(0)
        assert (high - low + 1).max() in (23, 24)
        assert ((low + high) - 31).abs().max() <= 2


@pytest.mark.parametrize("side", [16, 24, 32])
def test_shapes_labels_and_types(side):
    x, y = glyphs(range(10, 30), 5, seed=0, side=side)
    assert x.shape == (100, 1, side, side)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.bincount(y).tolist() == [5] * 20
    assert not torch.equal(y, y.sort().values)


def test_the_arguments_decide_and_nothing_else():
    first, again = glyphs(range(5), 4, 0), glyphs(range(5), 4, 0)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    for other in (glyphs(range(5), 4, 1), glyphs(range(5), 4, 0, part="test")):
        assert not torch.equal(first[0], other[0])
        assert not torch.equal(first[1], other[1])


def test_a_label_is_the_place_in_the_given_sequence():
    x, y = glyphs([7, 3], 40, 0, look=CLEAN)
    for label, index in enumerate((7, 3)):
        allowed = {tuple(image.flatten().tolist()) for image in glyph_renders.renders((CLASSES[index],), 32)[0]}
        drawn = {tuple(image.flatten().mul(1e4).round().tolist()) for image in x[y == label]}
        rounded = {tuple(round(value * 1e4) for value in image) for image in allowed}
        assert drawn == rounded
        assert len(drawn) == len(glyph_renders.FACES)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Look)])
def test_every_strength_changes_the_image_and_more_of_it_changes_more(name):
    clean, _ = glyphs(range(6), 30, 0, look=CLEAN)
    gaps = [
        glyphs(range(6), 30, 0, look=dataclasses.replace(CLEAN, **{name: factor * getattr(HARD, name)}))[0] - clean
        for factor in (0.5, 1.0, 2.0)
    ]
    sizes = [gap.square().mean().item() for gap in gaps]
    assert 0 < sizes[0] < sizes[1] < sizes[2]


def test_noise_has_its_standard_deviation_and_is_not_clipped():
    look = dataclasses.replace(CLEAN, noise=0.3)
    x, _ = glyphs(range(50), 4, 0, look=look)
    empty = x[:, :, :2].flatten()
    assert empty.std().item() == pytest.approx(0.3, rel=0.03)
    assert empty.min() < -0.5


def test_a_shift_moves_the_glyph_by_that_share_of_the_side():
    x = glyph_renders.render(ord("F"), "DejaVuSans", 32)[None, None]
    random = torch.Generator().manual_seed(0)
    moved = _moved(x, CLEAN, torch.tensor([[0.125], [-0.0625]]), random)
    assert torch.allclose(moved[..., :-2, 4:], x[..., 2:, :-4], atol=1e-5)
    still = _moved(x, CLEAN, torch.zeros(2, 1), random)
    assert torch.allclose(still, x, atol=1e-5)


def test_blur_keeps_the_ink_and_widens_it():
    dot = torch.zeros(2, 1, 33, 33)
    dot[:, 0, 16, 16] = 1
    blurred = _blurred(dot, torch.tensor([0.6, 1.2]).view(2, 1, 1, 1))
    assert torch.allclose(blurred.sum((1, 2, 3)), torch.ones(2), atol=1e-5)
    axis = torch.arange(33.0) - 16
    spread = (blurred.sum((1, 2)) * axis**2).sum(1).sqrt()
    assert torch.allclose(spread, torch.tensor([0.6, 1.2]), rtol=0.05)


def test_three_thousand_images_of_side_32_take_less_than_a_second():
    glyphs(range(100), 1, 0)
    began = time.process_time()
    glyphs(range(100), 30, 0)
    assert time.process_time() - began < 1.0
