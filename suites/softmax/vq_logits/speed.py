"""The speed experiment: logits, log Z and target log probabilities with all rows, scattered codes, or codes alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.declare.suite import Arm, Problem
from harness.run.measure.threads import thread_count
from reference.methods.softmax import vq_logits as vq
from reference.methods.softmax import vq_logits_numba
from reference.testbeds.seeding import fill_normal, generator

SHARE = 0.01  # codes per word
CHUNK = 64  # rows whose scattered truth is in memory at once


def logits_problem(point: Mapping[str, Any], device: str) -> Problem:
    """Arms write log p(target) [rows] and logits [rows, V], or [rows, K] where they stop at the codes.

    The full head has the codebook's row for each word, so all arms have the same right answer.
    """
    words, width = map(int, point["shape"].split("x"))
    rows, count = point["rows"], max(2, round(SHARE * words))
    codes = vq.random_codes(words, count, generator("speed", words))
    codebook = torch.empty(count, width)
    fill_normal(codebook, width**-0.5, "speed", words, width)
    of, book, weight = codes.of.to(device), codebook.to(device), codebook[codes.of].to(device)

    def inputs(random: np.random.Generator) -> tuple[Tensor, Tensor]:
        hidden = torch.from_numpy(random.standard_normal((rows, width), dtype=np.float32))
        return hidden.to(device), torch.from_numpy(random.integers(words, size=rows)).to(device)

    def truth(hidden: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
        head = vq.VQHead(codebook.double(), codes)
        with torch.no_grad():
            log_p = head.target_log_probabilities(hidden.double(), targets)
        return log_p.numpy(), (hidden.double() @ codebook.double().T).numpy()

    def room(columns: int) -> Callable[..., tuple[Tensor, Tensor]]:
        return lambda *_: (torch.empty(rows, device=device), torch.empty(rows, columns, device=device))

    read = 4.0 * (count * width + rows * width + rows * count)
    costs = {
        "dense": (4.0 * (words * width + rows * width + 3 * rows * words), 2.0 * rows * words * width),
        "scatter": (read + 8.0 * words + 4.0 * 3 * rows * words, 2.0 * rows * count * width),
        "scatter_numba": (read + 2.0 * words + 4.0 * rows * words, 2.0 * rows * count * width),
        "codes": (read, 2.0 * rows * count * width),
    }
    runs = {
        "dense": dense(weight),
        "scatter": scatter(book, of),
        "scatter_numba": scatter_numba(codebook, codes, thread_count(point.get("threads", 1))),
        "codes": by_codes(book, of, count),
    }
    return Problem(
        inputs=inputs,
        buffers=room(words),
        truth=truth,
        error=lambda found, right: error_of(found, right, codes.of.numpy()),
        arms={name: Arm(run, *costs[name], buffers=room(count) if name == "codes" else None)
              for name, run in runs.items() if device == "cpu" or name != "scatter_numba"},
        input_bytes=4 * rows * width,
        tolerance=1e-4,
    )


def dense(weight: Tensor) -> Callable[..., None]:
    """All rows of a full head [V, d]."""

    def run(hidden: Tensor, targets: Tensor, log_p: Tensor, logits: Tensor) -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.sub(logits.gather(1, targets[:, None])[:, 0], logits.logsumexp(1), out=log_p)

    return run


def scatter(codebook: Tensor, of: Tensor) -> Callable[..., None]:
    """As the paper has it: code logits, copied to all words, then a softmax over the words."""

    def run(hidden: Tensor, targets: Tensor, log_p: Tensor, logits: Tensor) -> None:
        torch.index_select(hidden @ codebook.T, 1, of, out=logits)
        torch.sub(logits.gather(1, targets[:, None])[:, 0], logits.logsumexp(1), out=log_p)

    return run


def scatter_numba(codebook: Tensor, codes: vq.Codes, threads: int) -> Callable[..., None]:
    """The same logits by one loop; log Z needs the code logits alone."""
    of, sizes = vq_logits_numba.compact_map(codes.of.numpy(), codes.count), codes.sizes().float().log()

    def run(hidden: Tensor, targets: Tensor, log_p: Tensor, logits: Tensor) -> None:
        found = hidden @ codebook.T
        vq_logits_numba.scatter(found.numpy(), of, logits.numpy(), threads)
        torch.sub(logits.gather(1, targets[:, None])[:, 0], found.add_(sizes).logsumexp(1), out=log_p)

    return run


def by_codes(codebook: Tensor, of: Tensor, count: int) -> Callable[..., None]:
    """No work of the size of the vocabulary: enough to train, and to score a given word."""
    sizes = torch.bincount(of, minlength=count).float().log()

    def run(hidden: Tensor, targets: Tensor, log_p: Tensor, logits: Tensor) -> None:
        torch.mm(hidden, codebook.T, out=logits)
        torch.sub(logits.gather(1, of[targets][:, None])[:, 0], (logits + sizes).logsumexp(1), out=log_p)

    return run


def error_of(found: tuple[Any, Any], right: tuple[np.ndarray, np.ndarray], of: np.ndarray) -> float:
    """The largest distance of a log probability or a logit, over the largest logit; infinite for a wrong shape."""
    log_p, logits = found[0].double().numpy(), found[1].numpy()
    if not np.isfinite(log_p).all() or logits.shape[1] not in (len(of), right[1].shape[1]):
        return float("inf")
    worst = float(np.abs(log_p - right[0]).max())
    for start in range(0, len(logits), CHUNK):
        rows = right[1][start : start + CHUNK]
        expected = rows[:, of] if logits.shape[1] == len(of) else rows
        worst = max(worst, float(np.abs(logits[start : start + CHUNK] - expected).max()))
    return worst / float(np.abs(right[1]).max()) if np.isfinite(worst) else float("inf")
