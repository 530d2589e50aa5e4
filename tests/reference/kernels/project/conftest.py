"""The oracle table of the project op: what every backend must compute, how near to the float64 truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from reference.kernels import driver, target
from reference.kernels import project as kernels
from reference.kernels.project import dispatch, truth

UNIT = 2.0**-24
BETAS, EPS = (0.9, 0.999), 1e-8
NAN, INF = float("nan"), float("inf")


@dataclass(frozen=True)
class Backend:
    """A backend by name, and where its tensors live."""

    name: str
    device: str


@dataclass(frozen=True)
class Case:
    """``run(backend)`` gives results, ``truth()`` their float64 values with the magnitudes that ``units`` refer to."""

    name: str
    run: Callable[[Backend], list[torch.Tensor]]
    truth: Callable[[], list[tuple[np.ndarray, np.ndarray]]]
    units: float


@pytest.fixture(params=["numba", "eager", "triton", "cuda"])
def backend(request, monkeypatch) -> Backend:
    """Every backend; without a GPU, Triton is interpreted and the CUDA kernels run on the CPU thread by thread."""
    if request.param in ("numba", "eager"):
        return Backend(request.param, "cpu")
    device = request.getfixturevalue("device")
    if request.param == "cuda" and not torch.cuda.is_available():
        monkeypatch.setattr(driver, "kernel", request.getfixturevalue("on_cpu")(dispatch.SOURCE))
        monkeypatch.setattr(target, "workspace", lambda _device, size: torch.full((size,), 77, dtype=torch.uint8))
        monkeypatch.setattr(dispatch.backends, "choose", lambda name, *_: name)
    return Backend(request.param, device)


def draw(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def adam(name: str, R: torch.Tensor, M: torch.Tensor, V: torch.Tensor, *, in_place: bool = False) -> Case:
    def run(backend: Backend) -> list[torch.Tensor]:
        r, m, v = (x.clone().to(backend.device) for x in (R, M, V))
        N = kernels.adam_direction(r, m, v, BETAS, EPS, backend.name, out=r if in_place else None)
        assert (N is r) == in_place
        assert in_place or torch.equal(r.cpu().nan_to_num(9.0), R.nan_to_num(9.0))
        return [m, v, N]

    def expected() -> list[tuple[np.ndarray, np.ndarray]]:
        m, v, N = truth.adam_moments(R.numpy(), M.numpy(), V.numpy(), BETAS, EPS)
        # the two terms of the mean may cancel
        size = np.abs(BETAS[0] * M.double().numpy()) + np.abs((1 - BETAS[0]) * R.double().numpy())
        # below 2^-102 a square is denormal: v is off by up to 2^-149
        return [(m, size), (v, v), (N, size / (np.sqrt(v) + EPS))]

    return Case(f"adam: {name}", run, expected, units=6)


def norms(name: str, S: torch.Tensor, norm: str) -> Case:
    def run(backend: Backend) -> list[torch.Tensor]:
        return [kernels.column_norms(S.to(backend.device), norm, backend=backend.name)]

    def expected() -> list[tuple[np.ndarray, np.ndarray]]:
        found = truth.column_norms(S.numpy(), norm)
        return [(found, found)]

    return Case(f"{norm} norms: {name}", run, expected, units=1.01)


def gather(name: str, S: torch.Tensor, columns: list[int]) -> Case:
    kept = torch.tensor(columns, dtype=torch.int32)

    def run(backend: Backend) -> list[torch.Tensor]:
        return [kernels.gather_columns(S.to(backend.device), kept.to(backend.device), backend=backend.name)]

    return Case(f"gather: {name}", run, lambda: [(S.double().numpy()[:, columns],) * 2], units=0)


def random(name: str, length: int, rank: int, sketch: kernels.Sketch, rows: slice, columns: slice) -> Case:
    def run(backend: Backend) -> list[torch.Tensor]:
        return [kernels.random_matrix(length, rank, sketch, rows=rows, columns=columns, device=backend.device,
                                      backend=backend.name)]

    def expected() -> list[tuple[np.ndarray, np.ndarray]]:
        found = truth.random_matrix(length, rank, sketch.seed, sketch.step, sketch.kind)[rows, columns]
        return [(found, found)]

    return Case(f"{sketch.kind}: {name}", run, expected, units=8 if sketch.kind == "gaussian" else 1)


def polynomial(n: int, a: float, b: float, c: float) -> Case:
    A, S = draw(n, n, seed=n), draw(n, n, seed=n + 1)

    def run(backend: Backend) -> list[torch.Tensor]:
        s = S.clone().to(backend.device)
        dispatch.module(backend.name, s).polynomial(A.to(backend.device), s, a, b, c)
        return [s]

    def expected() -> list[tuple[np.ndarray, np.ndarray]]:
        x, y = A.double().numpy(), S.double().numpy()
        return [(a * np.eye(n) + b * x + c * y, abs(a) * np.eye(n) + np.abs(b * x) + np.abs(c * y))]

    return Case(f"polynomial: {n}", run, expected, units=4)


def special(*shape: int, places: dict[tuple[int, ...], float]) -> torch.Tensor:
    x = draw(*shape, seed=3)
    for place, value in places.items():
        x[place] = value
    return x


def _cases() -> list[Case]:
    plain = draw(37, 11), draw(37, 11, seed=1), draw(37, 11, seed=2).square()
    zeros = torch.zeros(5, 9)
    odd = special(4, 33, places={(0, 0): NAN, (1, 1): INF, (2, 2): -INF, (3, 3): 1e-30, (3, 4): 1e18})
    ragged, tall = draw(300, 70, seed=4), draw(1030, 3, seed=5)
    extreme = special(40, 6, places={(3, 0): 2e38, (4, 0): 2e38, (0, 1): NAN, (5, 2): INF, (7, 3): -INF})
    extreme[:, 4] = 1e-38
    sketches = {kind: kernels.Sketch(2**63 + 12345, 7, kind) for kind in ("gaussian", "rademacher", "sparse")}
    every = slice(None)
    return [
        adam("ragged", *plain),
        adam("into R", *plain, in_place=True),
        adam("from zero", draw(5, 9), zeros, zeros),
        adam("nothing moves", zeros, zeros, zeros),
        adam("one", draw(1, 1), draw(1, 1, seed=8), draw(1, 1, seed=9).square()),
        adam("several blocks", draw(3, 2731), draw(3, 2731, seed=1), draw(3, 2731, seed=2).square(), in_place=True),
        adam("NaN and infinity", odd, torch.zeros(4, 33), torch.ones(4, 33)),
        adam("empty", torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0, 4)),
        *(norms(name, S, norm) for norm in ("l1", "l2") for name, S in (
            ("ragged", ragged), ("tall", tall), ("one row", draw(1, 130)), ("one column", draw(130, 1)),
            ("no rows", torch.zeros(0, 5)), ("no columns", torch.zeros(5, 0)), ("transposed", ragged.mT),
            ("zero", zeros),
            ("extreme", extreme * (1.0 if norm == "l2" else 0.5)), ("wide", draw(9, 1300, seed=6)))),
        gather("ragged", ragged, [69, 0, 7, 7, 31]),
        gather("one", draw(1, 1), [0]),
        gather("none", ragged, []),
        gather("many", draw(7, 500), list(range(0, 500, 3))),
        *(random("whole", 50, 37, sketch, every, every) for sketch in sketches.values()),
        *(random("one column", 70, 1, sketch, every, every) for sketch in sketches.values()),
        *(random("a block", 90, 300, sketch, slice(17, 61), slice(200, 211)) for sketch in sketches.values()),
        random("aligned", 16, 64, sketches["gaussian"], every, slice(8, 40)),
        random("empty", 0, 8, sketches["gaussian"], every, every),
        random("other seed and step", 33, 8, kernels.Sketch(0, 2**32 - 1), every, every),
        polynomial(1, 3.4445, -4.775, 2.0315),
        polynomial(70, 3.4445, -4.775, 2.0315),
        polynomial(13, 1.5, -0.5, 0.0),
    ]


CASES = {case.name: case for case in _cases()}


@pytest.fixture(params=CASES)
def case(request) -> Case:
    return CASES[request.param]
