"""Matrix products by every route: right to float32's accuracy, whatever the layout, shape and torch's settings."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.kernels.project import blas

ONEDNN = torch.backends.mkldnn.is_available()
ROUTES = ["torch", pytest.param("onednn", marks=pytest.mark.skipif(not ONEDNN, reason="torch has no oneDNN"))]
UNIT = 2.0**-24


def draw(m, n, seed):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


def laid_out(x, layout):
    """``x`` in other memory: transposed, as a slice of rows, as a slice of columns, with steps, expanded."""
    m, n = x.shape
    if layout == "transposed":
        return x.mT.contiguous().mT
    if layout == "rows":
        return torch.cat((x, x))[:m]
    if layout == "columns":
        return torch.cat((x, x), dim=1)[:, n:]
    if layout == "steps":
        return torch.stack((x, x), dim=-1).flatten(1)[:, ::2]
    return x


def assert_float32(got, A, B):
    """The error that dot products in float32 have: far below what TF32 or bfloat16 factors would leave."""
    a, b = A.double(), B.double()
    bound = UNIT * (4 + A.shape[1] ** 0.5) * (a.abs() @ b.abs())
    assert got.dtype == torch.float32
    assert ((got.double() - a @ b).abs() <= bound).all()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("first", ["plain", "transposed", "rows", "columns", "steps"])
@pytest.mark.parametrize("second", ["plain", "transposed", "columns", "steps"])
def test_every_layout(route, first, second):
    A, B = laid_out(draw(70, 33, 1), first), laid_out(draw(33, 41, 2), second)
    found = blas.matmul(A, B, route=route)
    assert found.is_contiguous()
    assert_float32(found, A, B)
    into = torch.full((70, 50), torch.nan)[:, 3:44]
    assert blas.matmul(A, B, out=into, route=route) is into
    assert_float32(into, A, B)


@pytest.mark.parametrize("route", ROUTES)
@given(m=st.integers(0, 40), k=st.integers(0, 40), n=st.integers(0, 40), into=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_shape(route, m, k, n, into):
    A, B = draw(m, k, 1), draw(k, n, 2)
    out = torch.full((m, n), torch.nan) if into else None
    assert_float32(blas.matmul(A, B, out=out, route=route), A, B)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("into", [False, True])
def test_a_tall_view_times_a_narrow_block(route, into):
    """The case where the transposed product is taken."""
    A, B = draw(90, 70, 1).mT, draw(90, 9, 2)
    assert blas._turned(70, 90, 9)
    out = torch.full((70, 9), torch.nan) if into else None
    found = blas.matmul(A, B, out=out, route=route)
    assert found.is_contiguous()
    assert_float32(found, A, B)


@pytest.mark.parametrize("route", ROUTES)
def test_several_panels_and_threads(route, monkeypatch):
    monkeypatch.setattr(blas, "PANEL_BYTES", 2**12)
    monkeypatch.setattr(blas, "PANEL_ROWS", 64)
    A, B = draw(333, 96, 1), draw(96, 130, 2)
    assert blas.panel_rows(333, 130) == 64
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert_float32(blas.matmul(A, B, out=torch.full((333, 130), torch.nan), route=route), A, B)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_full_precision_whatever_torch_may_do(route, precision):
    A, B = draw(256, 512, 1), draw(512, 256, 2)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert_float32(blas.matmul(A, B, route=route), A, B)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_reduced_precision_is_off_while_a_product_runs(monkeypatch):
    """On processors that round factors when they may; here the setting itself is looked at."""
    seen = []
    real = torch.matmul

    def spy(*args, **kwargs):
        seen.append(torch.backends.mkldnn.matmul.fp32_precision)
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "matmul", spy)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
        blas.matmul(torch.ones(2, 2), torch.ones(2, 2))
        assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["ieee"]


@pytest.mark.parametrize("route", ROUTES)
def test_nan_and_infinity_stay_in_their_rows(route):
    A, B = draw(40, 40, 1), draw(40, 40, 2)
    A[3, 5], A[7, 0] = torch.nan, torch.inf
    found = blas.matmul(A, B, route=route)
    assert found[3].isnan().all()
    assert found[7].isinf().all()
    rest = [i for i in range(40) if i not in (3, 7)]
    assert_float32(found[rest], A[rest], B)


def test_other_types_and_gradients_go_by_torch():
    A, B = draw(300, 200, 1), draw(200, 300, 2)
    assert torch.equal(blas.matmul(A.double(), B.double()), A.double() @ B.double())
    assert blas.matmul(A.bfloat16(), B.bfloat16()).dtype == torch.bfloat16
    A.requires_grad_()
    blas.matmul(A, B).sum().backward()
    torch.testing.assert_close(A.grad, B.sum(dim=1).expand(300, 200), rtol=1e-4, atol=1e-4)


def test_the_route_is_a_rule_on_the_machine(monkeypatch):
    def route(vendor, capability="AVX512", onednn=True, mkl=True):
        monkeypatch.setattr(blas, "_vendor", lambda: vendor)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
        return blas.gemm_route.__wrapped__()

    assert route("AuthenticAMD") == "onednn"
    assert route("GenuineIntel") == "torch"
    assert route("AuthenticAMD", capability="AVX2") == "torch"
    assert route("AuthenticAMD", onednn=False) == "torch"
    assert route("AuthenticAMD", mkl=False) == "torch"
    assert route("") == "torch"
    assert kernels.gemm_route() in ("torch", "onednn")


def test_small_and_narrow_products_stay_with_torch(monkeypatch):
    monkeypatch.setattr(blas, "gemm_route", lambda: "onednn")
    cpu = torch.device("cpu")
    assert blas.route_of(128, 128, 128, torch.float32, cpu) == "onednn"
    assert blas.route_of(127, 128, 128, torch.float32, cpu) == "torch"
    assert blas.route_of(1, 4096, 4096, torch.float32, cpu) == "torch"
    assert blas.route_of(4096, 4096, 1, torch.float32, cpu) == "torch"
    assert blas.route_of(512, 512, 512, torch.float64, cpu) == "torch"
    assert blas.route_of(512, 512, 512, torch.float32, torch.device("cuda")) == "torch"


def test_what_does_not_fit_is_refused():
    A = torch.ones(3, 4)
    with pytest.raises(ValueError, match="matrices that fit"):
        blas.matmul(A, A)
    with pytest.raises(ValueError, match="agree in type"):
        blas.matmul(A, torch.ones(4, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="out must be 3 x 2"):
        blas.matmul(A, torch.ones(4, 2), out=torch.ones(2, 3))
    with pytest.raises(ValueError, match="contiguous rows"):
        blas.matmul(A, torch.ones(4, 2), out=torch.ones(2, 3).mT)


@given(m=st.integers(0, 10**5), n=st.integers(0, 10**5))
def test_panels_are_never_larger_than_the_matrix(m, n):
    rows = blas.panel_rows(m, n)
    assert 1 <= rows <= max(1, m)
    assert rows == m or rows == max(1, m) or rows % 64 == 0


def test_a_workspace_grows_and_is_used_again():
    space = kernels.Workspace()
    first = space.take("x", (4, 8), torch.float32, "cpu")
    assert space.take("x", (2, 3), torch.float32, "cpu").data_ptr() == first.data_ptr()
    assert space.take("y", (2, 3), torch.float32, "cpu").data_ptr() != first.data_ptr()
    assert space.nbytes == 4 * (32 + 6)
    assert space.take("x", (9, 9), torch.float32, "cpu").shape == (9, 9)
    assert space.nbytes == 4 * (81 + 6)
    assert np.prod(space.take("x", (0, 3), torch.float32, "cpu").shape) == 0
