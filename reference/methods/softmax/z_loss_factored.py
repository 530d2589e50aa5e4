"""Exact gradient descent on an output layer W [D, d] without touching W: the factored form (Vincent et al. 2015).

W = V U + 1 omega^T is kept by V [D, d], U and its inverse [d, d], omega [d]; and with them Q = W^T W and wbar = W^T 1.
A spherical loss of o = W h has the gradient L_c e_c + L_s 1 + 2 L_q o, where s = wbar . h, q = h^T Q h and o_c need the
small matrices and one row of V alone. A mini-batch H [d, m] of mean loss with rate eta is, with K = diag(2 eta L_q),
u1 = -eta L_s, uc = -eta L_c (each divided by m) and E = sum_j uc_j e_c_j e_j^T,

    W' = W P + (1 u1^T + E) H^T,   P = I - H K H^T,   P^-1 = I + H (I - K H^T H)^-1 K H^T     (Woodbury).

Only the rows of V of the batch's targets change, so a step costs O(m d^2), whatever D. This is plain gradient descent:
momentum, Adam and weight decay on W have no such form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reference.methods.softmax.z_loss import Parts, ZLoss

_SINGULAR = 0.5  # P stays invertible while the largest k |h|^2 is below 1; half is a safe distance


@dataclass
class Factored:
    """The state; `step` updates it in place. Field names as in the module's docstring."""

    V: Tensor
    U: Tensor
    U_inverse: Tensor
    omega: Tensor
    Q: Tensor
    wbar: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Factored:
        """The state of W [D, d], with U = I; O(D d^2), once."""
        width = weight.shape[1]
        one = torch.eye(width, dtype=weight.dtype)
        return cls(weight.clone(), one.clone(), one.clone(), torch.zeros(width, dtype=weight.dtype),
                   weight.T @ weight, weight.sum(0))

    def copy(self) -> Factored:
        """With memory of its own."""
        return Factored(**{name: tensor.clone() for name, tensor in vars(self).items()})

    def rows(self, classes: Tensor) -> Tensor:
        """Rows of W, [n, d]."""
        return self.V[classes] @ self.U + self.omega

    def weight(self) -> Tensor:
        """All of W, O(D d^2): for evaluation."""
        return self.V @ self.U + self.omega

    def parts(self, hidden: Tensor, targets: Tensor) -> tuple[Parts, Tensor]:
        """(s, q, o_c) of hidden [m, d] and the targets' rows of W [m, d]."""
        chosen = self.rows(targets)
        s = hidden @ self.wbar
        q = ((hidden @ self.Q) * hidden).sum(1)
        return Parts(s, q, (chosen * hidden).sum(1)), chosen


def step(state: Factored, hidden: Tensor, targets: Tensor, loss: ZLoss, eta: float) -> tuple[Tensor, Tensor]:
    """One step on the mean loss of hidden [m, d]; returns the losses [m] and the mean loss's gradient [m, d].

    Where P would come near to being singular, the whole step is made with a smaller eta (`safe_eta`).
    """
    classes, m = len(state.V), len(hidden)
    parts, chosen = state.parts(hidden, targets)
    slopes = loss.slopes(parts, classes)
    L_s, L_q, L_c = slopes.s / m, slopes.q / m, slopes.o / m
    H = hidden.T
    gradient = 2 * L_q[:, None] * (hidden @ state.Q) + L_s[:, None] * state.wbar + L_c[:, None] * chosen
    eta = safe_eta(eta, 2 * L_q, hidden)
    k, u1, uc = 2 * eta * L_q, -eta * L_s, -eta * L_c
    _update(state, H, targets, k, u1, uc, chosen)
    return loss.loss(parts, classes), gradient


def safe_eta(eta: float, curvature: Tensor, hidden: Tensor) -> float:
    """`eta`, or less where the sum of k_j |h_j|^2 over positive k_j = eta curvature_j would exceed one half."""
    largest = float((curvature.clamp_min(0) * hidden.square().sum(1)).sum())
    return eta if eta * largest <= _SINGULAR else _SINGULAR / largest


def _update(state: Factored, H: Tensor, targets: Tensor, k: Tensor, u1: Tensor, uc: Tensor, chosen: Tensor) -> None:
    """W <- W P + (1 u1^T + E) H^T in the factored form; everything is computed from the old wbar and rows `chosen`."""
    classes = len(state.V)
    gram = H.T @ H
    small = torch.linalg.solve(torch.eye(len(k), dtype=H.dtype) - k[:, None] * gram, k[:, None] * H.T)
    state.U -= (state.U @ H * k) @ H.T
    state.U_inverse += H @ (small @ state.U_inverse)
    state.omega += H @ (u1 - k * (H.T @ state.omega))
    state.V.index_add_(0, targets, (uc * (state.U_inverse.T @ H)).T)
    A_W = state.wbar[:, None] * u1 + chosen.T * uc
    same = (targets[:, None] == targets).to(H)
    A_A = classes * torch.outer(u1, u1) + torch.outer(u1, uc) + torch.outer(uc, u1) + same * torch.outer(uc, uc)
    projected = A_W - (H * k) @ (H.T @ A_W)
    half = state.Q - (H * k) @ (H.T @ state.Q)
    cross = projected @ H.T
    state.Q.copy_(half - (half @ H * k) @ H.T + cross + cross.T + H @ A_A @ H.T)
    state.wbar += H @ (classes * u1 + uc - k * (H.T @ state.wbar))


def refactor(state: Factored) -> None:
    """V <- V U + 1 omega^T, U <- I, omega <- 0, and Q and wbar anew: O(D d^2), every few hundred steps.

    Rounding and small singular values of U that piled up are gone; W is the same.
    """
    fresh = Factored.of(state.weight())
    for name, tensor in vars(fresh).items():
        getattr(state, name).copy_(tensor)
