import pytest
import torch
from sklearn.datasets import load_digits

from reference.testbeds.digits import digits, digits_hard

PARTS = ("train", "val", "test")


def part(split, name):
    return getattr(split, f"{name}_x"), getattr(split, f"{name}_y")


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_split_60_20_20_into_disjoint_parts(seed):
    split = digits(seed)
    assert [len(part(split, name)[1]) for name in PARTS] == [1078, 359, 360]
    assert split.train_x.shape == (1078, 1, 8, 8)
    assert split.train_x.dtype == torch.float32
    together = torch.cat([part(split, name)[0] for name in PARTS]).flatten(1)
    everything = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    assert sorted(map(tuple, together.tolist())) == sorted(map(tuple, everything.tolist()))


@pytest.mark.parametrize("make", [digits, digits_hard])
def test_classes_are_in_proportion_everywhere(make):
    split = make(0)
    for name in PARTS:
        shares = torch.bincount(part(split, name)[1], minlength=10) / len(part(split, name)[1])
        assert (shares - 0.1).abs().max() < 0.01


@pytest.mark.parametrize("make", [digits, digits_hard])
def test_the_seed_decides(make):
    first, again, other = make(0), make(0), make(1)
    assert all(torch.equal(a, b) for name in PARTS for a, b in zip(part(first, name), part(again, name), strict=True))
    assert not torch.equal(first.train_x, other.train_x)


def test_hard_digits_have_600_training_images_on_a_larger_canvas():
    split = digits_hard(0)
    assert split.train_x.shape == (600, 1, 12, 12)
    assert len(split.val_x) == 359
    assert len(split.test_x) == 360


def test_hard_digits_are_the_same_digits_shifted_and_noisy():
    clean, hard = digits(0), digits_hard(0)
    assert torch.equal(clean.test_y, hard.test_y)
    ink = clean.test_x[:, 0]
    windows = hard.test_x[:, 0].unfold(1, 8, 1).unfold(2, 8, 1)  # [n, 5, 5, 8, 8]
    inside = (windows - ink[:, None, None]).square().sum((-1, -2))
    everything = hard.test_x.square().sum((-1, -2, -3))[:, None, None]
    outside = everything - windows.square().sum((-1, -2))
    residual = (inside + outside).flatten(1) / 144
    assert residual.min(1).values.mean().sqrt().item() == pytest.approx(0.3, rel=0.03)
    assert residual.argmin(1).unique().tolist() == list(range(25))


def test_seeds_of_any_size_are_taken():
    assert torch.equal(digits(2**32 + 1).train_x, digits(1).train_x)
    assert not torch.equal(digits_hard(2**32 + 1).train_x, digits_hard(1).train_x)  # shifts and noise see all of it
