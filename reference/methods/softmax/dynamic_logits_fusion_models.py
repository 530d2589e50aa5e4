"""Small and large character models, tuned on tasks, and what they answer when their logits are fused."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from reference.methods.softmax import dynamic_logits_fusion as fusion
from reference.methods.softmax.dynamic_logits_fusion_numba import alphas as alphas_by_numba
from reference.testbeds import char_lm, text, training
from reference.testbeds.decoding import generate, padded, reader
from reference.testbeds.seeding import generator
from reference.testbeds.tasks import Examples, OnAnswers, dosed, examples, mixture, rows, task_batches

CONTEXT = 32
WIDTH = 30  # the longest line is a date's
MAX_NEW = 12
BATCH = 32
DOSE = 0.4
POOL = 4096  # training examples of a task
BASE_LR, EXPERT_LR = 0.004, 0.004

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
    optimizer = torch.optim.AdamW(model.parameters(), lr=BASE_LR)
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
    optimizer = torch.optim.AdamW(copy.parameters(), lr=lr)
    training.train(OnAnswers(copy), batches, optimizer, training.warmup_cosine(steps), steps, clip=1.0)
    return copy.eval()


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


def alone(model: char_lm.CharLM) -> Fusion:
    """One model without any expert's influence."""
    return Fusion(model, model, (model,), static(0.0))


def shuffled(joined: Fusion, prompts: Sequence[str], seed: int) -> list[str]:
    """Answers with the weights that `joined` used, each row's in a random order of its steps: the control."""
    recorder = Recorder(joined.weigh)
    answers = Fusion(joined.large, joined.small, joined.experts, recorder).answers(prompts)
    used, random, step = torch.stack(recorder.values), generator("shuffled", seed), 0
    counts = [min(len(answer), len(used)) for answer in answers]
    orders = [torch.randperm(count, generator=random) for count in counts]

    def weigh(log_large: Tensor, shifts: Tensor, targets: Tensor) -> fusion.Alphas:
        nonlocal step
        values = torch.stack([used[order[step % len(order)], :, row] for row, order in enumerate(orders)], dim=-1)
        step += 1
        return fusion.Alphas(values, torch.zeros_like(values, dtype=torch.bool))

    return Fusion(joined.large, joined.small, joined.experts, weigh).answers(prompts)


@dataclass(frozen=True)
class Checkpoints:
    """One fine-tuning seed: small experts and large models tuned alike, by task."""

    experts: Mapping[str, char_lm.CharLM]
    large_tuned: Mapping[str, char_lm.CharLM]


def best_static(
    large: char_lm.CharLM, small: char_lm.CharLM, expert: char_lm.CharLM, asked: Examples, grid: Sequence[float]
) -> float:
    """The fixed alpha with the most exact matches on validation examples; the least of equals."""
    def score(alpha: float) -> float:
        return asked.exact_match(Fusion(large, small, (expert,), static(alpha)).answers(asked.prompts))

    return max(grid, key=score)


def asked_of(tasks: Sequence[str], count: int, part: str) -> dict[str, Examples]:
    """Evaluation examples by task, the same for every seed."""
    return {task: examples(task, count, 7, part) for task in tasks}
