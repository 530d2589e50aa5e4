"""The same algorithms in plain torch operations: what the compiled kernels are compared with, not a fast path."""

from __future__ import annotations

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
    """Write the softmax over the last axis of ``x`` (rows, n) into ``out``; both float32."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        out.copy_({"two_pass": _two_pass, "online": _online, "three_pass_recompute": _three_pass,
                   "three_pass_reload": _three_pass}[algorithm](x))
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


def _two_pass(x: Tensor) -> Tensor:
    m = torch.zeros(x.shape[0], min(BLOCK, x.shape[1]), dtype=torch.float64)
    e = torch.full(m.shape, round(LOWEST * LOG2E), dtype=torch.float32)
    for block in x.split(BLOCK, dim=-1):
        p, n = split(block.clamp_min(LOWEST))
        width = n.shape[1]
        # fmax and fmin pass over NaN, which is in p as well and reaches the sum from there.
        raised = torch.fmax(e[:, :width], n)
        m[:, :width] = m[:, :width] * weight(e[:, :width] - raised) + p * weight(n - raised)
        e[:, :width] = raised
    largest = e.amax(dim=-1, keepdim=True)
    total = (m * weight(e - largest)).sum(dim=-1, keepdim=True)
    r, k = _normaliser(total, largest)
    p, n = split(x.clamp_min(LOWEST))
    y = (p * r).float() * weight(n - k)
    inside = (largest < LARGEST_EXPONENT) & (largest > -LARGEST_EXPONENT)
    return torch.where(inside, y, y if bool(inside.all()) else _three_pass(x))


def _three_pass(x: Tensor) -> Tensor:
    shifted = x - torch.where(x.isnan(), -torch.inf, x).amax(dim=-1, keepdim=True)
    terms = exp(shifted)
    return _normalised(terms, terms.double().sum(dim=-1, keepdim=True))


def _online(x: Tensor) -> Tensor:
    s = torch.zeros(x.shape[0], 1, dtype=torch.float64)
    m = torch.full((x.shape[0], 1), torch.finfo(torch.float32).min)
    for block in x.split(BLOCK, dim=-1):
        raised = torch.fmax(m, torch.where(block.isnan(), -torch.inf, block).amax(dim=-1, keepdim=True))
        s = s * exp(m - raised).double() + exp(block - raised).double().sum(dim=-1, keepdim=True)
        m = raised
    return _normalised(exp(x - m), s)


def _normalised(terms: Tensor, total: Tensor) -> Tensor:
    """terms / total with what would become denormal flushed to 0."""
    y = (terms.double() / total).float()
    return torch.where(y.abs() < 2.0**-126, 0.0, y)


def _normaliser(total: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """(r, k) with 1 / (total * 2^exponent) = r * 2^-k and r in (1/2, 1]."""
    mantissa, shift = torch.frexp(total)
    return 0.5 / mantissa, (exponent + shift - 1).float()
