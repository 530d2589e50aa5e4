"""Error rates and power of ``litmus ab``'s stopping rule, by simulation over recorded and synthetic noise.

``ci/stopping_rates.py [RUN] [TRIALS]`` resamples the speed cells of a stored run (its folder; the newest by default)
and draws synthetic traces, plants slowdowns of 0, 3 and 5 %, and prints how often each kind of noise is called what and
after how many process pairs. Ends with 1 where more than 1 % of equal sides are said to differ.

Every kind of noise is a function (rng, trials, pairs, rounds) -> log(head / base) of equal sides, as an array of those
sizes. A process pair is two fresh processes; a round is base, head, head, base or the reverse, and its ratio is that
of the sides' medians over their two turns.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.judge.compare import Sequential
from harness.judge.stats.bootstrap import Floats
from harness.records.store import COLUMNS, load_records

Noise = Callable[[np.random.Generator, int, int, int], Floats]
EFFECTS, ROUNDS, TRIALS, ALLOWED = (0.0, 0.03, 0.05), 10, 2000, 0.01
SLOW = math.log(1.8)  # the slow state of a virtual CPU with two speeds


def plain(process: float, within: float, freedom: float = 4.0) -> Noise:
    """Normal effects of a process pair, rounds with a t distribution's tails; both given as standard deviations."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        tails = rng.standard_t(freedom, (trials, pairs, rounds)) * within / math.sqrt(freedom / (freedom - 2))
        return rng.normal(0, process, (trials, pairs, 1)) + tails

    return draw


def of_turns(rng: np.random.Generator, turns: Floats) -> Floats:
    """log ratio of each round from log times [..., rounds, 4] in order of time, base or head first at random.

    The median of two times is their mean.
    """
    outer, inner = (np.log(np.exp(turns[..., pick]).mean(axis=-1)) for pick in ([0, 3], [1, 2]))
    return np.asarray((inner - outer) * rng.choice([-1.0, 1.0], outer.shape))


def two_speed(switch: float) -> Noise:
    """A CPU with two speeds that switches with probability ``switch`` a turn, whichever side runs."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        flips = rng.random((trials, pairs, rounds * 4)) < switch
        flips[..., 0] = rng.random((trials, pairs)) < 0.5
        state = np.cumsum(flips, axis=-1) % 2
        within = rng.random(state.shape)  # the switch comes somewhere inside the turn
        share = np.where(flips, np.where(state == 1, within, 1 - within), state)
        turns = np.log1p(share * math.expm1(SLOW)) + rng.normal(0, 0.01, state.shape)
        return of_turns(rng, turns.reshape(trials, pairs, rounds, 4)) + rng.normal(0, 0.005, (trials, pairs, 1))

    return draw


def one_side(share: float) -> Noise:
    """The slow speed hits one side's turns alone in a ``share`` of the rounds."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        hit = rng.random((trials, pairs, rounds)) < share
        sign = rng.choice([-1.0, 1.0], hit.shape)
        return plain(0.005, 0.01)(rng, trials, pairs, rounds) + hit * sign * SLOW

    return draw


def layouts(step: float, share: float, within: float = 0.005) -> Noise:
    """A ``share`` of processes is slower by ``step``, by the luck of their memory layout: bimodal processes."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        unlucky = (rng.random((trials, pairs, 1, 2)) < share) @ np.array([1.0, -1.0])
        return step * unlucky + plain(0.001, within)(rng, trials, pairs, rounds)

    return draw


def bimodal_rounds(step: float) -> Noise:
    """Each side's time in a round has two modes ``step`` apart, independently."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        modes = rng.integers(0, 2, (trials, pairs, rounds, 2)) @ np.array([1.0, -1.0])
        return step * modes + plain(0.003, 0.005)(rng, trials, pairs, rounds)

    return draw


def drifting(rate: float, walk: float) -> Noise:
    """The machine slows down by ``rate`` a round and walks at random by ``walk`` a turn."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        turns = np.cumsum(rate / 4 + walk * rng.standard_normal((trials, pairs, rounds * 4)), axis=-1)
        return of_turns(rng, turns.reshape(trials, pairs, rounds, 4)) + rng.normal(0, 0.005, (trials, pairs, 1))

    return draw


SYNTHETIC: Mapping[str, Noise] = {
    "quiet": plain(0.002, 0.005), "usual": plain(0.005, 0.015), "loud": plain(0.01, 0.03),
    "heavy tails": plain(0.005, 0.03, 2.2),
    "two speeds, rare": two_speed(0.02), "two speeds, often": two_speed(0.15),
    "one side hit, 10 %": one_side(0.1), "one side hit, 30 %": one_side(0.3),
    "layouts, 3 % half": layouts(0.03, 0.5), "layouts, 6 % half": layouts(0.06, 0.5),
    "layouts, 8 % of 10 %": layouts(0.08, 0.1), "layouts, 6 % half, still": layouts(0.06, 0.5, 0.0005),
    "bimodal rounds": bimodal_rounds(0.05), "drift": drifting(0.01, 0.005),
}


def per_round(record: Any) -> Floats:
    """log time per call [processes, rounds] of a record, the median over a round's samples; NaN where there is none."""
    rows = pd.DataFrame({"process": record.samples_process, "round": record.samples_round, "time":
                         np.asarray(record.samples_elapsed_ns) / np.asarray(record.samples_calls)})
    return np.log(rows.groupby(["process", "round"])["time"].median().unstack().to_numpy(float))


def recorded_ratios(run: Path) -> tuple[list[Floats], list[Floats]]:
    """(the canary's, the other cells') log ratios of two arms timed in turns, [processes, rounds] each.

    The canary's arms are equal code. Of other cells, each arm with each; only how a ratio varies is used.
    """
    table = load_records(run, COLUMNS)
    table = table[(table["kind"] == "speed") & (table["status"] == "ok")]
    canary, other = [], []
    for (suite, _, _), cell in table.groupby(["suite", "cell", table["started_at"].round(-1)], observed=True):
        times = [per_round(record) for record in cell.itertuples()]
        ratios = [a - b for i, a in enumerate(times) for b in times[:i] if a.shape == b.shape and len(a) > 1]
        (canary if suite == "litmus/canary" else other).extend(ratios)
    return canary, other


def resampled(ratios: list[Floats]) -> Noise:
    """Each trial takes one recorded pair of arms; a process pair is the difference of two of its processes.

    That difference of two interleaved ratios is symmetric about 0 by construction, and varies as the recorded processes
    and rounds do, by a factor sqrt(2) more. Processes and, inside them, rounds are drawn with replacement.
    """

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        found = np.empty((trials, pairs, rounds))
        for trial in range(trials):
            own = ratios[rng.integers(len(ratios))]
            process = rng.integers(0, len(own), (2, pairs, 1))
            counts = np.isfinite(own).sum(axis=1)[process]
            picked = own[process, (rng.random((2, pairs, rounds)) * counts).astype(int)]
            found[trial] = picked[0] - picked[1]
        return found

    return draw


def as_measured(ratios: list[Floats]) -> Noise:
    """A process pair is one recorded process of two equal arms, its sign at random; rounds drawn with replacement."""

    def draw(rng: np.random.Generator, trials: int, pairs: int, rounds: int) -> Floats:
        processes = np.concatenate(ratios)
        process = rng.integers(0, len(processes), (trials, pairs, 1))
        picked = processes[process, rng.integers(0, processes.shape[1], (trials, pairs, rounds))]
        return picked * rng.choice([-1.0, 1.0], (trials, pairs, 1))

    return draw


def recorded(run: Path) -> dict[str, Noise]:
    """The kinds of noise of a stored run."""
    canary, other = recorded_ratios(run)
    kinds = {"canary": as_measured(canary), "canary, processes apart": resampled(canary), "all cells": resampled(other)}
    return {f"recorded: {name}": noise for name, noise in kinds.items()}


@dataclass(frozen=True)
class Rates:
    """What became of trials: the share of each word, and the process pairs measured until it was said."""

    words: Mapping[str, float]
    mean_pairs: float
    longest: int

    @property
    def changed(self) -> float:
        """The share said to have changed, in either direction."""
        return self.words.get("slower", 0.0) + self.words.get("faster", 0.0)


def stop(plan: Sequential, rounds: Floats) -> tuple[str, int]:
    """(word, process pairs) at which measuring stops; ``rounds`` [pairs, rounds] holds all that could be measured."""
    for pairs in plan.looks:
        decision = plan.look(rounds[:pairs])
        if decision is not None:
            return decision.word, pairs
    raise AssertionError("the last look decides")


def rates(noise: Noise, effect: float, plan: Sequential, trials: int, rounds: int = ROUNDS, seed: int = 0) -> Rates:
    """Rates over ``trials`` with a planted relative ``effect`` on the head."""
    rng = np.random.default_rng([4, seed])
    data = noise(rng, trials, plan.looks[-1], rounds) + math.log1p(effect)
    ends = [stop(plan, trial) for trial in data]
    counts = Counter(word for word, _ in ends)
    pairs = [pairs for _, pairs in ends]
    return Rates({word: count / trials for word, count in counts.items()}, float(np.mean(pairs)), max(pairs))


def newest(root: Path) -> Path:
    """The newest stored run below ``root``. Raises FileNotFoundError where there is none."""
    runs = sorted(root.glob("*/*/records.parquet"), key=lambda path: path.parent.name)
    if not runs:
        raise FileNotFoundError(f"no stored run below {root}")
    return runs[-1].parent


def main(arguments: list[str]) -> int:
    run = Path(arguments[0]) if arguments else newest(Path("results"))
    trials = int(arguments[1]) if len(arguments) > 1 else TRIALS
    plan = Sequential(0.01)
    worst = 0.0
    print(f"{trials} trials, {ROUNDS} rounds a process pair")
    print(f"{'noise':36s} effect  slower  faster    same  undecided  pairs")
    for name, noise in {**SYNTHETIC, **recorded(run)}.items():
        for effect in EFFECTS:
            found = rates(noise, effect, plan, trials)
            shares = [found.words.get(word, 0.0) for word in ("slower", "faster", "same", "inconclusive")]
            print(f"{name:36s} {effect:6.0%} {shares[0]:7.2%} {shares[1]:7.2%} {shares[2]:7.2%} {shares[3]:10.2%} "
                  f"{found.mean_pairs:6.1f}", flush=True)
            worst = max(worst, found.changed) if effect == 0 else worst
    print(f"the largest rate of false alarms: {worst:.2%} (at most {ALLOWED:.0%})")
    return 0 if worst <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
