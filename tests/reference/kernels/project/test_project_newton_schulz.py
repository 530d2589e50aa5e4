"""Newton-Schulz orthogonalisation against the iteration on singular values, and against U V^T."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.kernels import project as kernels
from reference.kernels.project import cost, truth

COEFFICIENTS = {"quintic": kernels.QUINTIC, "cubic": kernels.CUBIC}
FEW = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


def draw(m, n, seed=0, dtype=torch.float32):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def with_singular_values(values):
    """A matrix twice as tall as wide."""
    n = len(values)
    U, V = torch.linalg.qr(draw(2 * n, n, 1, torch.float64)).Q, torch.linalg.qr(draw(n, n, 2, torch.float64)).Q
    return (U * torch.from_numpy(values)) @ V.mT


@pytest.mark.parametrize("name", COEFFICIENTS)
@given(m=st.integers(1, 30), n=st.integers(1, 30), steps=st.integers(0, 6))
@settings(max_examples=8, **FEW)
def test_singular_values_go_through_the_polynomial(backend, name, m, n, steps):
    G, coefficients = draw(m, n), COEFFICIENTS[name]
    want = truth.newton_schulz(G.numpy(), steps, coefficients, 1e-7)
    on_device = G.to(backend.device)
    found = kernels.newton_schulz(on_device, steps=steps, coefficients=coefficients, backend=backend.name)
    assert torch.equal(on_device.cpu(), G)
    # each step multiplies an error in a small singular value by up to 3.5
    np.testing.assert_allclose(found.cpu().numpy(), want, atol=4e-6 * 3.5**steps)


@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (256, 256)])
def test_large_products_by_the_machines_route(shape):
    G = draw(*shape)
    space = kernels.Workspace()
    out = torch.empty(shape)
    found = kernels.newton_schulz(G, out=out, workspace=space)
    assert found is out
    np.testing.assert_allclose(found.numpy(), truth.newton_schulz(G.numpy(), 5, kernels.QUINTIC, 1e-7), atol=1e-4)
    held = space.nbytes
    assert torch.equal(kernels.newton_schulz(G, workspace=space), found)
    assert space.nbytes == held == 4 * (2 * G.numel() + 2 * min(shape) ** 2)


def test_five_quintic_steps_bring_singular_values_near_one():
    """The documented accuracy: from [0.01, 1] of |G|_F into [0.67, 1.14]."""
    values = np.linspace(0.01, 1.0, 20001)
    for _ in range(5):
        values = sum(c * values**power for c, power in zip(kernels.QUINTIC, (1, 3, 5), strict=True))
    assert 0.67 < values.min() < 0.7
    assert 1.13 < values.max() < 1.14
    G = with_singular_values(np.geomspace(1.0, 0.05, 40))
    found = np.linalg.svd(kernels.newton_schulz(G.float()).double().numpy(), compute_uv=False)
    assert found.min() > 0.67
    assert found.max() < 1.14


def test_cubic_steps_converge_to_the_polar_factor():
    G = with_singular_values(np.linspace(1.0, 0.02, 30))
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        found = kernels.newton_schulz(G.to(dtype), steps=25, coefficients=kernels.CUBIC)
        assert found.dtype == dtype
        assert np.abs(found.double().numpy() - truth.polar(G.numpy())).max() < tolerance


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1e25])
def test_the_scale_of_a_gradient_does_not_matter(scale):
    G = draw(12, 20)
    found = kernels.newton_schulz(G * scale, eps=0.0)
    torch.testing.assert_close(found, kernels.newton_schulz(G, eps=0.0), atol=1e-4, rtol=1e-4)


def test_special_values_and_layouts():
    assert kernels.newton_schulz(torch.zeros(0, 4)).shape == (0, 4)
    assert kernels.newton_schulz(torch.zeros(3, 4)).eq(0).all()
    for value in (torch.nan, torch.inf):
        G = draw(6, 9)
        G[2, 3] = value
        assert kernels.newton_schulz(G).isnan().all()
        assert kernels.newton_schulz(G.mT).isnan().all()
    G = draw(9, 14)
    torch.testing.assert_close(kernels.newton_schulz(G.mT.contiguous().mT), kernels.newton_schulz(G))
    spread = torch.stack((G, G), -1).flatten(1)[:, ::2]
    torch.testing.assert_close(kernels.newton_schulz(spread), kernels.newton_schulz(G))
    half = kernels.newton_schulz(G.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), kernels.newton_schulz(G.bfloat16().float()), atol=0.01, rtol=0.01)
    with pytest.raises(ValueError, match="must be a matrix"):
        kernels.newton_schulz(torch.zeros(2, 2, 2))
    with pytest.raises(ValueError, match="out must be"):
        kernels.newton_schulz(G, out=torch.empty(14, 9))


def test_costs():
    assert cost.newton_schulz_flops(10, 20, 5) == 5 * (4 * 100 * 20 + 2 * 1000)
    assert cost.newton_schulz_flops(20, 10, 5) == cost.newton_schulz_flops(10, 20, 5)
    assert cost.newton_schulz_workspace_bytes(10, 20) == 4 * (400 + 200)
