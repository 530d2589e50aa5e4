"""The one training loop, and the batches it eats. Every trained arm of every suite goes through `train`."""

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from reference.testbeds.seeding import generator
from reference.testbeds.text import Corpus

Batch = tuple[Tensor, ...]
Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Batches:
    """An endless stream of training batches and a fixed set of validation batches.

    `iter(batches)` starts the stream anew: equal seeds give equal batches, however often they are drawn. A batch is the
    tuple of arguments of `model.loss`; its first tensor has the batch on axis 0.
    """

    stream: Callable[[], Iterator[Batch]]
    validation: tuple[Batch, ...]
    digest: str

    def __iter__(self) -> Iterator[Batch]:
        return self.stream()


@dataclass(frozen=True)
class History:
    """What one training run left behind; all of it but `seconds` is a function of the arguments and the seeds.

    `train_loss[i]` is the loss of batch i before step i. `curve` holds (steps done, validation loss), the last entry
    being the end of training. A `failed` run has `val_loss` infinity and ends at the step that went wrong.
    """

    train_loss: list[float]
    val_loss: float
    curve: list[tuple[int, float]]
    failed: bool
    seconds: float
    data_digest: str = field(default="")


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule | None,
    steps: int,
    *,
    clip: float | None = None,
    evaluate_every: int | None = None,
    loss_limit: float = math.inf,
    on_gradients: Callable[[int, dict[str, Tensor]], None] | None = None,
    before_step: Callable[[int], None] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> History:
    """Take `steps` steps on `model.loss(*batch)` and return the history; the model ends as the last step left it.

    Each group's learning rate is `group["initial_lr"]` (its `lr` at the first call) times `schedule(step)`, the first
    step being 0; None leaves the rates alone. `clip` bounds the global gradient norm. Validation loss is taken after
    the last step, and every `evaluate_every` steps if given. Training stops at once, as failed, when a training loss is
    not finite or above `loss_limit`, or a validation loss is not finite.

    Hooks, called with the step's number: `before_step` before the forward pass, `on_gradients` with the raw gradients
    by parameter name (before clipping; parameters without one are left out), `after_step` after the optimizer.

    On a CPU with one thread equal arguments give bit-equal metrics, in one process and across processes. The global
    random state is neither read nor changed. Batches are moved to the device of the model's parameters.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    began_ns = time.perf_counter_ns()
    device = next(model.parameters()).device
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    train_loss: list[float] = []
    curve: list[tuple[int, float]] = []
    failed = False
    model.train()
    stream = iter(batches)
    for step in range(steps):
        if before_step is not None:
            before_step(step)
        if schedule is not None:
            factor = schedule(step)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(*(part.to(device) for part in next(stream)))
        train_loss.append(loss.item())
        failed = not math.isfinite(train_loss[-1]) or train_loss[-1] > loss_limit
        if failed:
            break
        loss.backward()
        if on_gradients is not None:
            on_gradients(step, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        if clip is not None:
            nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        if after_step is not None:
            after_step(step)
        if step + 1 == steps or (evaluate_every is not None and (step + 1) % evaluate_every == 0):
            curve.append((step + 1, evaluate(model, batches.validation)))
            failed = not math.isfinite(curve[-1][1])
            if failed:
                break
    return History(
        train_loss=train_loss,
        val_loss=math.inf if failed else curve[-1][1],
        curve=curve,
        failed=failed,
        seconds=(time.perf_counter_ns() - began_ns) / 1e9,
        data_digest=batches.digest,
    )


@torch.no_grad()
def evaluate(model: nn.Module, batches: tuple[Batch, ...]) -> float:
    """Mean of `model.loss` over the batches, weighted by their sizes, in evaluation mode; the mode is restored."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    total, rows = 0.0, 0
    for batch in batches:
        total += model.loss(*(part.to(device) for part in batch)).item() * len(batch[0])
        rows += len(batch[0])
    model.train(was_training)
    return total / rows


def warmup_cosine(steps: int, warmup: float = 0.1, floor: float = 0.1) -> Schedule:
    """Linear warm-up to 1 over the first `warmup` share of the steps, then half a cosine to `floor` at the last."""
    rising = round(warmup * steps)
    falling = max(1, steps - 1 - rising)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        progress = min(1.0, (step - rising) / falling)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def text_batches(
    corpus: Corpus, batch: int, context: int, seed: int, validation_windows: int = 256, validation_batch: int = 64
) -> Batches:
    """Random windows of `context + 1` characters, int64 [batch, context + 1]: inputs and, one further, targets.

    Validation windows do not depend on batch and seed: they are spread evenly over the validation text, without
    overlap, `validation_windows` of them or as many as fit. Raises ValueError when a side is shorter than one window.
    """
    length = context + 1
    if min(len(corpus.train), len(corpus.validation)) < length:
        raise ValueError(f"a window of {length} characters does not fit into both sides of corpus {corpus.name}")
    offsets = torch.arange(length)
    fitting = len(corpus.validation) // length
    count = min(validation_windows, fitting)
    starts = torch.arange(count) * fitting // count * length
    windows = corpus.validation[starts[:, None] + offsets].long()

    def stream() -> Iterator[Batch]:
        random = generator("text_batches", seed)
        while True:
            starts = torch.randint(len(corpus.train) - context, (batch, 1), generator=random)
            yield (corpus.train[starts + offsets].long(),)

    return Batches(stream, tuple((part,) for part in windows.split(validation_batch)), corpus.digest)


def array_batches(
    x: Tensor, y: Tensor, batch: int, seed: int, validation: tuple[Tensor, Tensor], validation_batch: int = 512
) -> Batches:
    """Batches (x, y) of `batch` rows: every epoch visits the rows in a new order and leaves the ragged rest out.

    `validation` is the pair of held-out arrays. Raises ValueError when a batch is larger than the array.
    """
    if not 1 <= batch <= len(x):
        raise ValueError(f"batch must lie in 1..{len(x)}, the number of training rows, not {batch}")

    def stream() -> Iterator[Batch]:
        random = generator("array_batches", seed)
        while True:
            order = torch.randperm(len(x), generator=random)
            for rows in order[: len(x) // batch * batch].split(batch):
                yield x[rows], y[rows]

    held_out = zip(validation[0].split(validation_batch), validation[1].split(validation_batch), strict=True)
    return Batches(stream, tuple(held_out), array_digest(x, y, *validation))


def array_digest(*arrays: Tensor) -> str:
    """SHA-256 of the arrays' types, shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
