"""Every backend through one table, on random shapes, and what each of them refuses."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.kernels.project import dispatch, truth

UNIT = 2.0**-24
SMALLEST = 2.0**-126
FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
# NaN and infinities are among the inputs
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def assert_near(got, want, size, units):
    got = got.double().cpu().numpy()
    assert got.shape == want.shape
    finite = np.isfinite(want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    np.testing.assert_array_equal(got[np.isinf(want)], want[np.isinf(want)])
    bound = units * UNIT * np.abs(size[finite]) + (SMALLEST if units else 0.0)
    assert (np.abs(got[finite] - want[finite]) <= bound).all()


def test_the_table(backend, case):
    for got, (want, size) in zip(case.run(backend), case.truth(), strict=True):
        assert_near(got, want, size, case.units)


@given(m=st.integers(0, 40), n=st.integers(0, 40), seed=st.integers(0, 2**32), in_place=st.booleans())
@settings(max_examples=8, **FEW)
def test_moments_of_any_shape(backend, m, n, seed, in_place):
    random = torch.Generator().manual_seed(seed)
    R, M, V = (torch.randn(m, n, generator=random) for _ in range(3))
    V = V.square()
    want = truth.adam_moments(R.numpy(), M.numpy(), V.numpy(), (0.9, 0.99), 1e-6)
    size = 0.9 * M.double().abs().numpy() + 0.1 * R.double().abs().numpy()
    r, m_, v = (x.clone().to(backend.device) for x in (R, M, V))
    N = kernels.adam_direction(r, m_, v, (0.9, 0.99), 1e-6, backend.name, out=r if in_place else None)
    for got, expected, of in zip((m_, v, N), want, (size, want[1], size / (np.sqrt(want[1]) + 1e-6)), strict=True):
        assert_near(got, expected, of, 6)


@given(m=st.integers(0, 90), n=st.integers(0, 150), norm=st.sampled_from(["l1", "l2"]), seed=st.integers(0, 2**32))
@settings(max_examples=8, **FEW)
def test_norms_of_any_shape(backend, m, n, norm, seed):
    S = torch.randn(m, n, generator=torch.Generator().manual_seed(seed))
    want = truth.column_norms(S.numpy(), norm)
    assert_near(kernels.column_norms(S.to(backend.device), norm, backend=backend.name), want, want, 1.01)


@given(
    length=st.integers(1, 30), rank=st.integers(1, 40), seed=st.integers(0, 2**64 - 1), step=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["gaussian", "rademacher", "sparse"]), data=st.data(),
)
@settings(max_examples=8, **FEW)
def test_random_blocks_of_any_place(backend, length, rank, seed, step, kind, data):
    top = data.draw(st.integers(0, length))
    left = 4 * data.draw(st.integers(0, rank // 4))
    want = truth.random_matrix(length, rank, seed, step, kind)[top:, left:]
    got = kernels.random_matrix(length, rank, kernels.Sketch(seed, step, kind), rows=slice(top, None),
                                columns=slice(left, None), device=backend.device, backend=backend.name)
    assert_near(got, want, want, 8)


@pytest.mark.parametrize("side", ["left", "right"])
@given(m=st.integers(1, 24), n=st.integers(1, 24), seed=st.integers(0, 1000), data=st.data())
@settings(max_examples=6, **FEW)
def test_whole_steps(backend, side, m, n, seed, data):
    rank = data.draw(st.integers(1, m if side == "left" else n))
    random = torch.Generator().manual_seed(seed)
    W, G = (torch.randn(m, n, generator=random) for _ in range(2))
    P = kernels.random_basis(G, rank, side, random)
    M, V = (torch.zeros_like(kernels.project(G, P, side)) for _ in range(2))
    hyper = {"side": side, "step": 3, "lr": 0.1, "alpha": 0.5, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.1}
    want = truth.lowrank_adam_step(*(x.numpy() for x in (W, G, P, M, V)), **hyper)
    W, G, P, M, V = (x.clone().to(backend.device) for x in (W, G, P, M, V))
    kernels.lowrank_adam_step(W, G, P, M, V, **hyper, backend=backend.name)
    # a direction of nearly 0 / nearly 0 is ill-conditioned
    np.testing.assert_allclose(W.cpu().numpy(), want[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(M.cpu().numpy(), want[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_raises_halves_when_it_loads_them(device, dtype):
    random = torch.Generator().manual_seed(0)
    R, M, V = (torch.randn(9, 21, generator=random).to(dtype) for _ in range(3))
    V = V.abs()
    want = truth.adam_moments(*(x.double().numpy() for x in (R, M, V)), (0.9, 0.999), 1e-6)
    m, v = M.to(device), V.to(device)
    N = kernels.adam_direction(R.to(device), m, v, (0.9, 0.999), 1e-6, "triton")
    for got, expected in zip((m, v, N), want, strict=True):
        np.testing.assert_allclose(got.double().cpu().numpy(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    S = torch.randn(70, 40, generator=random).to(dtype)
    norms = truth.column_norms(S.double().numpy(), "l2")
    assert_near(kernels.column_norms(S.to(device), "l2", backend="triton"), norms, norms, 1.01)


def test_a_named_backend_is_held_to_its_name():
    R = torch.randn(4, 4)
    if not torch.cuda.is_available():
        with pytest.raises(kernels.BackendMissing, match="cuda runs on a CUDA device"):
            kernels.adam_direction(R, R.clone(), R.clone(), (0.9, 0.999), 1e-6, "cuda")
    with pytest.raises(ValueError, match="unknown backend"):
        kernels.adam_direction(R, R.clone(), R.clone(), (0.9, 0.999), 1e-6, "fortran")
    with pytest.raises(ValueError, match=r"contiguous.*strides"):
        kernels.column_norms(torch.randn(4, 8)[:, ::2], backend="numba")
    with pytest.raises(ValueError, match="no gradients"):
        kernels.column_norms(torch.randn(4, 8, requires_grad=True), backend="numba")
    with pytest.raises(ValueError, match="must agree"):
        kernels.adam_direction(R, R.clone(), torch.zeros(4, 5), (0.9, 0.999), 1e-6)


def test_auto_takes_what_the_tensors_allow():
    R = torch.zeros(4, 4)
    assert dispatch.name("auto", R) == kernels.dispatch.backends.default("cpu")
    assert dispatch.name("auto", R.double()) == "eager"
    assert dispatch.name("auto", R.bfloat16()) == "eager"
    assert dispatch.name("auto", torch.zeros(4, 8)[:, ::2]) == "eager"
    assert dispatch.name("auto", torch.zeros(2, device="meta")) == "eager"
    M, V = torch.zeros(4, 8)[:, ::2], torch.zeros(4, 4, dtype=torch.float64)
    kernels.adam_direction(R + 1, M, torch.zeros(4, 4), (0.9, 0.999), 1e-6)
    assert M[0, 0].item() == pytest.approx(0.1)
    kernels.adam_direction(R.double() + 1, V.clone(), V, (0.9, 0.999), 1e-6)
    assert V[0, 0].item() == pytest.approx(1e-3, rel=1e-12)


def test_nothing_heavy_is_imported_with_the_op(tmp_path):
    import subprocess
    import sys

    code = "import sys, reference.kernels.project; assert not {'numba', 'triton'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
