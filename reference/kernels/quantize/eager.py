"""Block-wise quantisation and the 8-bit optimizer steps in plain torch: any device, no fusion, the readable version.

Operations and their order are those of the fused backends, each rounded to float32 by itself, so codes and scales agree
bit for bit; parameters agree up to torch's square root, which may be off by one unit in the last place.
"""

from __future__ import annotations

import torch

from reference.kernels.quantize.maps import midpoints_below
from reference.kernels.quantize.settings import AdamSettings, LionSettings, MomentumSettings

Tensor = torch.Tensor
State = tuple[Tensor, Tensor, Tensor]


def quantize(x: Tensor, code: Tensor, block: int, codes: Tensor, absmax: Tensor, keep_sign: bool = False) -> None:
    """Fill ``codes`` (uint8[N]) and ``absmax`` (float32[blocks]) from ``x`` (float32[N])."""
    rows = _rows(x, block)
    # NaN is the largest of all for amax, so one NaN makes its block's scale NaN.
    absmax.copy_(rows.abs().amax(1))
    usable = torch.isfinite(absmax) & (absmax > 0)
    scaled = torch.where(usable[:, None], rows / absmax[:, None], torch.zeros_like(rows))
    inner = torch.from_numpy(midpoints_below(code.cpu().numpy())).to(x.device)
    # bucketize counts the midpoints strictly below each value.
    found = torch.bucketize(scaled, inner)
    if keep_sign:
        found = torch.where((scaled < 0) & (code[found] == 0) & (found > 0), found - 1, found)
    codes.copy_(found.reshape(-1)[: x.numel()])


def dequantize(codes: Tensor, absmax: Tensor, code: Tensor, block: int, out: Tensor) -> None:
    """Fill ``out`` (float32[N]) with ``code[codes] * absmax``."""
    scale = absmax.repeat_interleave(block)[: codes.numel()]
    torch.mul(code[codes.long()], scale, out=out)


def adam(p: Tensor, g: Tensor, m_state: State, v_state: State, block: int, settings: AdamSettings) -> None:
    """One AdamW step on flat ``p``; a state is (codes, absmax, map) and is rewritten in place."""
    m, v = (_restore(state, block) for state in (m_state, v_state))
    m.mul_(settings.beta1).add_(g * settings.one_minus_beta1)
    v.mul_(settings.beta2).add_(g * g * settings.one_minus_beta2)
    update = m / (v.sqrt() + settings.eps_hat)
    p.mul_(settings.decay).sub_(update * settings.step_size)
    quantize(m, m_state[2], block, m_state[0], m_state[1], settings.keep_sign)
    quantize(v, v_state[2], block, v_state[0], v_state[1])


def momentum(p: Tensor, g: Tensor, m_state: State, block: int, settings: MomentumSettings) -> None:
    """One step of SGD with momentum on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    m = _restore(m_state, block)
    m.mul_(settings.momentum).add_(g + p * settings.weight_decay)
    p.sub_(m * settings.lr)
    quantize(m, m_state[2], block, m_state[0], m_state[1], settings.keep_sign)


def lion(p: Tensor, g: Tensor, m_state: State, block: int, settings: LionSettings) -> None:
    """One step of Lion on flat ``p``; the state is (codes, absmax, map) and is rewritten in place."""
    m = _restore(m_state, block)
    c = m * settings.beta1 + g * settings.one_minus_beta1
    # torch.sign(NaN) is 0; a NaN must show.
    update = torch.where(c.isnan(), c, c.sign())
    p.mul_(settings.decay).sub_(update * settings.lr)
    m.mul_(settings.beta2).add_(g * settings.one_minus_beta2)
    quantize(m, m_state[2], block, m_state[0], m_state[1], settings.keep_sign)


def _restore(state: State, block: int) -> Tensor:
    codes, absmax, code = state
    out = torch.empty(codes.numel(), dtype=torch.float32, device=codes.device)
    dequantize(codes, absmax, code, block, out)
    return out


def _rows(x: Tensor, block: int) -> Tensor:
    """``x`` as [blocks, block]; the ragged last block is filled up with zeros, which change no maximum."""
    missing = -x.numel() % block
    return torch.nn.functional.pad(x, (0, missing)).reshape(-1, block)
