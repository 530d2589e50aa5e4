"""The DCT basis against SciPy, Makhoul's FFT path, and the choice of columns."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft

from reference.kernels import project as kernels
from reference.kernels.project import truth

matrices = st.tuples(st.integers(1, 12), st.integers(1, 40), st.integers(0, 10_000))


def draw(shape):
    m, n, seed = shape
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64, 255, 1024])
def test_matrix_is_orthonormal_and_scipys_dct_ii(n):
    Q = kernels.dct_matrix(n)
    assert (Q @ Q.mT - torch.eye(n)).abs().max() < 2e-6
    np.testing.assert_allclose(Q.numpy(), fft.dct(np.eye(n), type=2, norm="ortho", axis=0), atol=1e-6)
    exact = kernels.dct_matrix(n, torch.float64)
    assert (exact @ exact.mT - torch.eye(n, dtype=torch.float64)).abs().max() < 1e-12


@pytest.mark.parametrize("by", ["matmul", "fft"])
@given(shape=matrices)
@settings(max_examples=40, deadline=None)
def test_both_paths_equal_scipy_and_their_own_basis(by, shape):
    A = draw(shape)
    S = kernels.dct_project(A, by)
    np.testing.assert_allclose(S.numpy(), truth.dct_rows(A.numpy(), by), atol=2e-5)
    torch.testing.assert_close(S, A @ kernels.dct_basis(A.shape[1], by), atol=2e-5, rtol=1e-5)


@given(shape=matrices, by=st.sampled_from(["matmul", "fft"]), side=st.sampled_from(["left", "right"]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_l2_selection_contracts_the_residual(shape, by, side, data):
    A = draw(shape)
    length = A.shape[0] if side == "left" else A.shape[1]
    rank = data.draw(st.integers(1, length))
    a, columns = kernels.dct_select(A, rank, side, "l2", by)
    assert columns.dtype == torch.int32
    assert len(set(columns.tolist())) == rank
    P = kernels.dct_basis(length, by)[:, columns.long()]
    torch.testing.assert_close(a, kernels.project(A, P, side), atol=1e-4, rtol=1e-4)
    residual = (A - kernels.back_project(a, P, side)).square().sum()
    assert residual <= (1 - rank / length) * A.square().sum() + 1e-3


def test_l1_selection_carries_no_such_bound():
    # one spike against many small entries: l1 prefers the column that holds less energy
    S = torch.zeros(100, 2)
    S[0, 0] = 5.0
    S[:, 1] = 0.2
    assert kernels.select_top(S, 1, "l1").tolist() == [1]
    assert kernels.select_top(S, 1, "l2").tolist() == [0]
    kept = S[:, 1].square().sum()
    assert kept < 0.5 * S.square().sum()


@given(shape=matrices, norm=st.sampled_from(["l1", "l2"]))
@settings(max_examples=30, deadline=None)
def test_selected_columns_have_the_largest_norms(shape, norm):
    S = draw(shape)
    rank = max(1, S.shape[1] // 2)
    chosen = kernels.select_top(S, rank, norm).long()
    norms = torch.linalg.vector_norm(S, ord=1 if norm == "l1" else 2, dim=0)
    rest = torch.tensor([j for j in range(S.shape[1]) if j not in set(chosen.tolist())], dtype=torch.long)
    if len(rest):
        assert norms[chosen].min() >= norms[rest].max() * (1 - 1e-5)


@pytest.mark.parametrize("by", ["matmul", "fft"])
def test_the_transposed_basis_is_caught(by):
    """The planted fault: indices of one path with the columns of the other lose the reconstruction silently."""
    A = draw((40, 32, 5))
    a, columns = kernels.dct_select(A, 16, "right", "l2", by)
    right = kernels.dct_basis(32, by)[:, columns.long()]
    wrong = kernels.dct_basis(32, "fft" if by == "matmul" else "matmul")[:, columns.long()]
    residual = [(A - kernels.back_project(a, P, "right")).square().sum() / A.square().sum() for P in (right, wrong)]
    assert residual[0] <= 1 - 16 / 32
    assert residual[1] > 1 - 16 / 32
    assert (kernels.project(A, wrong, "right") - a).abs().max() > 0.5


def test_meta_device_gives_a_shape_without_memory():
    assert kernels.dct_matrix(4096, torch.bfloat16, "meta").shape == (4096, 4096)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 5), (40, 129), (129, 40), (70, 2100), (33, 256)])
def test_the_spectrum_alone_gives_norms_and_columns(norm, side, shape):
    """The fused path never forms S; every bin, mirror and odd size must come out as SciPy's DCT has it."""
    A = draw((*shape, 3))
    exact = truth.dct_rows(A.numpy() if side == "right" else A.numpy().T, "fft")
    length = exact.shape[1]
    for rank in {1, (length + 1) // 2, length}:
        a, columns = kernels.dct_select(A, rank, side, norm, "fft", backend="numba")
        kept = columns.long().tolist()
        assert kept == sorted(set(kept))
        assert len(kept) == rank
        np.testing.assert_allclose((a if side == "right" else a.mT).numpy(), exact[:, kept], atol=2e-5)
        sizes = truth.column_norms(exact, norm)
        rest = np.delete(sizes, kept)
        assert rest.size == 0 or sizes[kept].min() >= rest.max() * (1 - 1e-5)


@pytest.mark.parametrize("by", ["matmul", "fft"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_workspace_changes_no_result(by, side):
    A, space = draw((50, 64, 1)), kernels.Workspace()
    plain = kernels.dct_select(A, 9, side, "l2", by)
    for _ in range(2):
        again = kernels.dct_select(A, 9, side, "l2", by, workspace=space)
        assert torch.equal(again[0], plain[0])
        assert torch.equal(again[1], plain[1])


def test_ties_go_to_the_first_column_and_nan_counts_as_largest():
    S = torch.ones(4, 6)
    assert kernels.select_top(S, 3).tolist() == [0, 1, 2]
    S[0, 4] = torch.nan
    S[0, 2] = 5.0
    assert kernels.select_top(S, 3).tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match="at most the 6 columns"):
        kernels.select_top(S, 7)
    with pytest.raises(ValueError, match="norm must be"):
        kernels.column_norms(S, "linf")
