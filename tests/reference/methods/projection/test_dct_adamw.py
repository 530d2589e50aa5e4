"""DCT-AdamW and the LDAdam-style rival: selection, rotation, error feedback."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.methods.projection.buckets import ErrorBuffer
from reference.methods.projection.dct import DCTAdamW, LDAdamW, rotate_moments
from reference.methods.projection.moments import FullMoments
from reference.methods.projection.subspace import OneSided, SelectedColumns


def stream(shape, steps, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random) for _ in range(steps)]


def selected(side, columns, length=12):
    return SelectedColumns(side, torch.tensor(columns, dtype=torch.int32), kernels.dct_matrix(length))


@pytest.mark.parametrize("optimizer_class", [DCTAdamW, LDAdamW])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (9, 9)])
def test_error_feedback_loses_nothing(optimizer_class, shape):
    """What was sent through the subspaces plus what is kept equals the sum of the gradients."""
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = optimizer_class([{"params": [p], "rank": 3}], lr=0.01)
    sent = torch.zeros(shape)
    gradients = stream(shape, 15)
    for G in gradients:
        before = optimizer.state[p]["error"].load().clone() if optimizer.state[p] else torch.zeros(shape)
        p.grad = G.clone()
        optimizer.step()
        subspace = optimizer.state[p]["subspace"]
        sent += subspace.back(subspace.project(G + before))
    kept = optimizer.state[p]["error"].load()
    torch.testing.assert_close(sent + kept, sum(gradients), atol=1e-4, rtol=1e-4)
    assert kept.norm() > 0.1


@pytest.mark.parametrize("by", ["matmul", "fft"])
@pytest.mark.parametrize("shape", [(12, 30), (30, 12)])
def test_full_rank_dct_is_adamw_of_the_transformed_gradient(by, shape):
    gradients = stream(shape, 10)
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = DCTAdamW([{"params": [p], "rank": 12, "by": by}], lr=0.01)
    B = kernels.dct_basis(12, by)
    left = shape[0] < shape[1]
    q = torch.nn.Parameter(torch.zeros(shape))
    adam = torch.optim.AdamW([q], lr=0.01, eps=1e-8, weight_decay=0.0)
    for G in gradients:
        p.grad = G.clone()
        optimizer.step()
        q.grad = B.mT @ G if left else G @ B
        adam.step()
    back = B @ q.detach() if left else q.detach() @ B.mT
    torch.testing.assert_close(p.detach(), back, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_permutation_rotation_equals_the_matrix_rotation(side):
    shape = (4, 7) if side == "left" else (7, 4)
    old, new = selected(side, [8, 3, 1, 5]), selected(side, [5, 2, 3, 11])
    M, V = torch.randn(shape), torch.rand(shape)
    fast = FullMoments(M.clone(), V.clone())
    rotate_moments(fast, old, new, "abs", (0.9, 0.999), 3)
    slow = FullMoments(M.clone(), V.clone())
    rotate_moments(slow, OneSided(side, old.basis()), OneSided(side, new.basis()), "abs", (0.9, 0.999), 3)
    torch.testing.assert_close(fast.M, slow.M, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(fast.V, slow.V, atol=1e-5, rtol=1e-5)
    kept = fast.M.norm(dim=1 if side == "left" else 0) > 0
    assert kept.tolist() == [True, False, True, False]


@pytest.mark.parametrize("side", ["left", "right"])
def test_rotating_into_the_same_subspace_changes_nothing(side):
    shape = (3, 7) if side == "left" else (7, 3)
    P = kernels.random_basis(torch.zeros(9, 9), 3, side, torch.Generator().manual_seed(0))
    M, V = torch.randn(shape), torch.rand(shape) + 1.0
    for rotation in ("abs", "ldadam"):
        moments = FullMoments(M.clone(), V.clone())
        rotate_moments(moments, OneSided(side, P), OneSided(side, P), rotation, (0.9, 0.999), 40)
        torch.testing.assert_close(moments.M, M, atol=1e-5, rtol=1e-5)
        if rotation == "abs":
            torch.testing.assert_close(moments.V, V, atol=1e-5, rtol=1e-5)
        assert (moments.V >= 0).all()


def test_second_moments_stay_non_negative_and_finite_under_rotation():
    for optimizer_class in (DCTAdamW, LDAdamW):
        p = torch.nn.Parameter(torch.zeros(10, 20))
        optimizer = optimizer_class([{"params": [p], "rank": 4}], lr=0.01)
        for G in stream((10, 20), 30):
            p.grad = G
            optimizer.step()
            assert (optimizer.state[p]["moments"].V >= 0).all()
        assert torch.isfinite(p).all()


def test_both_reach_the_minimum_of_a_quadratic():
    target = stream((10, 24), 1, seed=4)[0]
    for optimizer_class in (DCTAdamW, LDAdamW):
        p = torch.nn.Parameter(torch.zeros(10, 24))
        optimizer = optimizer_class([{"params": [p], "rank": 4}], lr=0.02)
        for _ in range(500):
            p.grad = p.detach() - target
            optimizer.step()
        assert (p.detach() - target).square().mean() < 0.02 * target.square().mean(), optimizer_class.__name__


def test_only_indices_belong_to_a_parameter_and_the_basis_is_shared():
    p, q = torch.nn.Parameter(torch.zeros(12, 30)), torch.nn.Parameter(torch.zeros(12, 20))
    optimizer = DCTAdamW([{"params": [p, q], "rank": 5}], error_feedback=None)
    for parameter in (p, q):
        parameter.grad = stream(parameter.shape, 1)[0]
    optimizer.step()
    first, second = (optimizer.state[parameter]["subspace"] for parameter in (p, q))
    assert first.table is second.table
    assert len(optimizer.shared) == 1
    assert first.columns.dtype == torch.int32
    assert "error" not in optimizer.state[p]


@pytest.mark.parametrize("bits", [8, 4])
@given(rows=st.integers(1, 6), columns=st.integers(1, 9), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_bucketed_error_is_within_half_a_level(bits, rows, columns, seed):
    E = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    buffer = ErrorBuffer.zeros(E, bits)
    assert torch.equal(buffer.load(), torch.zeros_like(E))
    buffer.store(E)
    low, high = E.aminmax(dim=1, keepdim=True)
    assert ((buffer.load() - E).abs() <= (high - low) / (2 * (2**bits - 1)) + 1e-6).all()


def test_settings_without_a_meaning_are_refused():
    p = torch.nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(ValueError, match="rotation"):
        DCTAdamW([{"params": [p], "rank": 2}], rotation="sideways")
    with pytest.raises(ValueError, match="bits"):
        optimizer = DCTAdamW([{"params": [p], "rank": 2}], error_feedback=3)
        p.grad = torch.ones(4, 4)
        optimizer.step()
    with pytest.raises(ValueError, match="full"):
        LDAdamW([{"params": [p], "rank": 2, "proj_type": "full"}])
