"""The table of cases that every backend runs through, and where each backend runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from reference.kernels import driver
from reference.kernels.quantize import formats
from reference.kernels.quantize.formats import books, support, truth

UNIT = 2.0**-24  # half a unit in the last place of a float32 near 1


@dataclass(frozen=True)
class Case:
    """One use of one format: how to call it, and what float64 says of the result.

    ``judge(x, packed, values)`` gives the largest error beyond the best code's, in ``UNIT`` of the scale (or raises);
    ``allowed`` is what it may be. ``backends`` lists where the case runs.
    """

    name: str
    shape: tuple[int, ...]
    quantize: Callable[[torch.Tensor, str], Any]
    dequantize: Callable[..., torch.Tensor]
    judge: Callable[[np.ndarray, Any, np.ndarray], float]
    allowed: float
    cuda: bool = False
    positive: bool = False

    def draw(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A spread of magnitudes, with zeros."""
        random = torch.Generator().manual_seed(len(self.name))
        x = torch.randn(self.shape, generator=random) ** 3 * (torch.rand(self.shape, generator=random) > 0.1)
        return (x.abs() if self.positive else x).to(dtype)


def excess(x: np.ndarray, values: np.ndarray, best: np.ndarray, scale: np.ndarray) -> float:
    """How much further from ``x`` the values are than the best ones, in UNIT of the scale."""
    beyond = np.abs(values - x) - np.abs(best - x)
    return float((beyond / (UNIT * scale)).max(initial=0.0))


def nf4_case(shape: tuple[int, ...], block: int) -> Case:
    def judge(x: np.ndarray, packed: Any, values: np.ndarray) -> float:
        scale = truth.largest_magnitudes(x, block)
        assert np.array_equal(packed.scale.cpu().numpy(), scale.astype(np.float32))
        each = scale[truth.blocks(x.size, block)]
        with np.errstate(invalid="ignore", divide="ignore"):
            best = np.array(books.NF4_VALUES)[truth.nearest(np.where(each > 0, x / each, 0), books.NF4_VALUES)] * each
        return excess(x, values, best, np.maximum(each, 1e-30))

    return Case(
        f"nf4 block {block} {shape}", shape, lambda x, backend: formats.quantize_nf4(x, block=block, backend=backend),
        formats.dequantize_nf4, judge, 4, cuda=True,
    )


def uniform_case(shape: tuple[int, ...], bits: int, symmetric: bool, cuda: bool = False, **options: Any) -> Case:
    def judge(x: np.ndarray, packed: Any, values: np.ndarray) -> float:
        grid, index = packed.grid, index_of(packed)
        scale, zero = (None if part is None else part.cpu().numpy().ravel() for part in (packed.scale, packed.zero))
        for place in np.unique(index):
            piece = x[index == place]
            wanted, real_zero = truth.uniform_scales(piece.min(), piece.max(), grid.low, grid.high, symmetric)
            assert scale[place] == pytest.approx(max(wanted, 2.0**-126), rel=4 * UNIT)
            assert symmetric or abs(zero[place] - real_zero) <= 0.5 + 1e-4
        best = np.empty_like(x)
        for place in np.unique(index):
            own, s, z = index == place, float(scale[place]), 0 if symmetric else int(zero[place])
            best[own] = (truth.uniform_codes(x[own], s, z, grid.low, grid.high) - z) * s
        return excess(x, values, best, scale[index].astype(np.float64) * grid.high)

    name = f"{'symmetric' if symmetric else 'asymmetric'} int{bits} {options} {shape}"
    return Case(
        name, shape,
        lambda x, backend: formats.quantize_uniform(x, bits=bits, symmetric=symmetric, backend=backend, **options),
        formats.dequantize_uniform, judge, 4, cuda=cuda,
    )


def index_of(packed: Any) -> np.ndarray:
    """The scale of each entry, by numpy's broadcasting."""
    shape = packed.shape
    if packed.group is not None:
        groups = -(-shape[-1] // packed.group)
        rows = np.arange(int(np.prod(shape[:-1])))[:, None] * groups
        return (rows + np.arange(shape[-1]) // packed.group).ravel()
    if packed.axis is None:
        return np.zeros(int(np.prod(shape)), int)
    channels = np.arange(shape[packed.axis])
    return np.broadcast_to(np.moveaxis(channels[(..., *[None] * (len(shape) - 1))], 0, packed.axis), shape).ravel()


def log_case(shape: tuple[int, ...], bits: int, q: int, r: int, zero: str, scale: float | None = None) -> Case:
    levels = 2**bits - (zero == "last")

    def judge(x: np.ndarray, packed: Any, values: np.ndarray) -> float:
        raw = packed.codes.cpu().numpy().ravel()
        codes = raw if packed.each == 1 else truth.unpack(raw, bits, x.size)
        assert np.array_equal(codes, truth.log_codes(x, packed.scale, q, r, levels))
        best = truth.log_values(packed.scale, q, r, levels)[codes]
        return float((np.abs(values - best) / (UNIT * np.maximum(best, 1e-37))).max())

    return Case(
        f"log {bits} bits q {q} r {r} zero {zero} {shape}", shape,
        lambda x, backend: formats.quantize_log(x, bits=bits, q=q, r=r, zero=zero, scale=scale, backend=backend),
        formats.dequantize_log, judge, 1, positive=True,
    )


def ternary_case(shape: tuple[int, ...], **options: float) -> Case:
    def judge(x: np.ndarray, packed: Any, values: np.ndarray) -> float:
        threshold = options.get("threshold", 0.7 * float(np.abs(x).mean()))
        if "density" in options:
            threshold = np.sort(np.abs(x))[::-1][max(round(options["density"] * x.size), 1) - 1]
        codes, mean = truth.ternary(x, threshold)
        assert np.array_equal(truth.unpack(packed.mask.cpu().numpy(), 1, x.size), codes != 0)
        assert np.array_equal(truth.unpack(packed.sign.cpu().numpy(), 1, x.size), codes < 0)
        assert packed.kept == np.count_nonzero(codes)
        assert packed.scale == pytest.approx(options.get("scale", mean), rel=2 * UNIT)
        return float(np.abs(values - codes * packed.scale).max())

    return Case(
        f"ternary {options} {shape}", shape,
        lambda x, backend: formats.quantize_ternary(x, backend=backend, **options),
        formats.dequantize_ternary, judge, 0,
    )


CASES = [
    nf4_case((1,), 64), nf4_case((64,), 64), nf4_case((3, 5, 7), 32), nf4_case((9001,), 64), nf4_case((4, 1030), 4096),
    nf4_case((2, 2048), 512),
    uniform_case((1,), 8, True), uniform_case((2500,), 8, False), uniform_case((2500,), 4, True, narrow=False),
    uniform_case((7, 33), 8, True, axis=0), uniform_case((7, 33), 4, False, axis=1),
    uniform_case((3, 5, 9), 2, True, axis=1), uniform_case((3, 5, 9), 8, False, axis=-1),
    uniform_case((3, 4, 256), 4, True, True, group=128),
    uniform_case((2, 4096), 4, False, True, group=4096), uniform_case((33, 64), 8, False, True, group=32),
    uniform_case((33, 64), 8, True, True, group=64), uniform_case((4, 64), 2, True, True, group=32),
    uniform_case((5, 33), 4, True, group=7), uniform_case((5, 33), 8, False, group=32),
    uniform_case((3, 3), 2, False, group=1), uniform_case((70_000,), 4, True),
    uniform_case((400, 200), 8, False, axis=1), uniform_case((300, 301), 4, False, group=100), nf4_case((70_001,), 64),
    uniform_case((40, 8), 3, True, group=8), uniform_case((40, 9), 5, False, axis=0),
    log_case((2501,), 4, 1, 1, "extra"), log_case((2501,), 3, 13, 37, "extra", 1.0),
    log_case((2501,), 4, 60, 37, "last"),
    log_case((333,), 2, 2, 1, "last", 4.0), log_case((333,), 7, 10, 37, "extra"), log_case((333,), 8, 138, 37, "last"),
    ternary_case((1,)), ternary_case((2501,)), ternary_case((13, 19), density=0.1),
    ternary_case((4096,), threshold=0.5), ternary_case((333,), density=1.0, scale=2.0),
    ternary_case((70_001,)), log_case((70_001,), 4, 13, 37, "last"),
]


BACKENDS = ("numba", "eager", "triton", "cuda")


@pytest.fixture(
    params=[(case, name) for case in CASES for name in BACKENDS if case.cuda or name != "cuda"],
    ids=lambda pair: f"{pair[1]}-{pair[0].name}",
)
def pair(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[Case, str, str]:
    """(case, backend, device) of the table, without the cases that have no kernel in formats.cu."""
    case, name = request.param
    return case, name, place_of(name, request, monkeypatch)


@pytest.fixture(params=[case for case in CASES if not case.cuda], ids=lambda case: case.name)
def case_without_cuda(request: pytest.FixtureRequest) -> Case:
    """A case that has no kernel in formats.cu."""
    return request.param


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(backend, device)."""
    return request.param, place_of(request.param, request, monkeypatch)


@pytest.fixture(params=[name for name in BACKENDS if name != "cuda"])
def backend_of_all(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(backend, device) of the backends that have all formats."""
    return request.param, place_of(request.param, request, monkeypatch)


def place_of(name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A CUDA device where there is one, else the CPU with Triton's interpreter and a stand-in for CUDA's launches."""
    if name == "numba":
        return "cpu"
    device = request.getfixturevalue("device")
    if name == "cuda" and device == "cpu":
        monkeypatch.setattr(driver, "kernel", request.getfixturevalue("on_cpu")(support.SOURCE))
        monkeypatch.setattr(support, "choose", lambda chosen, _device, _source=None: chosen)
    return device


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two results are equal bit for bit, NaN being equal to NaN; scales in float of ternary codes to a unit."""

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, torch.Tensor):
            one, other = one.cpu(), other.cpu()
            return one.dtype == other.dtype and torch.equal(torch.nan_to_num(one, 7e7), torch.nan_to_num(other, 7e7))
        if isinstance(one, float):
            return one == pytest.approx(other, rel=2 * UNIT, nan_ok=True)
        return one == other

    return lambda one, other: all(equal(part, getattr(other, name)) for name, part in vars(one).items())
