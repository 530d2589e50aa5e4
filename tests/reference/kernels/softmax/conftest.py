"""The oracle table: inputs, the float64 truth and the documented errors, which every backend is held to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch

from reference.kernels import softmax as op
from reference.kernels.softmax import ALGORITHMS, truth

TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
UNITS = 8.0
# x - max is rounded by all but two_pass: half an ulp of up to 128 is 64 units of 2^-24.
SHIFTED_UNITS = 72.0
inf, nan = np.inf, np.nan


def _uniform(rows: int, n: int, bound: float, offset: float = 0.0) -> np.ndarray:
    return (np.random.default_rng(rows * n).random((rows, n)) * 2 - 1) * bound + offset


def _masked(rows: int, n: int) -> np.ndarray:
    """A row of a third, one of the first half, one that is masked but for its last element, one masked as a whole."""
    x = _uniform(rows, n, 30.0)
    x[0, ::3] = -inf
    x[1, : n // 2] = -inf
    x[2, :-1] = -inf
    x[3] = -inf
    return x


def _special(n: int) -> np.ndarray:
    """NaN and infinities at the start, in the middle and at the end of rows; the last row has none."""
    x = _uniform(8, n, 3.0)
    x[0, 0], x[1, -1], x[2, n // 2], x[3, -1], x[4, :] = nan, nan, inf, inf, inf
    x[5, 0], x[5, -1] = inf, nan
    x[6], x[6, n // 2] = -inf, nan
    return x


INPUTS = {
    "one element": _uniform(3, 1, 100.0),
    "two elements": _uniform(5, 2, 10.0),
    "rows of 15": _uniform(19, 15, 10.0),
    "rows of 16": _uniform(16, 16, 10.0),
    "rows of 17": _uniform(17, 17, 30.0),
    "rows of 65": _uniform(33, 65, 1000.0),
    "rows of 128": _uniform(7, 128, 10.0),
    "rows of 1000": _uniform(5, 1000, 1.0),
    "rows of 2049": _uniform(3, 2049, 1000.0),
    "one row of 5003": _uniform(1, 5003, 1000.0),
    "all equal": np.array([[0.0], [-77.7], [1.0], [9999.0]]) * np.ones((4, 300)),
    "far from 0": _uniform(4, 300, 8.0, 1e4),
    "far below 0": _uniform(4, 300, 8.0, -6e4),
    "wide": _uniform(4, 700, 6e4),
    "beyond the split": np.concatenate(
        [_uniform(1, 500, bound, offset) for bound, offset in ((10, 1.3e5), (10, -1.5e5), (1e7, 0), (1e30, 0))]
    ),
    "largest": np.array([[3e38, 3e38, 2.9e38, -3e38], [-3e38, -3e38, -inf, -3e38], [3.4028235e38] * 4]),
    "tiny": _uniform(3, 70, 1e-40),
    "small outputs": np.linspace(-110.0, 0.0, 2000).reshape(1, -1),
    "masked, short": _masked(4, 20),
    "masked": _masked(5, 3000),
    "all masked": np.full((18, 33), -inf),
    "NaN and infinities, short": _special(9),
    "NaN and infinities": _special(2500),
}


def units(name: str, algorithm: str) -> float:
    """The documented error of a function in units of 2^-24; halves add the rounding to their type."""
    return UNITS if algorithm == "two_pass" or name != "softmax" else SHIFTED_UNITS


def error(name: str, x: np.ndarray, y: np.ndarray, type_: str, roundings: float = 0.5) -> float:
    """The error of ``y`` = name(x) in units of 2^-24, without ``roundings`` times the spacing of a 16-bit type."""
    with np.errstate(invalid="ignore", over="ignore"):
        expected = getattr(truth, name)(x.astype(np.float64))
        largest = float(torch.finfo(TYPES[type_]).max)
        expected = np.where(np.abs(expected) > largest, np.copysign(inf, expected), expected)
        allowed = roundings * truth.spacing(expected, type_)
        measure = truth.error_units if name == "softmax" else truth.log_error_units
        return measure(y, expected, allowance=allowed)


def _run(
    backend: str | ModuleType, name: str, algorithm: str, threads: int | None, x: torch.Tensor, out: torch.Tensor
) -> None:
    if isinstance(backend, str):
        assert getattr(op, name)(x, out, algorithm=algorithm, backend=backend, threads=threads) is out
    else:
        getattr(backend, name)(x, out, algorithm, threads)


@dataclass(frozen=True)
class Case:
    """An input of the table: ``x`` is what float64 and every backend get."""

    name: str
    type: str
    x: torch.Tensor

    def check(
        self, backend: str | ModuleType, device: str = "cpu", threads: int | None = 1, bfloat16_roundings: float = 0.5
    ) -> None:
        """Every function by every algorithm, into poisoned memory and in place, within the documented error.

        ``backend`` is a name or a backend's module. ``bfloat16_roundings`` is what rounding to bfloat16 may cost of its
        spacing; Triton's interpreter cuts it off.
        """
        x = self.x.to(device)
        wide = self.x.double().numpy()
        for name in ("softmax", "log_softmax", "log_sum_exp"):
            for algorithm in ALGORITHMS:
                if name != "softmax" and algorithm == "three_pass_reload":
                    continue
                shape = x.shape[:1] if name == "log_sum_exp" else x.shape
                kept, out = x.clone(), torch.full(shape, nan, dtype=x.dtype, device=device)
                run = partial(_run, backend, name, algorithm, threads)
                run(kept, out)
                assert torch.equal(kept.nan_to_num(7.0), x.nan_to_num(7.0)), (name, algorithm)
                roundings = bfloat16_roundings if self.type == "bfloat16" else 0.5
                # Its stored terms are rounded too: half a spacing there is up to one of the quotient.
                roundings *= 3.0 if algorithm == "three_pass_reload" else 1.0
                found = error(name, wide, out.double().cpu().numpy(), self.type, roundings)
                assert found <= units(name, algorithm), f"{name} by {algorithm}: {found:.3g} units of 2^-24"
                if name != "log_sum_exp":
                    run(kept, kept)
                    assert torch.equal(kept.nan_to_num(7.0), out.nan_to_num(7.0)), f"{name} by {algorithm} in place"


@pytest.fixture(params=[(name, type_) for name in INPUTS for type_ in TYPES], ids=lambda p: f"{p[0]}, {p[1]}")
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A row of the oracle table."""
    name, type_ = request.param
    with np.errstate(all="ignore"):
        yield Case(name, type_, torch.from_numpy(INPUTS[name]).to(TYPES[type_]))
