"""Low-rank AdamW with a fresh subspace at every step: DCT-AdamW (arXiv 2505.17967) and its SVD rival."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch

from reference.kernels.project.eager import step_size
from reference.methods.projection.buckets import ErrorBuffer
from reference.methods.projection.galore import GaLoreAdamW, Parameter
from reference.methods.projection.moments import FullMoments
from reference.methods.projection.subspace import OneSided, SelectedColumns, Subspace, choose

Rotation = Literal["none", "abs", "ldadam"]


class RotatingAdamW(GaLoreAdamW):
    """AdamW in a subspace that may change at every step, with moments that are carried over into the new one.

    Per projected matrix: A = G + E; a new subspace from A where due; M and V rotated into it; a = project(A);
    E = A - back(a); Adam's moments of a; W *= 1 - lr * weight_decay; W -= rate * scale * back(u) with the standard
    u = M / (sqrt(V) + eps * sqrt(1 - b2^t)).

    ``rotation`` says how, with the change of basis C = P_old^T P_new (right side; transposed for left):
    ``abs``: M C and |V C|. ``ldadam`` (Robert et al. 2024, arXiv 2410.16103): M C, and for V the variance of the
    bias-corrected moments is rotated by squares of C, its mean by C. ``error_feedback`` is the number of bits in which
    E is kept (32, 8, 4), or None for none.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        rotation: Rotation = "abs",
        error_feedback: int | None = 32,
        backend: str = "eager",
        seed: int = 0,
    ) -> None:
        if rotation not in ("none", "abs", "ldadam"):
            raise ValueError(f"rotation must be none, abs or ldadam, found {rotation!r}")
        self.rotation, self.error_feedback = rotation, error_feedback
        super().__init__(params, lr, betas, eps, weight_decay, backend=backend, seed=seed)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; here a projected one refreshes at every step and takes the whole step unless told otherwise."""
        if param_group.get("rank") is not None:
            param_group = {"update_proj_gap": 1, "scale": 1.0, **param_group}
            if param_group.get("proj_type", "std") == "full":
                raise ValueError("rotation is defined for one-sided subspaces only, not for proj_type 'full'")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step_parameter(self, p: Parameter) -> None:
        """One step on one parameter alone."""
        group, index = self._owner[p]
        state = self.state[p] or self._allocate(p, group)
        assert p.grad is not None
        lr, betas, step = group["lr"], group["betas"], state["step"]
        keep = 1.0 - lr * group["weight_decay"]
        R = self._accumulated(p, group, index, state) if "choice" in group else p.grad
        state["step"] = step + 1
        # folding eps * sqrt(1 - b2^t) into the direction makes the step that of torch.optim.AdamW
        eps = group["eps"] * (1.0 - betas[1] ** (step + 1)) ** 0.5
        N = state["moments"].direction(R, betas, eps, self.backend)
        rate = step_size(lr, step + 1, betas)
        p.mul_(keep)
        if "choice" in group:
            state["subspace"].subtract(p, N, rate * group["scale"], 1.0)
        else:
            p.add_(N, alpha=-rate)

    def _accumulated(
        self, p: Parameter, group: dict[str, Any], index: int, state: dict[str, Any]
    ) -> torch.Tensor:
        """The low-rank accumulator a; refreshes the subspace, rotates the moments and keeps the error."""
        step, gap = state["step"], group["update_proj_gap"]
        error: ErrorBuffer | None = state.get("error")
        A = p.grad if error is None else p.grad + error.load()
        if step == 0 or (gap is not None and step % gap == 0):
            old = state["subspace"]
            new, a = choose(A, group["choice"], self.shared, self._generator(index, step, p))
            if step > 0 and self.rotation != "none":
                rotate_moments(state["moments"], old, new, self.rotation, group["betas"], step)
            state["subspace"] = new
        else:
            a = state["subspace"].project(A)
        if error is not None:
            error.store(A - state["subspace"].back(a))
        return a

    def _allocate(self, p: Parameter, group: dict[str, Any]) -> dict[str, Any]:
        state = super()._allocate(p, group)
        if "choice" in group and self.error_feedback is not None:
            state["error"] = ErrorBuffer.zeros(p.detach(), self.error_feedback)
        return state


class DCTAdamW(RotatingAdamW):
    """DCT-AdamW: columns of a fixed DCT basis, chosen anew at every step by their norm in the transformed gradient.

    Defaults of the paper's code: refresh gap 1, l1 norm, betas (0.9, 0.999), eps 1e-8. A projected parameter keeps its
    moments and r int32 indices; ``shared`` keeps one n x n basis per size.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; a projected one uses the DCT."""
        if param_group.get("rank") is not None:
            param_group = {**param_group, "projector": "dct"}
        super().add_param_group(param_group)


class LDAdamW(RotatingAdamW):
    """LDAdam-style: the subspace of each step is the accumulator's own SVD, moments are rotated by LDAdam's rule.

    LDAdam finds the subspace by one warm-started power iteration and feeds back the momentum's projection error, too;
    the exact SVD here is the stronger subspace, and only the gradient's error is fed back, as in DCT-AdamW.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, **settings: Any) -> None:
        super().__init__(params, lr, **{"rotation": "ldadam", **settings})


def rotate_moments(
    moments: FullMoments,
    old: Subspace,
    new: Subspace,
    rotation: Rotation,
    betas: tuple[float, float],
    step: int,
) -> None:
    """Carry M and V from the old basis to the new one, in place; ``step`` steps have been taken so far.

    Between two selections from one fixed orthogonal basis C is a 0/1 partial permutation: columns that stay keep their
    moments, columns that are new start at zero.
    """
    if isinstance(old, SelectedColumns) and isinstance(new, SelectedColumns):
        axis = 1 if new.side == "right" else 0
        for moment in (moments.M, moments.V):
            moment.copy_(_carried(moment, old.columns, new.columns, axis))
        return
    assert isinstance(old, OneSided)
    assert isinstance(new, OneSided)
    C = old.P.mT @ new.P
    turn = (lambda x, c: x @ c) if new.side == "right" else (lambda x, c: c.mT @ x)
    if rotation == "ldadam":
        one, two = 1.0 - betas[0] ** step, 1.0 - betas[1] ** step
        mean = moments.M / one
        variance = moments.V / two - mean * mean
        moments.V.copy_((turn(variance, C * C) + turn(mean, C) ** 2).abs_().mul_(two))
    else:
        moments.V.copy_(turn(moments.V, C).abs_())
    moments.M.copy_(turn(moments.M, C))


def _carried(moment: torch.Tensor, old: torch.Tensor, new: torch.Tensor, axis: int) -> torch.Tensor:
    """Slices of ``moment`` moved to where the new selection has the same column; zero for columns that are new."""
    same = old[:, None] == new[None, :]
    stays = same.any(dim=0)
    source = same.to(torch.int8).argmax(dim=0)
    shape = (-1, 1) if axis == 0 else (1, -1)
    return moment.index_select(axis, source) * stays.to(moment.dtype).reshape(shape)
