"""Random projection that stores no matrix: the generator's published words, the moments, the products."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.kernels.project import blas, sketch, truth

KINDS = ("gaussian", "rademacher", "sparse")
SIDES = ("left", "right")
FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def draw(m, n, seed=0, dtype=torch.float32):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize(("counter", "seed", "words"), [
    ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, 2**64 - 1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, "d16cfe09 94fdcceb 5001e420 24126ea1"),
])
def test_the_generators_published_answers(counter, seed, words):
    found = truth.philox(np.array(counter), seed)
    assert [f"{int(word):08x}" for word in found] == words.split()


def test_signs_of_the_published_words(backend):
    """Words 6627e8d5 e169c58d bc57ac4c 9b00dbd8: one below 2^31 and three above."""
    found = kernels.random_matrix(1, 4, kernels.Sketch(0, 0, "rademacher"), device=backend.device, backend=backend.name)
    assert found.cpu().tolist() == [[0.5, -0.5, -0.5, -0.5]]


@pytest.mark.parametrize("kind", KINDS)
def test_entries_have_the_moments_of_their_distribution(kind):
    entries = kernels.random_matrix(1000, 400, kernels.Sketch(5, 1, kind)).double() * 20.0
    n = entries.numel()
    assert abs(entries.mean()) < 5 / n**0.5
    assert abs(entries.square().mean() - 1) < 0.01
    fourth = {"gaussian": 3.0, "rademacher": 1.0, "sparse": 3.0}[kind]
    assert abs(entries.pow(4).mean() - fourth) < 0.06
    assert abs(entries.pow(3).mean()) < 0.03
    assert entries.abs().max() < 5.78
    # neighbours, and rows of other steps and seeds, know nothing of each other
    for other in (entries.roll(1, 0), entries.roll(1, 1), entries.roll(2, 1), entries.roll(4, 1),
                  kernels.random_matrix(1000, 400, kernels.Sketch(5, 2, kind)).double() * 20.0,
                  kernels.random_matrix(1000, 400, kernels.Sketch(6, 1, kind)).double() * 20.0):
        assert abs((entries * other).mean()) < 5 / n**0.5


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_kept_on_average(kind):
    """E[Omega Omega^T] = I, so |Omega^T x|^2 has mean |x|^2; 2000 steps of one seed."""
    x = draw(12, 1)
    shares = [kernels.random_project(x, 3, "left", kernels.Sketch(9, step, kind)).square().sum() / x.square().sum()
              for step in range(2000)]
    assert abs(float(np.mean(shares)) - 1) < 5 * float(np.std(shares)) / 2000**0.5


def test_gaussian_entries_are_gaussian():
    from scipy import stats

    entries = kernels.random_matrix(400, 100, kernels.Sketch(11)).numpy().ravel() * 10.0
    assert stats.kstest(entries, "norm").pvalue > 1e-3


@given(length=st.integers(1, 40), rank=st.integers(1, 40), kind=st.sampled_from(KINDS))
@settings(max_examples=20, deadline=None)
def test_longer_and_wider_matrices_begin_with_the_smaller(length, rank, kind):
    chosen = kernels.Sketch(3, 4, kind)
    large = kernels.random_matrix(length + 7, rank + 5, chosen)[:length, :rank] * ((rank + 5) / rank) ** 0.5
    torch.testing.assert_close(kernels.random_matrix(length, rank, chosen), large, rtol=1e-6, atol=0)


@pytest.mark.parametrize("side", SIDES)
@given(m=st.integers(1, 20), n=st.integers(1, 20), rank=st.integers(1, 30), kind=st.sampled_from(KINDS))
@settings(max_examples=5, **FEW)
def test_projections_are_products_with_the_matrix(backend, side, m, n, rank, kind):
    G, chosen = draw(m, n), kernels.Sketch(77, 3, kind)
    omega = truth.random_matrix(m if side == "left" else n, rank, 77, 3, kind)
    g = G.double().numpy()
    R = kernels.random_project(G.to(backend.device), rank, side, chosen, backend=backend.name)
    np.testing.assert_allclose(R.cpu().numpy(), omega.T @ g if side == "left" else g @ omega, rtol=1e-5, atol=1e-5)
    back = kernels.random_back_project(R, m if side == "left" else n, side, chosen, backend=backend.name)
    r = R.double().cpu().numpy()
    np.testing.assert_allclose(back.cpu().numpy(), omega @ r if side == "left" else r @ omega.T, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("side", SIDES)
def test_panels_give_what_the_whole_matrix_gives(side, monkeypatch):
    G, chosen = draw(300, 260), kernels.Sketch(1, 2)
    whole = kernels.random_project(G, 200, side, chosen)
    full = kernels.random_back_project(whole, 300 if side == "left" else 260, side, chosen)
    monkeypatch.setattr(blas, "PANEL_BYTES", 1)
    assert sketch.panel(300, 200, torch.device("cpu")) == 64
    space = kernels.Workspace()
    parts = kernels.random_project(G, 200, side, chosen, workspace=space)
    assert space.nbytes == 4 * 64 * (300 if side == "left" else 260)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    again = kernels.random_back_project(whole, 300 if side == "left" else 260, side, chosen)
    torch.testing.assert_close(again, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_projected_wide_and_rounded_once(dtype):
    G, chosen = draw(20, 30, dtype=torch.float64).to(dtype), kernels.Sketch(4)
    omega = kernels.random_matrix(30, 8, chosen).double()
    found = kernels.random_project(G, 8, "right", chosen)
    assert found.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), G.double() @ omega, rtol=tolerance, atol=tolerance)
    into = torch.empty(20, 8, dtype=dtype)
    assert kernels.random_project(G, 8, "right", chosen, out=into) is into
    assert torch.equal(into, found)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="seed must be"):
        kernels.Sketch(-1)
    with pytest.raises(ValueError, match="kind must be"):
        kernels.Sketch(0, 0, "uniform")
    with pytest.raises(ValueError, match="multiple of 4"):
        kernels.random_matrix(4, 8, kernels.Sketch(0), columns=slice(2, 8))
    with pytest.raises(ValueError, match="out must be"):
        kernels.random_matrix(4, 8, kernels.Sketch(0), out=torch.empty(8, 4))
