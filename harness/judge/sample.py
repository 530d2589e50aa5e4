"""A sample: one value per independent unit, and what may be said about its centre.

Trials: the centre is the mean, the unit the seed. Speed: the centre is the median over rounds, the unit the round
inside its process; ``error`` and ``peak_bytes`` are one number per cell and have no spread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from harness.judge.stats.bootstrap import Floats, as_rounds, nested_interval
from harness.judge.stats.intervals import UNBOUNDED, Bounds, t_interval

if TYPE_CHECKING:
    import pandas as pd

    from harness.declare.card import Experiment

TIMED = ("time", "bandwidth", "flop_rate")
Shape = Literal["clusters", "rounds", "constants"]


class NotEstimable(Exception):
    """The records cannot answer the question; the message says why and becomes the reason of ``not run``."""


@dataclass(frozen=True)
class Sample:
    """Values of independent units. ``shape`` says how they vary: seeds or other clusters, rounds inside ``processes``,
    or one constant per cell."""

    values: Floats
    processes: Floats
    shape: Shape
    unit: str

    @property
    def n(self) -> int:
        """How many independent values there are."""
        return len(self.values)

    @property
    def defined(self) -> bool:
        """Whether every value is a finite number."""
        return bool(np.isfinite(self.values).all())

    @property
    def center(self) -> float:
        """The mean of clusters, the median of rounds and constants; NaN when a value is not finite."""
        if not self.defined:
            return math.nan
        ordered = np.sort(self.values)
        return float(ordered.mean() if self.shape == "clusters" else np.median(ordered))

    def bounds(self, level: float) -> Bounds:
        """The interval of :attr:`center`; unbounded when a value is not finite."""
        if not self.defined:
            return UNBOUNDED
        if self.shape == "clusters":
            return t_interval(self.values, level)
        if self.shape == "rounds":
            return nested_interval(as_rounds(self.values, self.processes), level)
        return float(self.values.min()), float(self.values.max())

    @property
    def method(self) -> str:
        """How the interval is made, for the report."""
        if self.shape == "clusters":
            return f"t interval over {self.n} {self.unit}s"
        if self.shape == "constants":
            return "one number per cell, no spread known"
        count = len(np.unique(self.processes))
        if count == 1:
            return "order statistics of the rounds of one process; nothing is known of other processes"
        return f"nested bootstrap and random effects over {count} processes"


@dataclass(frozen=True)
class Units:
    """Pairing units: ``keys`` has a row per unit (cell, seed, process, unit, axes), ``values`` an array per arm."""

    keys: pd.DataFrame
    values: dict[str, Floats]


def units_of(table: pd.DataFrame, metric: str, arms: Sequence[str], experiment: Experiment) -> Units:
    """The units of ``arms``, every unit with a value of ``metric`` for each arm.

    Raises NotEstimable when the metric is not there, or a unit lacks one of the arms.
    """
    if metric not in table.columns:
        raise NotEstimable(f"the records hold no metric '{metric}'")
    if experiment.kind == "trial" and experiment.metrics[metric].series:
        raise NotEstimable(f"metric '{metric}' is a series; a custom estimate may reduce it to a number")
    mine = table[table["arm"].isin(arms)]
    if experiment.kind == "speed" and metric not in TIMED:
        mine = mine.drop_duplicates(["cell", "arm"])
    if mine.empty:
        raise NotEstimable(f"no cell has a value of '{metric}'")
    names = mine["cell"].astype(str) + " " + mine["unit"].astype(str)
    _, first, index = np.unique(names.to_numpy().astype(str), return_index=True, return_inverse=True)
    values = {}
    for arm in arms:
        own = (mine["arm"] == arm).to_numpy()
        counts = np.bincount(index[own], minlength=len(first))
        if counts.min() == 0:
            raise NotEstimable(f"arm '{arm}' lacks {int((counts == 0).sum())} of {len(first)} pairing units")
        if counts.max() > 1:
            raise NotEstimable(f"a pairing unit has {counts.max()} values of '{metric}' for arm '{arm}'")
        values[arm] = np.empty(len(first))
        values[arm][index[own]] = mine[metric].to_numpy(float)[own]
    keys = mine.iloc[first][["cell", "unit", "seed", "process", *experiment.axes]]
    return Units(keys.reset_index(drop=True), values)


def to_sample(
    values: Floats, keys: pd.DataFrame, experiment: Experiment, metric: str, unit: str | None = None
) -> Sample:
    """The sample of one value per row of ``keys``; values of one independent unit at several points are averaged.

    ``unit`` names the independent unit of trials: an axis, ``cell`` (each cell by itself) or ``seed``, the default.
    """
    if experiment.kind == "speed":
        if metric not in TIMED:
            return Sample(values, np.zeros(len(values)), "constants", "cell")
        process = keys["cell"].astype(str) + " " + keys["process"].astype(str)
        return Sample(values, process.to_numpy().astype(str), "rounds", "round")
    name = unit or "seed"
    if name not in keys.columns:
        raise NotEstimable(f"unit '{name}' is neither an axis nor seed nor cell")
    _, index = np.unique(keys[name].astype(str).to_numpy().astype(str), return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    return Sample(sums / counts, np.zeros(len(counts)), "clusters", name)
