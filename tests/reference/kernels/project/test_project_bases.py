"""Orthonormal columns from every way of choosing them, and how much of the gradient they catch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.kernels.project import truth

BASES = {
    "svd": kernels.svd_basis,
    "gram": kernels.gram_basis,
    "range_finder": lambda G, r, side: kernels.range_finder(G, r, side, generator=torch.Generator().manual_seed(1)),
    "power": lambda G, r, side: kernels.power_basis(G, r, side, generator=torch.Generator().manual_seed(1)),
    "random": lambda G, r, side: kernels.random_basis(G, r, side, torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("side", ["left", "right"])
@given(m=st.integers(2, 20), n=st.integers(2, 20), data=st.data())
@settings(max_examples=15, deadline=None)
def test_columns_are_orthonormal_and_never_beat_the_svd(name, side, m, n, data):
    rank = data.draw(st.integers(1, min(m, n)))
    G = torch.randn(m, n, generator=torch.Generator().manual_seed(m * 100 + n))
    P = BASES[name](G, rank, side)
    assert P.shape == (m if side == "left" else n, rank)
    assert (P.mT @ P - torch.eye(rank)).abs().max() < 2e-5
    assert truth.captured_energy(G, P, side) <= truth.best_energy(G, rank) + 1e-5


@pytest.mark.parametrize("name", ["svd", "gram", "range_finder"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_low_rank_gradient_is_caught_whole(name, side):
    random = torch.Generator().manual_seed(3)
    G = torch.randn(30, 4, generator=random) @ torch.randn(4, 50, generator=random)
    assert truth.captured_energy(G, BASES[name](G, 4, side), side) > 1 - 1e-5


@pytest.mark.parametrize("name", ["svd", "gram", "range_finder"])
def test_bfloat16_gradients_are_decomposed_in_float32(name):
    random = torch.Generator().manual_seed(3)
    G = torch.randn(24, 40, generator=random).bfloat16()
    P = BASES[name](G, 6, "left")
    assert P.dtype == torch.bfloat16
    exact = kernels.svd_basis(G.float(), 6, "left")
    assert truth.captured_energy(G.float(), P.float(), "left") > 0.85 * truth.captured_energy(G.float(), exact, "left")


def test_power_iteration_from_the_answer_stays_there():
    G = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    best = kernels.svd_basis(G, 5, "left")
    again = kernels.power_basis(G, 5, "left", start=best)
    assert torch.linalg.matrix_norm(best.mT @ again).item() ** 2 == pytest.approx(5, rel=1e-4)


@pytest.mark.parametrize("name", ["range_finder", "power", "random"])
def test_equal_generators_give_equal_bases(name):
    G = torch.randn(150, 140, generator=torch.Generator().manual_seed(0))
    first, second = (BASES[name](G, 20, "right") for _ in range(2))
    assert torch.equal(first, second)


def test_power_iterations_bring_the_range_finder_to_the_svd():
    G = torch.randn(200, 180, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.logspace(0, -2, 180))
    best = truth.best_energy(G, 20)
    found = [truth.captured_energy(G, kernels.range_finder(
        G, 20, "right", power_iterations=power, generator=torch.Generator().manual_seed(1)), "right")
        for power in (0, 1, 3)]
    assert found[0] > 0.75 * best
    assert found == sorted(found)
    assert found[-1] > 0.999 * best
