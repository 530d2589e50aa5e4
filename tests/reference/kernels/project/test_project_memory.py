"""What a call allocates beyond its arguments and results: the resident set's high-water mark against the cost model."""

import ctypes
import re
from pathlib import Path

import pytest
import torch

from reference.kernels import project as kernels
from reference.kernels.project import cost

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
SLACK = 6 * 2**20  # thread stacks, BLAS's own buffers, pages of the allocator
pytestmark = pytest.mark.skipif(not CLEAR.exists(), reason="NOT CHECKED: peaks of memory are read from Linux's /proc")


def resident(what: str) -> int:
    return int(re.search(rf"{what}:\s+(\d+) kB", STATUS.read_text())[1]) * 1024


def peak_bytes(call) -> int:
    """The most that ``call`` added to the resident set, with what the allocator had kept given back before."""
    call()  # compiles, and lets libraries take what they keep
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR.write_text("5")
    before = resident("VmRSS")
    result = call()
    grown = resident("VmHWM") - before
    del result
    return grown


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_step_makes_no_temporary_of_the_weights_size(side):
    m, n, rank = 3072, 4096, 128
    random = torch.Generator().manual_seed(0)
    W, G = torch.randn(m, n, generator=random), torch.randn(m, n, generator=random)
    P = torch.randn(m if side == "left" else n, rank, generator=random)
    M, V = (torch.ones((rank, n) if side == "left" else (m, rank)) for _ in range(2))
    declared = cost.lowrank_adam_workspace_bytes(m, n, rank, side)
    peak = peak_bytes(lambda: kernels.lowrank_adam_step(W, G, P, M, V, side=side, step=1, lr=1e-3, weight_decay=0.1))
    assert peak <= declared + SLACK
    assert declared + SLACK < 4 * m * n / 2


def test_a_random_projection_keeps_a_panel_of_the_matrix():
    m, n, rank = 600, 16384, 1024
    G = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    result = 4 * m * rank
    declared = cost.random_project_workspace_bytes(m, n, rank, "right")
    peak = peak_bytes(lambda: kernels.random_project(G, rank, "right", kernels.Sketch(1)))
    assert peak <= result + declared + SLACK
    assert result + declared + SLACK < 4 * n * rank / 2


def test_newton_schulz_in_a_workspace():
    m, n = 1024, 2048
    G, out = torch.randn(m, n, generator=torch.Generator().manual_seed(0)), torch.zeros(m, n)
    declared = cost.newton_schulz_workspace_bytes(m, n)
    peak = peak_bytes(lambda: kernels.newton_schulz(G, steps=2, out=out))
    assert peak <= declared + SLACK
    space = kernels.Workspace()
    again = peak_bytes(lambda: kernels.newton_schulz(G, steps=2, out=out, workspace=space))
    assert again <= declared - space.nbytes + SLACK


def test_a_dct_refresh_never_forms_the_transformed_matrix():
    m, n, rank = 4096, 2048, 16
    A = torch.randn(m, n, generator=torch.Generator().manual_seed(0))
    declared = cost.dct_select_workspace_bytes(m, n) + 4 * m * rank
    peak = peak_bytes(lambda: kernels.dct_select(A, rank, "right", "l2", "fft", backend="numba"))
    assert peak <= declared + SLACK


def test_norms_allocate_next_to_nothing():
    S = torch.randn(8192, 4096, generator=torch.Generator().manual_seed(0))
    assert peak_bytes(lambda: kernels.column_norms(S, "l2", backend="numba")) <= SLACK
