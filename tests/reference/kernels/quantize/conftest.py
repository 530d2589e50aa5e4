"""The oracle table: what every backend of the 8-bit codes is given, and how far from float64 it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from reference.kernels import driver, target
from reference.kernels.quantize import dynamic_map, eager, linear_map, truth
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

nan, inf = np.nan, np.inf
UNIT = 2.0**-24  # half a unit in the last place of 1
BACKENDS = ("numba", "numba, one by one", "eager", "triton", "cuda")


@dataclass(frozen=True)
class Backend:
    """A backend's functions and the device that they are tried on."""

    name: str
    kernels: ModuleType
    device: str


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """Each backend; without a GPU Triton's interpreter and CUDA kernels that run thread by thread on the CPU."""
    name, device = request.param, "cpu"
    if name == "eager":
        return Backend(name, eager, device)
    if name.startswith("numba"):
        from reference.kernels.quantize import numba_cpu as kernels

        if name != "numba":
            monkeypatch.setattr(kernels, "can_go_wide", lambda: False)
        return Backend(name, kernels, device)
    device = request.getfixturevalue("device")
    if name == "triton":
        from reference.kernels.quantize import triton_gpu as kernels
    else:
        from reference.kernels.quantize import cuda_gpu as kernels

        if device == "cpu":
            monkeypatch.setattr(driver, "kernel", request.getfixturevalue("on_cpu")(kernels.SOURCE))
            monkeypatch.setattr(target, "width", lambda _device: target.Width(1, 163 * 1024))
            monkeypatch.setattr(target, "workspace", lambda _device, size: torch.full((size,), 77, dtype=torch.uint8))
    return Backend(name, kernels, device)


def _normal(n: int, power: int = 1) -> np.ndarray:
    return (np.random.default_rng(n + power).standard_normal(n) ** power).astype(np.float32)


def _with(x: np.ndarray, **places: float) -> np.ndarray:
    for place, value in places.items():
        x[int(place[1:])] = value
    return x


def _custom(seed: int, spread: float, low: float = -1.0) -> torch.Tensor:
    """256 different sorted codes, crowded around 0 for a small ``spread``."""
    values = np.random.default_rng(seed).uniform(low, 1.0, 256) * np.geomspace(spread, 1.0, 256)
    return torch.from_numpy(np.unique(values.astype(np.float32)))


MAPS = {
    "dynamic": dynamic_map(True), "dynamic unsigned": dynamic_map(False), "linear": linear_map(True),
    "linear unsigned": linear_map(False), "random": _custom(0, 1.0), "random, crowded": _custom(1, 1e-9),
    "random, positive": _custom(2, 0.1, 0.3), "16 codes": torch.linspace(-1, 1, 16).repeat_interleave(16),
    "all equal": torch.full((256,), 0.25), "crowded at 1": torch.linspace(1 - 255 * 2**-20, 1, 256),
}


@dataclass(frozen=True)
class CodeCase:
    """``x`` in blocks of ``block`` (None: one) by the map ``map``."""

    name: str
    x: np.ndarray
    block: int | None = 256
    map: str = "dynamic"

    def check(self, backend: Backend) -> None:
        """Scales are exact, codes as near as a rounded quotient allows, values exact but for their rounding."""
        n, code, exact = self.x.size, MAPS[self.map], self.x.astype(np.float64)
        size = self.block or n
        codes = torch.full((n,), 99, dtype=torch.uint8, device=backend.device)
        absmax = torch.full((-(-n // size),), -3.0, device=backend.device)
        values, on_device = torch.full((n,), -5.0, device=backend.device), code.to(backend.device)
        backend.kernels.quantize(torch.from_numpy(self.x).to(backend.device), on_device, size, codes, absmax, False)
        backend.kernels.dequantize(codes, absmax, on_device, size, values)
        codes, absmax, values = (tensor.cpu().numpy() for tensor in (codes, absmax, values))
        want = np.array([np.abs(self.x[start : start + size]).max() for start in range(0, n, size)])
        assert np.array_equal(absmax, want, equal_nan=True)
        usable = np.repeat(np.isfinite(want) & (want > 0), size)[:n]
        scale = np.repeat(want, size)[:n].astype(np.float64)
        book = code.double().numpy()
        quotient = np.divide(exact, scale, out=np.zeros(n), where=usable)
        excess = np.abs(book[codes] - quotient) - np.abs(book - quotient[:, None]).min(1)
        assert (excess <= 2 * UNIT * np.abs(quotient) + 2.0**-149).all(), excess.max() / UNIT
        with np.errstate(invalid="ignore", over="ignore"):
            product = truth.dequantize(codes, want, book, self.block).astype(np.float32)
        assert np.array_equal(values, product, equal_nan=True)
        if (book == 0).any():
            assert np.array_equal(np.isnan(values), ~np.isfinite(scale))


CODE_CASES = [
    CodeCase("one entry", np.float32([-3.0])),
    CodeCase("two entries of one tensor", np.float32([1e-3, 7.0]), None),
    CodeCase("a block longer than the tensor", _normal(200), 4096),
    CodeCase("blocks of one entry", _normal(130), 1),
    CodeCase("blocks of 64", _normal(640, 3), 64),
    CodeCase("blocks of 100", _normal(1003), 100),
    CodeCase("ragged blocks of 256", _normal(3001, 3)),
    CodeCase("blocks of 4096", _normal(9000), 4096),
    CodeCase("blocks beyond a piece", _normal(11000, 3), 5000),
    CodeCase("one long block", _normal(9001, 3), None),
    CodeCase("all kinds of magnitudes", _normal(600) * np.geomspace(1e-44, 1e37, 600).astype(np.float32), 100),
    CodeCase("zeros of both signs", _with(np.float32([0.0, -0.0] * 300), _520=2.0)),
    CodeCase("subnormal scales", _normal(300) * np.float32(1e-42)),
    CodeCase("the smallest numbers", np.float32([1e-45, -1e-45, 0, 3e-45] * 70)),
    CodeCase("the largest numbers", np.float32([3.4028235e38, -3.4028235e38, 1e38, 1.0] * 70)),
    CodeCase("NaN and infinities", _with(_normal(1500), _70=nan, _300=inf, _600=-inf, _1024=nan, _1030=inf)),
    *(CodeCase(f"map: {name}", _normal(1500, 3), 256, name) for name in MAPS),
    *(CodeCase(f"small, map: {name}", _with(_normal(1500) / np.float32(1e3), _5=1.0), None, name) for name in MAPS),
]


@pytest.fixture(params=CODE_CASES, ids=lambda case: case.name)
def code_case(request: pytest.FixtureRequest) -> CodeCase:
    """A case of the table of codes."""
    return request.param


ADAM = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1, "step": 5}
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
LION = {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1}
SETTINGS = {"adam": AdamSettings.at_step, "momentum": MomentumSettings.of, "lion": LionSettings.of}


@dataclass(frozen=True)
class StepCase:
    """One step of ``op`` on ``n`` parameters from states of N(0, 1) and |N(0, 1)|, or zero."""

    name: str
    op: str
    n: int
    block: int | None
    hyper: dict[str, Any] = field(default_factory=dict)
    zero_state: bool = False
    signed: str = "dynamic"
    unsigned: str = "dynamic unsigned"

    def check(self, backend: Backend) -> None:
        """p within 8 units of what it is the sum of, scales within 8, the states as near as their codes allow."""
        p, g, *start = (_normal(self.n, power) for power in (1, 3, 5, 7))
        size, device = self.block or self.n, backend.device
        states, exact = [], []
        starts = (start[0], self.signed), (np.abs(start[1]), self.unsigned)
        for value, name in starts[: 2 if self.op == "adam" else 1]:
            codes, absmax = torch.empty(self.n, dtype=torch.uint8), torch.empty(-(-self.n // size))
            eager.quantize(torch.from_numpy(value * (not self.zero_state)), MAPS[name], size, codes, absmax)
            exact.append(truth.dequantize(codes.numpy(), absmax.numpy(), MAPS[name].numpy(), size))
            states.append((codes.to(device), absmax.to(device), MAPS[name].to(device)))
        tensor = torch.from_numpy(p.copy()).to(device)
        arguments = tensor, torch.from_numpy(g).to(device), *states, size
        getattr(backend.kernels, self.op)(*arguments, SETTINGS[self.op](**self.hyper))
        want_p, *want = getattr(truth, self.op)(p, g, *exact, **self.hyper)
        parts = np.abs(p) + np.abs(want_p - p) + (np.abs(g) if self.op == "momentum" else 0)
        assert (np.abs(tensor.cpu().numpy() - want_p) <= 8 * UNIT * parts).all()
        for (codes, absmax, code), moment in zip(states, want, strict=True):
            top = np.array([np.abs(moment[at : at + size]).max() for at in range(0, self.n, size)])
            # Terms of opposite signs may cancel in a block of few entries: the terms are of this size.
            power = 1 if moment is want[0] else 2
            slack = 8 * UNIT * (np.abs(g).max() ** power + np.abs(exact).max() + np.abs(p).max())
            assert (np.abs(absmax.cpu().numpy() - top) <= slack).all()
            values = truth.dequantize(codes.cpu().numpy(), absmax.cpu().numpy(), code.cpu().numpy(), size)
            room = truth.relative_error_bound(code.cpu().numpy()) * np.repeat(top, size)[: self.n]
            assert (np.abs(values - moment) <= room * (1 + 8 * UNIT) + slack).all()


STEP_CASES = [
    StepCase(f"{op}, {n} in blocks of {block}", op, n, block, hyper)
    for op, hyper in (("adam", ADAM), ("momentum", MOMENTUM), ("lion", LION))
    for n, block in ((1, 64), (130, 64), (1003, 100), (3001, 256), (9000, 4096), (9001, None), (9999, 5000))
] + [
    StepCase("adam, first step", "adam", 700, 256, ADAM | {"step": 1}, zero_state=True),
    StepCase("adam, late and without decay", "adam", 700, 256, ADAM | {"step": 10**6, "weight_decay": 0.0}),
    StepCase("adam, linear maps", "adam", 700, 256, ADAM, signed="linear", unsigned="linear unsigned"),
    StepCase("adam, a second moment in a crowded map", "adam", 700, 64, ADAM, unsigned="random, positive"),
    StepCase("lion, first step", "lion", 700, 256, LION, zero_state=True),
    StepCase("lion, without decay, linear map", "lion", 700, 256, LION | {"weight_decay": 0.0}, signed="linear"),
    StepCase("momentum, first step", "momentum", 700, 256, MOMENTUM, zero_state=True),
]


@pytest.fixture(params=STEP_CASES, ids=lambda case: case.name)
def step_case(request: pytest.FixtureRequest) -> StepCase:
    """A case of the table of steps."""
    return request.param
