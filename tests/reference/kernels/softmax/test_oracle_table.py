"""Every backend that can run here against the one table of inputs."""

from __future__ import annotations

import pytest

from reference.kernels.backend import interpreted, missing
from reference.kernels.softmax import cost

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NaN and infinities are among the inputs


def test_numba(case):
    case.check("numba")


def test_numba_on_two_threads(case, monkeypatch):
    monkeypatch.setattr(cost, "GRAIN", 32)  # so that short inputs are shared and cut in chunks as well
    case.check("numba", threads=2)


def test_eager(case):
    case.check("eager")


def test_triton(case, device):
    # The interpreter cuts bfloat16 off instead of rounding it.
    case.check("triton", device, bfloat16_roundings=1.0 if interpreted() else 0.5)


def test_cuda(case, device):
    reason = missing("cuda", device)
    if reason is not None:
        pytest.skip(f"NOT CHECKED: {reason}")
    case.check("cuda", device)
