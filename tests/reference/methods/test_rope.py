import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.methods.rope import rotate, rotation


@given(seed=st.integers(0, 2**32), first=st.integers(0, 5000), distance=st.integers(0, 300), half=st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_products_depend_on_the_distance_alone(seed, first, distance, half):
    random = torch.Generator().manual_seed(seed)
    q, k = (torch.randn(1, 2 * half, generator=random, dtype=torch.float64) for _ in range(2))
    there = rotate(q, first=first + distance) @ rotate(k, first=first).mT
    here = rotate(q, first=distance) @ k.mT
    assert torch.allclose(there, here, atol=1e-4 * (1 + float(q.norm() * k.norm())))
    assert torch.allclose(rotate(q, first=first).norm(), q.norm(), rtol=1e-6)


def test_pairs_turn_by_their_frequencies():
    x = torch.zeros(3, 4)
    x[:, 0] = x[:, 1] = 1.0
    turned = rotate(x, theta=100.0)
    for position in range(3):
        for pair, frequency in enumerate((1.0, 0.1)):
            angle = position * frequency
            assert turned[position, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert turned[position, pair + 2].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_position_zero_stays_and_leading_axes_do_not_matter():
    x = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rotate(x)[..., 0, :], x[..., 0, :])
    assert torch.equal(rotate(x)[1, 2], rotate(x[1, 2]))
    assert rotate(x).dtype == torch.float32
    assert rotate(x.double()).dtype == torch.float64


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="odd width 5"):
        rotation(3, 5)
