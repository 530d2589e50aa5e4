"""Small and large character models, tuned on tasks, and what they answer when their logits are fused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reference.methods.softmax import dynamic_logits_fusion as fusion
from reference.methods.softmax.dynamic_logits_fusion_numba import alphas as alphas_by_numba
from reference.testbeds import char_lm, text, training
from reference.testbeds.decoding import complete, generate, padded, reader
from reference.testbeds.seeding import generator
from reference.testbeds.tasks import Examples, OnAnswers, dosed, examples, mixture, rows, task_batches

CONTEXT = 32
WIDTH = 30  # the longest line is a date's
MAX_NEW = 12
BATCH = 32
DOSE = 0.4
POOL = 4096  # training examples of a task
BASE_LR, EXPERT_LR = 0.004, 0.004
# Steps of fine-tuning at a share of 1, as many for small as for large: experts know their task, and not perfectly.
STEPS = {"ADD2": 700, "DATE": 140, "REV4": 200}
ALL_STEPS = 300
UNSEEN = "SUB2"
FIXED = {"static_05": 0.5, "static_10": 1.0, "static_15": 1.5}
PER_TASK = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5)

# Weights of the experts [experts, batch] at one step, from the large model's log-probabilities [batch, V], the experts'
# shifts [experts, batch, V] and how far tuning moved each small model [experts, batch], in nats.
Weigh = Callable[[Tensor, Tensor, Tensor], fusion.Alphas]


def model_of(shape: str, seed: int = 0) -> char_lm.CharLM:
    """A fresh model of LAYERSxWIDTH."""
    layers, width = map(int, shape.split("x"))
    return char_lm.CharLM(char_lm.Config(layers=layers, width=width, context=CONTEXT), seed)


def base(shape: str, steps: int, tasks: Sequence[str]) -> char_lm.CharLM:
    """A model trained on DOC with a dose of the tasks' lines."""
    model = model_of(shape)
    batches = training.text_batches(dosed(text.corpus("DOC"), tasks, DOSE, 0), BATCH, CONTEXT, 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR, fused=True)
    training.train(model, batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    return model.eval()


def tuned(model: char_lm.CharLM, tasks: Sequence[str], steps: int, lr: float, seed: int) -> char_lm.CharLM:
    """A copy fine-tuned on the answers to the tasks' training examples."""
    copy = char_lm.CharLM(model.config, 0)
    copy.load_state_dict(model.state_dict())
    drawn, held_out = (mixture(tasks, count // len(tasks), seed, part)
                       for part, count in (("train", POOL), ("validation", 96)))
    width = max(len(line) for side in (drawn, held_out) for line in side.lines())
    batches = task_batches(drawn, BATCH, seed, width, held_out)
    optimizer = torch.optim.AdamW(copy.parameters(), lr=lr, fused=True)
    training.train(OnAnswers(copy), batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    return copy.eval()


def bases(config: Mapping[str, Any]) -> dict[str, Any]:
    """The two base models of the shapes ``large`` and ``small``, and the digest of their text."""
    made = {size: base(config[size], config["pretrain"], [*STEPS, UNSEEN]) for size in ("large", "small")}
    return {**made, "digest": text.corpus("DOC").digest}


def specialists(model: char_lm.CharLM, share: float, lr: float, seed: int) -> dict[str, char_lm.CharLM]:
    """A copy for each task, fine-tuned on it alone; `share` of `STEPS`."""
    return {task: tuned(model, [task], max(2, round(steps * share)), lr, seed) for task, steps in STEPS.items()}


def generalist(model: char_lm.CharLM, share: float, lr: float, seed: int) -> dict[str, char_lm.CharLM]:
    """The same copy for each task, fine-tuned on all at once."""
    return dict.fromkeys(STEPS, tuned(model, list(STEPS), max(2, round(ALL_STEPS * share)), lr, seed))


def merged(small: nn.Module, experts: Sequence[nn.Module], scale: float) -> char_lm.CharLM:
    """Task arithmetic (Ilharco et al. 2023, arXiv 2212.04089): theta_S + scale * sum_t (theta_St - theta_S)."""
    at = small.state_dict()
    result = char_lm.CharLM(small.config, 0)
    result.load_state_dict({name: value + scale * sum(expert.state_dict()[name] - value for expert in experts)
                            for name, value in at.items()})
    return result.eval()


def static(*weights: float) -> Weigh:
    """The same weights at every step, one for each expert."""
    def weigh(log_large: Tensor, shifts: Tensor, targets: Tensor) -> fusion.Alphas:
        values = torch.tensor(weights, dtype=targets.dtype)[:, None].expand_as(targets)
        return fusion.Alphas(values, torch.zeros_like(values, dtype=torch.bool))

    return weigh


def dynamic(log_large: Tensor, shifts: Tensor, targets: Tensor) -> fusion.Alphas:
    """Each expert's own root; with one expert the paper's single-task rule."""
    flat = [part.flatten(0, -2).contiguous().numpy() for part in (log_large, shifts)]
    found = alphas_by_numba(*flat, targets.flatten().numpy())
    values = torch.from_numpy(found).to(targets.dtype).view_as(targets)
    return fusion.Alphas(values, values >= fusion.CAP)


def routed(expert: int) -> Weigh:
    """The root of one known expert, 0 for the others: what a task id would give."""
    def weigh(log_large: Tensor, shifts: Tensor, targets: Tensor) -> fusion.Alphas:
        found = dynamic(log_large, shifts, targets)
        chosen = (torch.arange(len(shifts)) == expert)[:, None]
        return fusion.Alphas(torch.where(chosen, found.values, 0.0), found.capped & chosen)

    return weigh


def rule_of(arm: str, experts: int, known: int, alpha: float | None) -> Weigh:
    """How several experts are weighed.

    ``static`` has one `alpha` for all, ``joint`` is the paper's objective, ``largest`` takes the expert that moved
    farthest, and ``oracle`` the `known` one.
    """
    if arm == "static":
        assert alpha is not None
        return static(*[alpha] * experts)
    return routed(known) if arm == "oracle" else {"joint": fusion.sparse_grid, "largest": fusion.largest_shift}[arm]


@dataclass
class Recorder:
    """A `Weigh` that keeps what it gave: `values`, one [experts, batch] per step."""

    weigh: Weigh
    values: list[Tensor] = field(default_factory=list)
    capped: list[Tensor] = field(default_factory=list)

    def __call__(self, log_large: Tensor, shifts: Tensor, targets: Tensor) -> fusion.Alphas:
        """What `weigh` gives."""
        found = self.weigh(log_large, shifts, targets)
        self.values.append(found.values)
        self.capped.append(found.capped)
        return found


@dataclass(frozen=True)
class Fusion:
    """A large model, a small base and small experts, joined by one rule for the weights."""

    large: char_lm.CharLM
    small: char_lm.CharLM
    experts: tuple[char_lm.CharLM, ...]
    weigh: Weigh

    def combine(self, logits: list[Tensor]) -> Tensor:
        """log P~ [batch, V] from the raw logits of large, small and experts."""
        large, small, *experts = (part.log_softmax(-1) for part in logits)
        tuned = torch.stack(experts)
        shifts = tuned - small
        found = self.weigh(large, shifts, fusion.kl(tuned, small.expand_as(tuned)))
        return fusion.fused(large, shifts, found.values)

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Greedy answers, the end included where it was reached."""
        models = (self.large, self.small, *self.experts)
        tokens, lengths = padded(prompts)
        readers = [reader(model, len(prompts)) for model in models]
        return generate(readers, tokens, lengths, MAX_NEW, combine=self.combine).texts()

    @torch.no_grad()
    def loss(self, asked: Examples) -> float:
        """Nats per character of the right answers, each character given those before it."""
        tokens, mask = rows(asked, WIDTH)
        counted = mask[:, 1:]
        logits = [model(tokens[:, :-1])[counted] for model in (self.large, self.small, *self.experts)]
        return -float(self.combine(logits).gather(-1, tokens[:, 1:][counted][:, None]).mean())


@dataclass(frozen=True)
class Alone:
    """One model without any expert's influence."""

    model: char_lm.CharLM

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Greedy answers, the end included where it was reached."""
        return complete(self.model, prompts, MAX_NEW)

    @torch.no_grad()
    def loss(self, asked: Examples) -> float:
        """Nats per character of the right answers."""
        return float(OnAnswers(self.model).loss(*rows(asked, WIDTH)))


@dataclass(frozen=True)
class Shuffled:
    """The control: answers with the weights that `joined` used, each row's in a random order of its steps."""

    joined: Fusion
    seed: int

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """Greedy answers; the weights are found by answering once in their own order."""
        recorder = Recorder(self.joined.weigh)
        answers = replace(self.joined, weigh=recorder).answers(prompts)
        used, random, step = torch.stack(recorder.values), generator("shuffled", self.seed), 0
        counts = [min(len(answer), len(used)) for answer in answers]
        orders = [torch.randperm(count, generator=random) for count in counts]

        def weigh(log_large: Tensor, shifts: Tensor, targets: Tensor) -> fusion.Alphas:
            nonlocal step
            values = torch.stack([used[order[step % len(order)], :, row] for row, order in enumerate(orders)], dim=-1)
            step += 1
            return fusion.Alphas(values, torch.zeros_like(values, dtype=torch.bool))

        return replace(self.joined, weigh=weigh).answers(prompts)


class Answers(Protocol):
    """What answers prompts."""

    def answers(self, prompts: Sequence[str]) -> list[str]:
        """One answer for each."""


def best_static(joined: Fusion, asked: Examples, grid: Sequence[float]) -> float:
    """The fixed alpha with the most exact matches on validation examples; the least of equals."""
    return max(grid, key=lambda alpha: asked.exact_match(replace(joined, weigh=static(alpha)).answers(asked.prompts)))


def weighed(joined: Fusion, arm: str, alpha: float | None, validation: Examples) -> Fusion:
    """The rule of an arm with one expert, recorded: one fixed weight, or the root at every step.

    ``static_05``, ``static_10`` and ``static_15`` name theirs, ``static_tuned`` has `alpha`, and ``static_per_task``
    takes the best on `validation`.
    """
    if arm == "static_per_task":
        alpha = best_static(joined, validation, PER_TASK)
    alpha = FIXED.get(arm, alpha)
    return replace(joined, weigh=Recorder(dynamic if alpha is None else static(alpha)))


def asked_of(task: str, count: int, part: str) -> Examples:
    """Evaluation examples, the same for every seed."""
    return examples(task, count, 7, part)


def scores(joined: Answers, task: str, count: int) -> tuple[float, float]:
    """Exact match on `count` test and as many validation examples, answered together."""
    test, validation = (asked_of(task, count, part) for part in ("test", "validation"))
    answers = joined.answers([*test.prompts, *validation.prompts])
    return test.exact_match(answers[:count]), validation.exact_match(answers[count:])


def exact(models: Mapping[str, char_lm.CharLM], count: int) -> float:
    """Mean over the tasks of what each one's model answers alone, on test examples."""
    asked = {task: asked_of(task, count, "test") for task in models}
    return sum(asked[task].exact_match(Alone(model).answers(asked[task].prompts))
               for task, model in models.items()) / len(models)


def large_ft(large: char_lm.CharLM, config: Mapping[str, Any]) -> dict[str, Any]:
    """The large model fine-tuned as ``config`` says, ``at_once`` or by task; what it answers alone before and after.

    ``models`` are by task, ``ends`` the two shares of right answers.
    """
    tune = generalist if config["at_once"] else specialists
    made = tune(large, config["share"], config["lr"], config["seed"])
    return {"models": made, "ends": [exact(side, config["asked"]) for side in (dict.fromkeys(made, large), made)]}


def closure(fused: float, large: float, large_tuned: float) -> float:
    """Share of the gap that fusion closes; not a number where the tuned large model is not above the large one."""
    gap = large_tuned - large
    return (fused - large) / gap if gap > 0 else math.nan


def summary(found: Mapping[str, tuple[float, float]], ends: Sequence[float] | None) -> dict[str, float]:
    """Means over tasks of their `scores`; `ends` are what the large model answers alone before and after tuning."""
    test, validation = (sum(side) / len(found) for side in zip(*found.values(), strict=True))
    return {"exact": test, "validation_exact": validation, "closure": closure(test, *ends) if ends else math.nan}


def used(recorders: Sequence[Recorder]) -> dict[str, float]:
    """Mean of the weights over steps and prompts, and the share of steps whose shift is out of reach."""
    values = [part.flatten() for recorder in recorders for part in recorder.values] or [torch.zeros(1)]
    capped = [part.flatten() for recorder in recorders for part in recorder.capped] or [torch.zeros(1)]
    return {"alpha": float(torch.cat(values).mean()), "capped": float(torch.cat(capped).float().mean())}


def taken(joined: Answers, expert: int) -> list[float]:
    """At each recorded step, how often the largest weight was `expert`'s."""
    if not isinstance(joined, Fusion) or not isinstance(joined.weigh, Recorder):
        return []
    return [float((values.argmax(0) == expert).float().mean()) for values in joined.weigh.values]
