"""Records as asv benchmarks: one benchmark for each metric of an experiment, its axes and arms as asv's parameters.

asv knows one direction, lower is better, so of a trial only such metrics are taken. Arms that ended ``skipped`` are
NaN, which is asv's word for it; arms that ended otherwise than ``ok`` are null, asv's word for a failure.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from harness.judge.stats.bootstrap import as_rounds, nested_interval
from harness.judge.stats.intervals import Bounds, t_interval
from harness.judge.tidy import objects

if TYPE_CHECKING:
    import pandas as pd

    from harness.declare.card import Experiment

LEVEL = 0.99  # asv's own
_SPEED = {"error": "error", "peak_bytes": "bytes"}
_SAMPLES = ("samples_process", "samples_round", "samples_calls", "samples_elapsed_ns")
COLUMNS = ("suite", "experiment", "kind", "arm", "point", "seed", "device", "status", "card_version", "started_at",
           "elapsed_ns", "metrics", "error", "peak_bytes", *_SAMPLES)

Setting = tuple[str, ...]
FindExperiment = Callable[[str, str], "Experiment | None"]


@dataclass(frozen=True)
class Value:
    """One number as asv keeps it. ``result`` is None for a failure, NaN for a skip; ``stats`` None without a spread."""

    result: float | None
    stats: Mapping[str, float] | None = None


@dataclass
class Series:
    """One asv benchmark on one device: ``values`` by setting, the reprs of the axes' values and of the arm.

    ``version`` is the card's: asv shows only results whose version is the newest one's.
    """

    name: str
    kind: Literal["time", "track"]
    unit: str
    version: str
    param_names: tuple[str, ...]
    code: str
    started_at: float = 0.0
    elapsed_ns: int = 0
    values: dict[Setting, Value] = field(default_factory=dict)

    @property
    def params(self) -> list[list[str]]:
        """The values of each parameter, numbers in order, texts as they came."""
        return [_ordered(dict.fromkeys(column)) for column in zip(*self.values, strict=True)]

    def grid(self) -> list[Value]:
        """A value for each combination of :attr:`params`, as asv orders them; what nobody asked for is skipped."""
        return [self.values.get(setting, Value(math.nan)) for setting in itertools.product(*self.params)]


def _ordered(texts: Mapping[str, Any] | Sequence[str]) -> list[str]:
    def place(text: str) -> tuple[bool, float]:
        try:
            return False, float(text)
        except ValueError:
            return True, 0.0

    return sorted(texts, key=place)


def series_of(records: pd.DataFrame, find: FindExperiment) -> dict[str, list[Series]]:
    """device -> the series of the records of one run. ``find(suite, experiment)`` gives the card's, None if unknown.

    Raises LitmusError where a record is damaged.
    """
    found: dict[str, list[Series]] = {}
    keys = ["device", "suite", "experiment", "kind", "card_version"]
    for key, table in records.groupby(keys, observed=True, sort=False):
        device, suite, experiment, kind, version = key
        start = _Start(str(suite), str(experiment), str(version), tuple(objects(table["point"].iloc[:1])[0]),
                       float(table["started_at"].min()), int(table["elapsed_ns"].sum()))
        made = _speed(table, start) if kind == "speed" else _trial(table, start, find(str(suite), str(experiment)))
        found.setdefault(str(device), []).extend(item for item in made if item.values)
    return found


@dataclass(frozen=True)
class _Start:
    suite: str
    experiment: str
    version: str
    axes: tuple[str, ...]
    started_at: float
    elapsed_ns: int

    def series(self, metric: str, kind: Literal["time", "track"], unit: str) -> Series:
        name = ".".join(["litmus", *self.suite.split("/"), self.experiment, metric])
        code = f"Measured by Litmus, see: litmus show {self.suite}"
        return Series(name, kind, unit, self.version, (*self.axes, "arm"), code, self.started_at, self.elapsed_ns)


def _settings(table: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[Setting, pd.DataFrame]]:
    """The rows of one point and arm together: they differ by seed."""
    names = [tuple(repr(point.get(axis)) for axis in axes) for point in objects(table["point"])]
    settings = [(*name, repr(str(arm))) for name, arm in zip(names, table["arm"], strict=True)]
    groups: dict[Setting, list[int]] = {}
    for index, setting in enumerate(settings):
        groups.setdefault(setting, []).append(index)
    for setting, rows in groups.items():
        yield setting, table.iloc[rows]


def _not_ok(rows: pd.DataFrame) -> Value | None:
    statuses = set(rows["status"].astype(str))
    if statuses == {"ok"}:
        return None
    return Value(math.nan if statuses <= {"ok", "skipped"} else None)


def _speed(table: pd.DataFrame, start: _Start) -> list[Series]:
    time = start.series("time", "time", "seconds")
    others = {name: start.series(name, "track", unit) for name, unit in _SPEED.items()}
    for setting, rows in _settings(table, start.axes):
        bad = _not_ok(rows)
        time.values[setting] = bad or _time(rows)
        for name, series in others.items():
            numbers = rows[name].to_numpy(float)
            known = numbers[np.isfinite(numbers)]  # a yardstick has no error
            series.values[setting] = bad or Value(float(known.max()) if len(known) else math.nan)
    return [time, *others.values()]


def _time(rows: pd.DataFrame) -> Value:
    """Seconds per call: the median over rounds, each the median of its samples; processes are the outer units."""
    values: list[float] = []
    processes: list[str] = []
    calls: list[float] = []
    for seed, *columns in zip(*(rows[name] for name in ("seed", *_SAMPLES)), strict=True):
        process, rounds, number, elapsed_ns = (np.asarray(column, float) for column in columns)
        each = elapsed_ns / number / 1e9
        calls += number.tolist()
        for unit in dict.fromkeys(zip(process, rounds, strict=True)):
            values.append(float(np.median(each[(process == unit[0]) & (rounds == unit[1])])))
            processes.append(f"{seed}/{unit[0]}")
    if not values:
        return Value(None)
    found = np.asarray(values)
    bounds = nested_interval(as_rounds(found, processes), LEVEL)
    return Value(float(np.median(found)), _stats(found, bounds, int(np.median(calls))))


def _stats(values: np.ndarray[Any, np.dtype[np.float64]], bounds: Bounds, number: int) -> dict[str, float]:
    low, high = np.quantile(values, [0.25, 0.75])
    stats = {"q_25": float(low), "q_75": float(high), "number": number, "repeat": len(values)}
    if all(map(math.isfinite, bounds)):
        stats |= {"ci_99_a": bounds[0], "ci_99_b": bounds[1]}
    return stats


def _trial(table: pd.DataFrame, start: _Start, card: Experiment | None) -> list[Series]:
    """The mean over seeds of each metric that is better when lower."""
    if card is None:
        return []
    wanted = {name: start.series(name, "track", metric.unit or name) for name, metric in card.metrics.items()
              if metric.better == "lower" and not metric.series}
    for setting, rows in _settings(table, start.axes):
        bad, metrics = _not_ok(rows), objects(rows["metrics"])
        for name, series in wanted.items():
            numbers = np.array([_number(item.get(name)) for item in metrics])
            mean = float(numbers.mean()) if np.isfinite(numbers).all() else None
            series.values[setting] = bad or Value(mean, _stats(numbers, t_interval(numbers, LEVEL), 1)
                                                  if mean is not None and len(numbers) > 1 else None)
    return list(wanted.values())


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
