"""8-bit optimizers by block-wise quantisation: Dettmers, Lewis, Shleifer, Zettlemoyer 2021, arXiv 2110.02861."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Literal

import torch

from reference.kernels.quantize import MAPS, adam8bit_step, momentum8bit_step, quantize_blockwise

Tensor = torch.Tensor
MapName = Literal["dynamic", "linear", "identity"]


class _Blockwise(torch.optim.Optimizer):
    """What the 8-bit optimizers share: which tensors are eligible, how states begin, how they are loaded.

    A tensor of at least ``min_size`` entries keeps its states as 8-bit codes with one float32 scale per ``block``
    entries (None: one for the tensor); smaller ones, and every tensor of a group with ``bits=32``, keep float32 states.
    ``map`` is ``dynamic`` (the paper's), ``linear`` or ``identity`` (float32 states throughout).
    """

    _state_signs: dict[str, bool]

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any], *, block: int | None, map: MapName,  # noqa: A002
                 min_size: int, keep_sign: bool, backend: str) -> None:
        if map not in (*MAPS, "identity"):
            raise ValueError(f"unknown map {map!r}; known: {', '.join(MAPS)}, identity")
        self.block, self.map, self.min_size, self.keep_sign, self.backend = block, map, min_size, keep_sign, backend
        self.codes: dict[bool, Tensor] = {} if map == "identity" else {sign: MAPS[map](sign) for sign in (True, False)}
        super().__init__(params, {**defaults, "bits": 8})

    def is_eligible(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether the tensor's states are kept in 8 bits."""
        return self.map != "identity" and group["bits"] == 8 and p.numel() >= self.min_size

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; returns the closure's value."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_one(p, p.grad.contiguous(), group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their own types: torch would make the codes floating-point numbers."""
        super().load_state_dict(state_dict)
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, p in zip(numbers, params, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, Tensor):
                    self.state[p][name] = value.detach().clone().to(p.device)

    def _state_of(self, p: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        if state:
            return state
        if p.dtype != torch.float32 or not p.is_contiguous():
            raise ValueError(f"parameters must be contiguous float32, found {p.dtype} with strides {p.stride()}")
        state["step"] = 0
        for name, signed in self._state_signs.items():
            if self.is_eligible(p, group):
                code = self.codes[signed] = self.codes[signed].to(p.device)
                state[f"{name}_codes"], state[f"{name}_absmax"] = quantize_blockwise(
                    torch.zeros_like(p), code=code, block=self.block, backend=self.backend
                )
            else:
                state[name] = torch.zeros_like(p)
        return state

    def _step_one(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        raise NotImplementedError


class BlockwiseAdam8bit(_Blockwise):
    """AdamW whose moments live in 8 bits between steps.

    Each step dequantises m (signed map) and v (unsigned map), updates both in float32, moves p by

    p <- (1 - lr*wd)*p - lr*sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + eps*sqrt(1-b2^t))

    and only then requantises m and v with fresh scales. ``keep_sign`` is the CUDA kernel's rule that a negative m does
    not become 0. With ``map="identity"`` this is torch.optim.AdamW.
    """

    _state_signs = {"m": True, "v": False}  # noqa: RUF012  # never altered

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 0.0, *, block: int | None = 256, map: MapName = "dynamic", min_size: int = 4096,  # noqa: A002
        keep_sign: bool = False, backend: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, block=block, map=map, min_size=min_size, keep_sign=keep_sign, backend=backend
        )

    def _step_one(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(p, group)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        if "m_codes" in state:
            adam8bit_step(
                p, g, state["m_codes"], state["v_codes"], state["m_absmax"], state["v_absmax"], lr=float(group["lr"]),
                beta1=beta1, beta2=beta2, eps=group["eps"], weight_decay=group["weight_decay"], step=state["step"],
                block=self.block, m_map=self.codes[True], v_map=self.codes[False], keep_sign=self.keep_sign,
                backend=self.backend,
            )
            return
        lr, c1, c2 = float(group["lr"]), 1 - beta1 ** state["step"], (1 - beta2 ** state["step"]) ** 0.5
        m, v = state["m"], state["v"]
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(1 - lr * group["weight_decay"])
        p.addcdiv_(m, v.sqrt().add_(group["eps"] * c2), value=-lr * c2 / c1)

    def lost_second_moments(self) -> tuple[int, int]:
        """(entries whose stored v is 0 while their stored m is not, entries in 8 bits).

        The next step divides such an m by little more than eps, so they are where 8-bit Adam can blow up.
        """
        lost = entries = 0
        for state in self.state.values():
            if "m_codes" in state:
                m, v = self.codes[True][state["m_codes"].long()], self.codes[False][state["v_codes"].long()]
                lost += int(((v == 0) & (m != 0)).sum())
                entries += m.numel()
        return lost, entries


class BlockwiseMomentum8bit(_Blockwise):
    """SGD with momentum whose one state lives in 8 bits: m <- momentum*m + (g + wd*p), p <- p - lr*m, requantise m.

    With ``map="identity"`` this is torch.optim.SGD with that momentum and no dampening.
    """

    _state_signs = {"m": True}  # noqa: RUF012  # never altered

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-2, momentum: float = 0.9, weight_decay: float = 0.0, *,
        block: int | None = 256, map: MapName = "dynamic", min_size: int = 4096, keep_sign: bool = False,  # noqa: A002
        backend: str = "auto",
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, block=block, map=map, min_size=min_size, keep_sign=keep_sign, backend=backend
        )

    def _step_one(self, p: Tensor, g: Tensor, group: dict[str, Any]) -> None:
        state = self._state_of(p, group)
        state["step"] += 1
        lr, momentum, weight_decay = float(group["lr"]), group["momentum"], group["weight_decay"]
        if "m_codes" in state:
            momentum8bit_step(
                p, g, state["m_codes"], state["m_absmax"], lr=lr, momentum=momentum, weight_decay=weight_decay,
                block=self.block, m_map=self.codes[True], keep_sign=self.keep_sign, backend=self.backend,
            )
            return
        m = state["m"].mul_(momentum).add_(g).add_(p, alpha=weight_decay)
        p.add_(m, alpha=-lr)
