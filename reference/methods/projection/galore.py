"""GaLore: Adam in a low-rank subspace of each weight's gradient (Zhao et al. 2024, arXiv 2403.03507)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import torch

from reference.kernels.project.eager import step_size
from reference.methods.projection.moments import Moments, zero_moments
from reference.methods.projection.subspace import (
    Choice,
    OneSided,
    SelectedColumns,
    Subspace,
    TwoSided,
    choose,
    dct_table,
)

Parameter = torch.nn.Parameter
_CHOICE_FIELDS = tuple(field.name for field in fields(Choice))


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW whose groups with a ``rank`` keep their moments in a low-rank subspace (Algorithm 2 of the paper).

    Every ``update_proj_gap`` steps, step 0 included, the gradient of that moment chooses a new subspace; M and V are
    kept as they are. Per step R = project(G), N = Adam direction of R, W -= rate * scale * back(N) with Adam's bias
    correction by the step count since the start; then W *= 1 - lr * weight_decay, which ``scale`` does not touch.

    Keys of a projected group, all but ``rank`` optional: ``update_proj_gap`` (200; None: chosen once), ``scale`` (0.25,
    the paper's alpha), ``proj_type`` (std, reverse_std, left, right, full), ``projector`` (svd, gram, range_finder,
    random, dct) and the fields of :class:`~reference.methods.projection.subspace.Choice`. Other groups get plain AdamW.
    ``bits=8`` keeps M and V in block-wise 8-bit codes. ``seed`` makes the random projectors reproducible. ``shared``
    holds the fixed DCT bases. A projected parameter must be a matrix: ValueError.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        *,
        bits: int = 32,
        backend: str = "eager",
        seed: int = 0,
    ) -> None:
        self.shared: dict[tuple[object, ...], torch.Tensor] = {}
        self.bits, self.backend, self.seed = bits, backend, seed
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a projected one gets its defaults and its ``choice`` here."""
        if param_group.get("rank") is not None:
            param_group.setdefault("update_proj_gap", 200)
            param_group.setdefault("scale", 0.25)
            given = {name: param_group[name] for name in _CHOICE_FIELDS if name in param_group}
            param_group["choice"] = Choice(**given)
        super().add_param_group(param_group)
        added = self.param_groups[-1]
        if "choice" in added and any(p.ndim != 2 for p in added["params"]):
            raise ValueError("a group with a rank holds matrices only; put other parameters into a group without rank")
        self._owner = {p: (group, index) for index, (group, p) in enumerate(self._members())}

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One step on every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for _, p in self._members():
            if p.grad is not None:
                self.step_parameter(p)
        return loss

    @torch.no_grad()
    def step_parameter(self, p: Parameter) -> None:
        """One step on one parameter alone, as per-layer hooks need it; its own step count decides about refreshes."""
        group, index = self._owner[p]
        state = self.state[p] or self._allocate(p, group)
        G, gap = p.grad, group.get("update_proj_gap")
        assert G is not None
        due = state["step"] == 0 or (gap is not None and state["step"] % gap == 0)
        if "choice" not in group:
            R = G
        elif due:
            state["subspace"], R = choose(G, group["choice"], self.shared, self._generator(index, state["step"], p))
        else:
            R = state["subspace"].project(G)
        state["step"] += 1
        moments: Moments = state["moments"]
        N = moments.direction(R, group["betas"], group["eps"], self.backend)
        rate = step_size(group["lr"], state["step"], group["betas"])
        keep = 1.0 - group["lr"] * group["weight_decay"]
        if "choice" in group:
            state["subspace"].subtract(p, N, rate * group["scale"], keep)
        else:
            p.add_(N, alpha=-rate).mul_(keep)

    def allocate(self) -> None:
        """Make the state of every parameter as the first step would, without a gradient; for accounting by shapes."""
        for group, p in self._members():
            if not self.state[p]:
                self._allocate(p, group)

    def _allocate(self, p: Parameter, group: dict[str, Any]) -> dict[str, Any]:
        state = self.state[p]
        state["step"] = 0
        if "choice" in group:
            choice: Choice = group["choice"]
            state["moments"] = zero_moments(choice.low_rank_shape(*p.shape), p, self.bits)
            state["subspace"] = _unchosen(p, choice, self.shared)
        else:
            state["moments"] = zero_moments(tuple(p.shape), p, self.bits)
        return state

    def _members(self) -> Iterable[tuple[dict[str, Any], Parameter]]:
        return ((group, p) for group in self.param_groups for p in group["params"])

    def _generator(self, index: int, step: int, p: Parameter) -> torch.Generator | None:
        if p.device.type == "meta":
            return None
        seed = (self.seed * 1_000_003 + index) * 1_000_003 + step
        return torch.Generator(device=p.device).manual_seed(seed % 2**63)


def step_during_backward(optimizer: GaLoreAdamW) -> list[torch.utils.hooks.RemovableHandle]:
    """Step each parameter as soon as its gradient is complete, then free the gradient (per-layer weight updates).

    One weight gradient lives at a time. ``optimizer.step()`` afterwards finds no gradient and does nothing, so a
    training loop needs no change; gradient clipping and accumulation over several backward passes are not possible.
    """

    def hook(p: torch.Tensor) -> None:
        optimizer.step_parameter(p)  # type: ignore[arg-type]  # the hook is registered on parameters
        p.grad = None

    return [p.register_post_accumulate_grad_hook(hook) for _, p in optimizer._members()]


def _unchosen(p: Parameter, choice: Choice, shared: dict[tuple[object, ...], torch.Tensor]) -> Subspace:
    """A subspace of the right sizes without content, replaced before it is used."""
    (m, n), rank = p.shape, min(choice.rank, *p.shape)
    if choice.proj_type == "full":
        return TwoSided(p.new_empty(m, rank), p.new_empty(n, rank))
    side = choice.side(m, n)
    length = m if side == "left" else n
    if choice.projector == "dct":
        table = dct_table(shared, length, choice.by, p.detach())
        return SelectedColumns(side, torch.empty(rank, dtype=torch.int32, device=p.device), table)
    return OneSided(side, p.detach().new_empty(length, rank))
