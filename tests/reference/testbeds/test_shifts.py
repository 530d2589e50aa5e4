import itertools

import pytest
import torch
from torch.nn.functional import interpolate

from reference.testbeds import shifts

_CELLS = torch.rand(40, 1, 6, 6, generator=torch.Generator().manual_seed(0))
IMAGES = interpolate(_CELLS, size=(32, 32), mode="bilinear")
LABELS = torch.arange(12).repeat_interleave(80)


@pytest.mark.parametrize("kind", shifts.KINDS)
@pytest.mark.parametrize("side", [8, 12, 32])
def test_shape_and_type_stay_and_the_input_is_left_alone(kind, side):
    x = IMAGES[..., :side, :side].clone()
    y = shifts.corrupt(x, kind, 3, seed=0)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.isfinite(y).all()
    assert torch.equal(x, IMAGES[..., :side, :side])
    assert torch.equal(y, x) == (kind == "clean")


@pytest.mark.parametrize("kind", [kind for kind in shifts.KINDS if kind != "clean"])
def test_a_higher_severity_is_farther_from_the_original(kind):
    distances = [(shifts.corrupt(IMAGES, kind, level, seed=0) - IMAGES).square().mean() for level in shifts.SEVERITIES]
    assert all(low < high for low, high in itertools.pairwise(distances))


@pytest.mark.parametrize("kind", ["noise", "impulse", "fog", "occlusion"])
def test_the_seed_decides_what_is_random(kind):
    first, again, other = (shifts.corrupt(IMAGES, kind, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_strengths_mean_what_they_say():
    grey = torch.full((200, 1, 32, 32), 0.4)
    assert (shifts.corrupt(grey, "noise", 3, 0) - grey).std().item() == pytest.approx(0.3, rel=0.02)
    assert (shifts.corrupt(grey, "impulse", 5, 0) != grey).float().mean().item() == pytest.approx(0.3, rel=0.02)
    assert (shifts.corrupt(grey, "occlusion", 5, 0) != grey).float().mean().item() == pytest.approx(0.3, rel=0.1)
    assert torch.allclose(shifts.corrupt(grey, "blur", 5, 0), grey)
    assert torch.allclose(shifts.corrupt(grey, "contrast", 5, 0), grey)
    half = shifts.corrupt(IMAGES, "contrast", 3, 0)
    assert torch.allclose(half.std((-1, -2)), 0.3 * IMAGES.std((-1, -2)), rtol=1e-4)
    assert torch.allclose(half.mean((-1, -2)), IMAGES.mean((-1, -2)), atol=1e-6)


def test_blur_is_a_gaussian_of_that_width():
    point = torch.zeros(1, 1, 65, 65)
    point[0, 0, 32, 32] = 1.0
    spread = shifts.corrupt(point, "blur", 2, 0)[0, 0]
    places = torch.arange(65) - 32.0
    assert spread.sum().item() == pytest.approx(1.0, abs=1e-5)
    for axis in (0, 1):
        assert (spread.sum(axis) * places.square()).sum().item() == pytest.approx((65 / 32) ** 2, rel=0.03)


def test_unknown_words_are_refused():
    with pytest.raises(KeyError, match="there are clean, noise"):
        shifts.corrupt(IMAGES, "snow", 1, 0)
    with pytest.raises(ValueError, match="severity"):
        shifts.corrupt(IMAGES, "noise", 0, 0)
    with pytest.raises(ValueError, match="prior"):
        shifts.class_counts(5, 10, "uniform", 0)
    with pytest.raises(ValueError, match="order"):
        shifts.arrange(LABELS, "sorted", 0)
    with pytest.raises(ValueError, match=r"lacks \d+ images of class"):
        shifts.stream(LABELS, 900, "iid", "zipf", 0)


@pytest.mark.parametrize("count", [240, 250])
def test_class_counts_sum_up_and_follow_the_prior(count):
    balanced = shifts.class_counts(12, count, "balanced", 3)
    zipf = shifts.class_counts(12, count, "zipf", 3)
    assert balanced.sum() == zipf.sum() == count
    assert balanced.max() - balanced.min() <= 1
    falling = zipf.sort(descending=True).values
    harmonic = (1.0 / torch.arange(1, 13)).sum()
    assert torch.allclose(falling.double(), count / harmonic.double() / torch.arange(1, 13), atol=1.01)
    assert not torch.equal(zipf, shifts.class_counts(12, count, "zipf", 4))


@pytest.mark.parametrize("order", ["iid", "bursts"])
@pytest.mark.parametrize("prior", ["balanced", "zipf"])
def test_a_stream_takes_each_row_at_most_once_in_the_right_shares(order, prior):
    rows = shifts.stream(LABELS, 240, order, prior, seed=5)
    assert rows.shape == (240,)
    assert len(rows.unique()) == 240
    assert torch.equal(LABELS[rows].bincount(minlength=12), shifts.class_counts(12, 240, prior, 5))
    assert torch.equal(rows, shifts.stream(LABELS, 240, order, prior, seed=5))


def test_bursts_are_of_one_class_and_no_longer_than_asked():
    labels = LABELS[shifts.arrange(LABELS, "bursts", 0, burst=16)]
    assert (labels.view(-1, 16) == labels.view(-1, 16)[:, :1]).all()
    repeats = (labels[1:] == labels[:-1]).float().mean()
    mixed = LABELS[shifts.arrange(LABELS, "iid", 0)]
    assert repeats > 0.9
    assert (mixed[1:] == mixed[:-1]).float().mean() < 0.15
