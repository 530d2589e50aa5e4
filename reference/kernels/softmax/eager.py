"""The same algorithms in plain torch operations: what the compiled kernels are compared with, not a fast path."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

BLOCK = 2**14  # lanes: the accumulators are this wide, one step of the recurrence for each block of the row

LOG2E = float.fromhex("0x1.715476p+0")
LN2_HIGH = float.fromhex("0x1.62E43p-1")
LN2_LOW = float.fromhex("-0x1.05C61p-29")
COEFFICIENTS = [
    float.fromhex(text)
    for text in ("0x1.0F9F9Cp-7", "0x1.573A1Ap-5", "0x1.555A80p-3", "0x1.FFFDC6p-2", "0x1.FFFFF6p-1", "0x1p0")
]
LOWEST = -(2.0**17)
LARGEST_EXPONENT = 188_000.0


def softmax(x: Tensor, out: Tensor, algorithm: str, threads: int | None) -> None:
    """Write the softmax over the last axis of ``x`` (rows, n) into ``out``, which may be ``x``."""
    with _threads(threads):
        wide = x.float()
        if algorithm == "two_pass":
            y = _two_pass(wide)
        elif algorithm == "online":
            total, largest = _online_sum(wide)
            y = _normalised(exp(wide - largest), total)
        else:
            y = _three_pass(wide)
        out.copy_(y)


def log_softmax(x: Tensor, out: Tensor, algorithm: str, threads: int | None) -> None:
    """Write x - ln(sum(e^x)) over the last axis of ``x`` (rows, n) into ``out``, which may be ``x``."""
    with _threads(threads):
        wide = x.float()
        high, low = _log_parts(wide, algorithm)
        out.copy_((wide - high) - low)


def log_sum_exp(x: Tensor, out: Tensor, algorithm: str, threads: int | None) -> None:
    """Write ln(sum(e^x)) over the last axis of ``x`` (rows, n) into ``out`` (rows,)."""
    with _threads(threads):
        wide = x.float()
        high, low = _log_parts(wide, algorithm)
        found = (high.double() + low.double()).squeeze(-1)
        largest = _largest(wide).squeeze(-1).double()
        found = torch.where(largest.isinf() & ~wide.isnan().any(dim=-1), largest, found)
        out.copy_(found)


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """a*b + c rounded once: the product of two floats is exact in float64."""
    return (a.double() * b + c).float()


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """(p, n) with e^x = p * 2^n, n an integer held as float (the paper's extended exponent)."""
    n = torch.round(x * LOG2E)
    t = _fma(n, -LN2_LOW, _fma(n, -LN2_HIGH, x))
    p = torch.full_like(t, COEFFICIENTS[0])
    for coefficient in COEFFICIENTS[1:]:
        p = _fma(p, t.double(), coefficient)
    return p, n


def weight(n: Tensor) -> Tensor:
    """2^n for n <= 0, 0 from -127 downwards."""
    return torch.where(n <= -127, 0.0, torch.ldexp(torch.ones_like(n), n.clamp(-126, 127).int()))


def exp(x: Tensor) -> Tensor:
    """e^x for x <= 0, 0 where it would be denormal; NaN stays NaN."""
    p, n = split(x.clamp_min(-88.0))
    return p * weight(n)


def _extended_sum(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(m, e, inside) with m * 2^e = sum(e^x) for each row where ``inside`` says that the split is accurate."""
    m = torch.zeros(x.shape[0], min(BLOCK, x.shape[1]), dtype=torch.float64, device=x.device)
    e = torch.full(m.shape, round(LOWEST * LOG2E), dtype=torch.float32, device=x.device)
    for block in x.split(BLOCK, dim=-1):
        p, n = split(block.clamp_min(LOWEST))
        width = n.shape[1]
        # fmax passes over NaN, which is in p as well and reaches the sum from there.
        raised = torch.fmax(e[:, :width], n)
        m[:, :width] = m[:, :width] * weight(e[:, :width] - raised) + p * weight(n - raised)
        e[:, :width] = raised
    largest = e.amax(dim=-1, keepdim=True)
    total = (m * weight(e - largest)).sum(dim=-1, keepdim=True)
    return total, largest, (largest < LARGEST_EXPONENT) & (largest > -LARGEST_EXPONENT)


def _largest(x: Tensor) -> Tensor:
    """The maximum of each row with NaN passed over."""
    return torch.where(x.isnan(), -torch.inf, x).amax(dim=-1, keepdim=True)


def _online_sum(x: Tensor) -> tuple[Tensor, Tensor]:
    """(s, m) with m the largest element of a row and s = sum(e^(x - m)), block by block."""
    s = torch.zeros(x.shape[0], 1, dtype=torch.float64, device=x.device)
    m = torch.full((x.shape[0], 1), torch.finfo(torch.float32).min, device=x.device)
    for block in x.split(BLOCK, dim=-1):
        raised = torch.fmax(m, _largest(block))
        s = s * exp(m - raised).double() + exp(block - raised).double().sum(dim=-1, keepdim=True)
        m = raised
    # exp makes e^(-inf - m) zero; only a row that is masked as a whole has no sum.
    return torch.where(s == 0.0, torch.nan, s), m


def _two_pass(x: Tensor) -> Tensor:
    total, largest, inside = _extended_sum(x)
    r, k = _normaliser(total, largest)
    p, n = split(x.clamp_min(LOWEST))
    y = (p * r).float() * weight(n - k)
    return y if bool(inside.all()) else torch.where(inside, y, _three_pass(x))


def _three_pass(x: Tensor) -> Tensor:
    terms = exp(x - _largest(x))
    return _normalised(terms, terms.double().sum(dim=-1, keepdim=True))


def _log_parts(x: Tensor, algorithm: str) -> tuple[Tensor, Tensor]:
    """(high, low), float32 (rows, 1), whose sum is ln(sum(e^x)) to twice the precision; NaN for an undefined row."""
    if algorithm == "online":
        total, largest = _online_sum(x)
        return largest, total.log().float()
    if algorithm == "two_pass":
        total, exponent, inside = _extended_sum(x)
        if bool(inside.all()):
            log = total.log() + exponent.double() * math.log(2.0)
            return log.float(), (log - log.float()).float()
        high, low = (torch.empty(x.shape[0], 1, device=x.device) for _ in range(2))
        for name, rows in (("two_pass", inside.squeeze(-1)), ("three_pass_recompute", ~inside.squeeze(-1))):
            if bool(rows.any()):
                high[rows], low[rows] = _log_parts(x[rows], name)
        return high, low
    largest = _largest(x)
    return largest, exp(x - largest).double().sum(dim=-1, keepdim=True).log().float()


def _normalised(terms: Tensor, total: Tensor) -> Tensor:
    """terms / total with what would become denormal flushed to 0."""
    y = (terms.double() / total).float()
    return torch.where(y.abs() < 2.0**-126, 0.0, y)


def _normaliser(total: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """(r, k) with 1 / (total * 2^exponent) = r * 2^-k and r in (1/2, 1]."""
    mantissa, shift = torch.frexp(total)
    return 0.5 / mantissa, (exponent + shift - 1).float()
