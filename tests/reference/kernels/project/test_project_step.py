"""The low-rank Adam step: backends against float64 truth, sides, and the costs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.kernels.project import blas, cost, truth

SIDES = ("left", "right")
sizes = st.integers(1, 24)


def problem(m, n, rank, side, seed, dtype=torch.float32):
    random = torch.Generator().manual_seed(seed)
    G = torch.randn(m, n, generator=random, dtype=dtype)
    W = torch.randn(m, n, generator=random, dtype=dtype)
    P = kernels.random_basis(G, rank, side, random)
    R = kernels.project(G, P, side)
    M = torch.randn(R.shape, generator=random, dtype=dtype)
    V = torch.rand(R.shape, generator=random, dtype=dtype)
    return W, G, P, M, V


@pytest.mark.parametrize("backend", ["eager", "numba"])
@pytest.mark.parametrize("side", SIDES)
@given(m=sizes, n=sizes, seed=st.integers(0, 1000), step=st.integers(1, 300), data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_backend_takes_the_step_of_the_float64_truth(backend, side, m, n, seed, step, data):
    rank = data.draw(st.integers(1, m if side == "left" else n))
    W, G, P, M, V = problem(m, n, rank, side, seed)
    hyper = {"side": side, "step": step, "lr": 0.01, "alpha": 0.25, "betas": (0.9, 0.999), "eps": 1e-6,
             "weight_decay": 0.1}
    want = truth.lowrank_adam_step(*(item.numpy() for item in (W, G, P, M, V)), **hyper)
    before = G.clone(), P.clone()
    kernels.lowrank_adam_step(W, G, P, M, V, **hyper, backend=backend)
    for got, expected in zip((W, M, V), want, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-5)
    assert torch.equal(G, before[0])
    assert torch.equal(P, before[1])


def test_one_minus_beta_is_not_rounded_before_the_subtraction():
    R = torch.full((4, 4), 3.0)
    M, V = torch.zeros(4, 4), torch.zeros(4, 4)
    kernels.adam_direction(R, M, V, (0.9, 0.999), 1e-6, backend="numba")
    assert V[0, 0].item() == pytest.approx(0.009, rel=1e-6)


@pytest.mark.slow
def test_the_compiled_backend_agrees_with_eager():
    pytest.importorskip("torch._inductor")
    R = torch.randn(16, 8)
    eager = [R, torch.rand(16, 8), torch.rand(16, 8)]
    compiled = [item.clone() for item in eager]
    want = kernels.adam_direction(*eager, (0.9, 0.999), 1e-6)
    got = kernels.adam_direction(*compiled, (0.9, 0.999), 1e-6, backend="compile")
    for a, b in zip([want, *eager], [got, *compiled], strict=True):
        torch.testing.assert_close(a, b)


def test_numba_refuses_what_it_cannot_update_in_place():
    R = torch.zeros(4, 4)
    with pytest.raises(ValueError, match="float32"):
        kernels.adam_direction(R.double(), R.double(), R.double(), (0.9, 0.999), 1e-6, backend="numba")
    with pytest.raises(ValueError, match="contiguous"):
        kernels.adam_direction(R, torch.zeros(4, 8)[:, ::2], R.clone(), (0.9, 0.999), 1e-6, backend="numba")


@given(m=sizes, n=sizes)
def test_std_projects_the_smaller_side(m, n):
    side = kernels.small_side(m, n)
    assert side == ("right" if m >= n else "left")
    G = torch.randn(m, n)
    rank = min(m, n)
    R = kernels.project(G, kernels.random_basis(G, rank, side), side)
    assert max(R.shape) == max(m, n)


@pytest.mark.parametrize("side", SIDES)
def test_back_projection_is_the_transpose_of_projection(side):
    _, G, P, M, _ = problem(7, 11, 3, side, 0, torch.float64)
    left = (kernels.project(G, P, side) * M).sum()
    right = (G * kernels.back_project(M, P, side)).sum()
    assert left.item() == pytest.approx(right.item())


def test_costs_are_the_papers_counts():
    m, n, r = 512, 2048, 128
    assert cost.lowrank_adam_bytes(m, n, r) == 12 * m * n + 16 * n * r
    assert cost.lowrank_adam_flops(m, n, r) == 4 * m * n * r
    assert cost.dct_fft_flops(n, n) < cost.dct_matmul_flops(n, n) < cost.svd_flops(n, n)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(130, 200, 140), (320, 130, 129)])
def test_panels_of_a_large_weight(side, shape, monkeypatch):
    """Where products go to oneDNN the weight is updated panel by panel."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch has no oneDNN")
    monkeypatch.setattr(blas, "gemm_route", lambda: "onednn")
    monkeypatch.setattr(blas, "PANEL_BYTES", 1)
    monkeypatch.setattr(blas, "PANEL_ROWS", 64)
    m, n, rank = shape
    rank = min(rank, m if side == "left" else n)
    assert blas.route_of(m, rank, n, torch.float32, torch.device("cpu")) == "onednn"
    W, G, P, M, V = problem(m, n, rank, side, 0)
    hyper = {"side": side, "step": 5, "lr": 0.1, "alpha": 0.25, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.3}
    want = truth.lowrank_adam_step(*(item.numpy() for item in (W, G, P, M, V)), **hyper)
    workspace = kernels.Workspace()
    kernels.lowrank_adam_step(W, G, P, M, V, **hyper, backend="numba", workspace=workspace)
    for got, expected in zip((W, M, V), want, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=2e-5, atol=2e-5)
    assert workspace.nbytes == (4 * rank * n if side == "left" else 0)


def test_a_weight_with_other_strides_is_updated_too():
    W, G, P, _, _ = problem(12, 9, 4, "right", 1)
    turned, plain = W.mT.contiguous().mT, W.clone()
    N = kernels.project(G, P, "right")
    kernels.update_weight(turned, N, P, "right", 0.5, 0.9, backend="numba")
    kernels.update_weight(plain, N, P.mT.contiguous().mT, "right", 0.5, 0.9, backend="numba")
    torch.testing.assert_close(turned, plain)
    torch.testing.assert_close(plain, 0.9 * (W - 0.5 * kernels.back_project(N, P, "right")))


@pytest.mark.parametrize("side", SIDES)
def test_float64_stays_float64(side):
    W, G, P, M, V = problem(140, 150, 130, side, 2, torch.float64)
    hyper = {"side": side, "step": 5, "lr": 0.1, "alpha": 0.25, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.3}
    want = truth.lowrank_adam_step(*(item.numpy() for item in (W, G, P, M, V)), **hyper)
    kernels.lowrank_adam_step(W, G, P, M, V, **hyper)
    for got, expected in zip((W, M, V), want, strict=True):
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12, atol=1e-12)
