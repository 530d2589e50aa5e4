"""What is timed: one step of fused decoding, and the search for alpha alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem
from reference.methods.softmax import dynamic_logits_fusion as fusion
from reference.methods.softmax.dynamic_logits_fusion_numba import alphas
from reference.testbeds import char_lm
from reference.testbeds.decoding import reader
from reference.testbeds.seeding import fill_normal

PLACE = 16  # characters that are read already
GRID_TOLERANCE = fusion.STEP / 2 + 1e-3
SWEEPS = round(fusion.CAP / fusion.STEP)


def bisection(log_large: torch.Tensor, shift: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The Numba root on tensors; `shift` [rows, V]."""
    return torch.from_numpy(alphas(log_large.numpy(), shift.numpy(), target.numpy())).to(target.dtype)


@dataclass(frozen=True)
class Step:
    """The weight that was used, the fused log-probabilities, and whether the weight was searched for."""

    alpha: torch.Tensor
    log_p: torch.Tensor
    searched: bool


@dataclass(frozen=True)
class Expected:
    """Log-probabilities of the three models at this character, float64, and the root."""

    large: torch.Tensor
    shift: torch.Tensor
    alpha: torch.Tensor

    def error(self, step: Step) -> float:
        """Distance of the weight from the root (from 1 where it is fixed) and of the fusion from the weight's own."""
        wanted = self.alpha if step.searched else torch.ones_like(self.alpha)
        used = torch.as_tensor(step.alpha).double()
        fused = fusion.fused(self.large, self.shift[None], used[None])
        log_p = torch.as_tensor(step.log_p).double()
        return max(float((used - wanted).abs().max()), float((log_p - fused).abs().max()))


def decode_problem(vocabulary: int) -> Problem:
    """One character through large, small and expert and their fusion; caches hold `PLACE` characters."""
    shapes = {"large": (4, 128), "small": (2, 64), "expert": (2, 64)}
    made = {name: char_lm.CharLM(char_lm.Config(layers, width, context=2 * PLACE, vocabulary=vocabulary), index).eval()
            for index, (name, (layers, width)) in enumerate(shapes.items())}
    for name, model in made.items():
        fill_normal(model.head.weight, 0.25, "head", name)
    made["expert"].load_state_dict(made["small"].state_dict())
    with torch.no_grad():
        noise = torch.empty_like(made["expert"].head.weight)
        fill_normal(noise, 0.06, "noise")
        made["expert"].head.weight += noise
    before, start = torch.arange(PLACE)[None] % vocabulary, torch.tensor([PLACE])
    readers = [reader(model, 1) for model in made.values()]
    for item in readers:
        item.extend(before, torch.zeros(1, dtype=torch.int64))
    exact = [model.double() for model in (char_lm.CharLM(model.config, 0) for model in made.values())]
    for copy, model in zip(exact, made.values(), strict=True):
        copy.load_state_dict(model.state_dict())

    def arm(choose: Callable[..., torch.Tensor], searched: bool, sweeps: int, tolerance: float) -> Arm:
        def run(token: torch.Tensor, alpha: torch.Tensor, log_p: torch.Tensor) -> None:
            large, small, expert = (item.extend(token, start)[:, 0].log_softmax(-1) for item in readers)
            shift, target = expert - small, fusion.kl(expert, small)
            alpha[:] = choose(large, shift, target)
            log_p[:] = fusion.fused(large, shift[None], alpha[None])

        weights = 4.0 * sum(map(char_lm.parameter_count, made.values()))
        return Arm(run, weights + 8.0 * sweeps * vocabulary, weights / 2 + 4.0 * sweeps * vocabulary,
                   outputs=lambda alpha, log_p: Step(alpha, log_p, searched), tolerance=tolerance)

    def expected(token: torch.Tensor) -> Expected:
        with torch.no_grad():
            text = torch.cat([before, torch.as_tensor(token)], 1)
            large, small, expert = (model(text)[:, -1].log_softmax(-1) for model in exact)
        shift = expert - small
        return Expected(large, shift, fusion.alpha_by_bisection(large, shift, fusion.kl(expert, small)).values)

    return Problem(
        inputs=lambda rng: (torch.from_numpy(rng.integers(0, vocabulary, (1, 1))),),
        buffers=lambda _: (torch.zeros(1), torch.zeros(1, vocabulary)),
        truth=expected,
        error=lambda step, truth: truth.error(step),
        arms={
            "static": arm(lambda large, shift, target: torch.ones_like(target), False, 0, 1e-3),
            "grid": arm(lambda *models: fusion.alpha_by_grid(*models).values, True, SWEEPS, GRID_TOLERANCE),
            "bisection": arm(bisection, True, SWEEPS, 5e-3),
        },
        input_bytes=8,
        tolerance=1e-3,
    )


def search_problem(experts: int, vocabulary: int) -> Problem:
    """The root for each expert; targets are made from roots between 0.3 and 1.7."""
    def inputs(rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        random = torch.Generator().manual_seed(int(rng.integers(2**62)))
        large = (2 * torch.randn(1, vocabulary, generator=random)).log_softmax(-1)
        shifts = torch.randn(experts, vocabulary, generator=random)
        roots = 0.3 + 1.4 * torch.rand(experts, generator=random)
        return large, shifts, fusion.fused_kl(large.double(), shifts.double(), roots.double()).float()

    def roots(*drawn: Any) -> torch.Tensor:
        return fusion.alpha_by_bisection(*(torch.as_tensor(part).double() for part in drawn)).values

    def run(search: Callable[..., torch.Tensor]) -> Callable[..., None]:
        def call(large: Any, shifts: Any, targets: Any, out: torch.Tensor) -> None:
            out[:] = search(large, shifts, targets)

        return call

    read = 4.0 * experts * vocabulary
    return Problem(
        inputs=inputs,
        buffers=lambda *_: (torch.zeros(experts),),
        truth=roots,
        error=lambda out, known: float((torch.as_tensor(out).double() - known).abs().max()),
        arms={
            # a sweep reads the large model and the shift, and writes and reads three vectors between its ops
            "grid_torch": Arm(run(lambda *models: fusion.alpha_by_grid(*models).values), 8 * SWEEPS * read,
                              12.0 * SWEEPS * read / 4, tolerance=GRID_TOLERANCE),
            "bisection_torch": Arm(run(lambda *models: fusion.alpha_by_bisection(*models, iterations=SWEEPS).values),
                                   8 * SWEEPS * read, 12.0 * SWEEPS * read / 4),
            "bisection_numba": Arm(run(bisection), 5 * SWEEPS * read, 6.0 * SWEEPS * read / 4),
        },
        input_bytes=int(read + 4 * vocabulary),
        tolerance=1e-3,
    )
