"""What is timed: whole texts written greedily, and the step that judges drafts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from harness.declare.suite import Arm, Problem
from reference.methods.softmax import speculative, speculative_numba
from reference.testbeds import char_lm
from reference.testbeds.decoding import generate, padded, reader
from reference.testbeds.tasks import END_CODE

GAMMA = 5
# How far below the largest logit a written character's may lie: float32 may break a near tie either way.
NEAR_TIE = 1e-3


def decoding_problem(
    target: char_lm.CharLM, draft: char_lm.CharLM, prompts: Sequence[str], texts: int, new: int
) -> Problem:
    """`new` characters behind each of `texts` prompts drawn anew; every arm writes what the target likes best."""
    exact, width = deepcopy(target).double(), max(map(len, prompts))  # equal shapes for every draw
    weights = 4.0 * char_lm.parameter_count(target), 4.0 * char_lm.parameter_count(draft)

    def inputs(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, lengths = padded([prompts[index] for index in rng.choice(len(prompts), texts, replace=False)])
        return torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=END_CODE), lengths

    def autoregressive(tokens: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor) -> None:
        for row, length in enumerate(lengths.tolist()):
            made = generate([reader(target, 1)], tokens[row : row + 1, :length], lengths[row : row + 1], new, end=None)
            out[row] = made.tokens[0]

    def speculative_by(gamma: int) -> Callable[..., None]:
        def run(tokens: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor) -> None:
            for row, length in enumerate(lengths.tolist()):
                prompt = tokens[row, :length]
                out[row] = speculative.speculate(reader(target, 1), reader(draft, 1), prompt, new, gamma).tokens

        return run

    def below_the_best(out: Any, asked: tuple[Any, Any]) -> float:
        """The worst distance of a written character's logit from the largest, in float64."""
        tokens, lengths = map(torch.as_tensor, asked)
        worst = 0.0
        for row, length in enumerate(lengths.tolist()):
            whole = torch.cat([tokens[row, :length], torch.as_tensor(out[row])])
            if int(whole.min()) < 0 or int(whole.max()) >= exact.config.vocabulary:
                return float("inf")
            with torch.no_grad():
                logits = exact(whole[None, :-1])[0, length - 1 :]
            written = logits.gather(-1, whole[length:, None])[:, 0]
            worst = max(worst, float((logits.max(-1).values - written).max()))
        return worst

    calls = float(texts * new)
    return Problem(
        inputs=inputs,
        buffers=lambda *_: (torch.zeros(texts, new, dtype=torch.int64),),
        truth=lambda tokens, lengths: (tokens, lengths),
        error=below_the_best,
        arms={
            "autoregressive": Arm(autoregressive, calls * weights[0], calls * weights[0] / 2),
            # The model of bytes takes two characters per call of the target: what it is depends on the texts.
            **{f"speculative_{gamma}": Arm(speculative_by(gamma), calls / 2 * (weights[0] + gamma * weights[1]),
                                           calls / 4 * (gamma + 1) * (weights[0] + weights[1]))
               for gamma in (3, 5)},
        },
        input_bytes=8 * texts * width,
        tolerance=NEAR_TIE,
        rotate=4,
    )


def verification_problem(batch: int, vocabulary: int) -> Problem:
    """Judge `GAMMA` drafts for each of `batch` prompts; about two thirds are accepted."""
    sums = speculative_numba.scratch(vocabulary)

    def inputs(rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
        random = torch.Generator().manual_seed(int(rng.integers(2**62)))
        p = torch.softmax(2 * torch.randn(batch, GAMMA + 1, vocabulary, generator=random), -1)
        other = torch.softmax(2 * torch.randn(batch, GAMMA, vocabulary, generator=random), -1)
        q = 0.7 * p[:, :GAMMA] + 0.3 * other
        drafts = torch.multinomial(q.flatten(0, 1), 1, generator=random).view(batch, GAMMA)
        return p, q, drafts, torch.rand(batch, GAMMA, generator=random), torch.rand(batch, generator=random)

    def numba(p: Any, q: Any, drafts: Any, accept: Any, resample: Any, out: torch.Tensor) -> None:
        written = out.numpy()
        speculative_numba.verify(p.numpy(), q.numpy(), drafts.numpy(), accept.numpy(), resample.numpy(),
                                 written[0], written[1], sums)

    def eager(p: Any, q: Any, drafts: Any, accept: Any, resample: Any, out: torch.Tensor) -> None:
        out[0], out[1] = speculative.verify(p, q, drafts, accept, resample)

    read = 4.0 * batch * vocabulary
    return Problem(
        inputs=inputs,
        buffers=lambda *_: (torch.zeros(2, batch, dtype=torch.int64),),
        truth=Judged,
        error=lambda out, judged: judged.error(out),
        arms={
            "numba": Arm(numba, 2 * read, 2 * read / 4, workspace_bytes=0),
            "torch": Arm(eager, 10 * read, 5 * read / 4),
        },
        input_bytes=int(read * (2 * GAMMA + 1)),
        tolerance=1e-4,
    )


class Judged:
    """The float64 answer: how many are accepted, and the share of the mass that ends at each character."""

    def __init__(self, p: Any, q: Any, drafts: Any, accept: Any, resample: Any):
        p, q, self._resample = (torch.as_tensor(part).double() for part in (p, q, resample))
        self.accepted, _ = speculative.verify(p, q, torch.as_tensor(drafts), torch.as_tensor(accept).double(),
                                              self._resample)
        rows = torch.arange(len(p))
        proposed = torch.cat([q, torch.zeros_like(p[:, :1])], 1)[rows, self.accepted]
        cumulated = speculative.residual(p[rows, self.accepted], proposed).cumsum(-1)
        self._cumulated = cumulated / cumulated[:, -1:]

    def error(self, out: Any) -> float:
        """How far the uniform number lies outside the written character's part; infinite for another count."""
        accepted, following = torch.as_tensor(out)
        inside = ((following >= 0) & (following < self._cumulated.shape[1])).all()
        if not inside or not torch.equal(accepted, self.accepted):
            return float("inf")
        above = self._cumulated.gather(1, following[:, None])[:, 0]
        below = torch.where(following > 0, self._cumulated.gather(1, (following - 1).clamp_min(0)[:, None])[:, 0], 0.0)
        return float(torch.maximum(below - self._resample, self._resample - above).clamp_min(0).max())
