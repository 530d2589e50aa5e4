"""What is timed: temperatures for rows of logits, by the network and by bisection."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.declare.suite import Arm, Problem
from reference.methods.softmax import tempnet_dro, tempnet_dro_numba
from reference.methods.softmax.tempnet_dro import BISECTION_STEPS, Range, TempNet, rho_for

TARGET, ALLOWED = 3.0, Range()


def temperature_problem(rows: int, vocabulary: int) -> Problem:
    """Each arm returns its temperatures and its name; a bisected one is right when the entropy is the target's."""
    net = TempNet(vocabulary, 0, ALLOWED).requires_grad_(False).eval()
    exact_net = TempNet(vocabulary, 0, ALLOWED).double().eval()
    rho, work = rho_for(TARGET, vocabulary), float(rows * vocabulary)

    def inputs(random: np.random.Generator) -> tuple[Tensor]:
        return (torch.from_numpy(2 * random.standard_normal((rows, vocabulary), dtype=np.float32)),)

    def in_numba(logits: Tensor) -> tuple[np.ndarray, str]:
        tau = np.empty(rows, np.float32)
        tempnet_dro_numba.exact_tau(logits.numpy(), TARGET, ALLOWED.low, ALLOWED.high, BISECTION_STEPS, tau)
        return tau, "bisection"

    def error(found: tuple[Any, str], logits: Tensor) -> float:
        tau = torch.as_tensor(found[0]).double()
        if found[1] == "tempnet":
            with torch.no_grad():
                return (tau / exact_net(logits) - 1).abs().max().item()
        return (tempnet_dro.entropy(logits, tau) - TARGET).abs().max().item()

    return Problem(
        inputs=inputs,
        buffers=lambda _: (),
        truth=lambda logits: logits.double(),
        error=error,
        arms={
            "tempnet": Arm(lambda logits: (net(logits), "tempnet"), 4 * (work + 256 * vocabulary), 2 * 256 * work),
            "bisection": Arm(lambda logits: (tempnet_dro.exact_tau(logits, rho, ALLOWED), "bisection"),
                             4 * work * BISECTION_STEPS, 8 * work * BISECTION_STEPS),
            "bisection_numba": Arm(in_numba, 4 * work, 22 * work * BISECTION_STEPS),
        },
        input_bytes=int(4 * work),
        tolerance=2e-3,
    )
