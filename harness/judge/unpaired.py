"""Times of two stored runs: taken at different moments, so processes are independent samples, never pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.errors import LitmusError
from harness.judge.compare import Decision, speed_word
from harness.judge.stats.bootstrap import Floats
from harness.judge.stats.intervals import UNBOUNDED, around

if TYPE_CHECKING:
    import pandas as pd

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rounds:
    """Log ns per call of every (record, process, round): the median over the samples of the round.

    ``row`` is the record's place in the table that it was read from; entries are sorted by row, process and round.
    """

    row: Ints
    process: Ints
    round: Ints
    log_ns: Floats


def read_rounds(samples: pd.DataFrame) -> Rounds:
    """The rounds in the sample columns of speed records. Raises LitmusError where they do not fit together."""
    names = [f"samples_{name}" for name in ("process", "round", "calls", "elapsed_ns")]
    lengths = np.array([[-1 if items is None else len(items) for items in samples[name]] for name in names], dtype=int)
    if lengths.size and ((lengths != lengths[0]).any() or (lengths < 0).any()):
        raise LitmusError("a record is damaged", key="samples", value="lists of different lengths",
                          expected="one process, round, calls and time for each sample",
                          next_step="make the run again with: litmus run")
    process, index, calls, elapsed_ns = (_joined(samples[name]) for name in names)
    row = np.repeat(np.arange(len(samples)), lengths[0] if len(samples) else 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_ns = np.log(elapsed_ns / calls)
    return Rounds(*_medians([row, process, index], log_ns))


def _joined(lists: Iterable[Any]) -> Ints:
    return np.concatenate([np.asarray(items, np.int64) for items in lists] or [np.empty(0, np.int64)])


def _medians(keys: list[Ints], values: Floats) -> tuple[Ints, Ints, Ints, Floats]:
    """Each distinct combination of three ``keys``, in order, with the median of its values; NaN where one is NaN."""
    order = np.lexsort((values, *reversed(keys)))  # NaN sorts last
    keys, values = [key[order] for key in keys], values[order]
    if not len(values):
        return keys[0], keys[1], keys[2], values
    new = np.flatnonzero(np.r_[True, np.any([key[1:] != key[:-1] for key in keys], axis=0)])
    count = np.diff(np.r_[new, len(values)])
    middle = (values[new + (count - 1) // 2] + values[new + count // 2]) / 2
    last = values[new + count - 1]
    return keys[0][new], keys[1][new], keys[2][new], np.where(np.isnan(last), np.nan, middle)


@dataclass(frozen=True)
class Spread:
    """Per record: the mean over its processes of the median over rounds, the variance between them, their number."""

    mean: Floats
    variance: Floats
    count: Ints


def process_spread(rounds: Rounds, values: Floats, rows: int) -> Spread:
    """The spread of ``values``, one for each round, over the processes of each of ``rows`` records."""
    known = ~np.isnan(values)
    row, _, _, middle = _medians([rounds.row[known], rounds.process[known], np.zeros(known.sum(), np.int64)],
                                 values[known])
    count = np.bincount(row, minlength=rows)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(row, middle, rows) / count
        variance = np.bincount(row, (middle - mean[row]) ** 2, rows) / (count - 1)
    return Spread(mean, variance, count)


def relative_to(rounds: Rounds, place: Ints, reference: npt.NDArray[np.bool_]) -> Floats:
    """Each round's log time over the geometric mean of the references of the same place, process and round.

    ``place`` tells the cell of each record and ``reference`` which records are references. NaN where a cell has no
    reference, or a round lacks one of them: then the machine's speed does not cancel.
    """
    keys, inverse = np.unique(np.stack([place[rounds.row], rounds.process, rounds.round]), axis=1, return_inverse=True)
    inverse = inverse.ravel()
    taken = reference[rounds.row]
    count = np.bincount(inverse[taken], minlength=keys.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.bincount(inverse[taken], rounds.log_ns[taken], keys.shape[1]) / count
    needed = np.bincount(place[reference], minlength=place.max(initial=0) + 1)
    complete = (count == needed[keys[0]]) & (count > 0) if keys.size else np.zeros(0, bool)
    return np.asarray(rounds.log_ns - np.where(complete, mean, np.nan)[inverse])


def decide_unpaired(base: tuple[float, float, int], head: tuple[float, float, int], zone: float,
                    level: float) -> Decision:
    """Whether head is slower, from (mean, variance, number) of the processes' median log times of each side.

    The interval of the difference of means is Welch's: the sides are independent and need not be equally unsteady. With
    three processes a side it is some three times as wide as that of rounds in step; a run's own processes also know
    nothing of what changed between the runs, so give times relative to an arm whose code is the same, or a zone that
    holds what the machine's speed changed by.
    """
    (mean_b, var_b, n_b), (mean_h, var_h, n_h) = base, head
    count = min(n_b, n_h)
    center = mean_h - mean_b
    if not math.isfinite(center) and count:
        return Decision("inconclusive", "undefined", None, None, None, level, count, "process",
                        "a time is zero or not finite")
    if count < 2:
        return Decision("inconclusive", "few_units", math.expm1(center) if count else None, None, None, level, count,
                        "process", f"{count} process a side gives no interval")
    total = var_b / n_b + var_h / n_h
    share = var_b / n_b / total if total > 0 else 1.0
    freedom = 1 / (share**2 / (n_b - 1) + (1 - share) ** 2 / (n_h - 1))
    bounds = around(center, total, freedom, level) if math.isfinite(total) else UNBOUNDED
    return speed_word(center, *bounds, zone, level, count)
