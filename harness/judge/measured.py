"""One run's records as numbers by place: a time, a time relative to peers, an error, or a metric's mean over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.declare.card import Card
from harness.declare.gate import compared_metrics
from harness.judge.paired import read_objects
from harness.judge.stats.bootstrap import Floats
from harness.judge.stats.intervals import t_interval
from harness.judge.unpaired import Rounds, read_rounds, relative_to
from harness.records.shapes import number
from harness.records.table import SAMPLE_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

CANARY = "litmus/canary"
RATIO = "time_to_peers"
COLUMNS = ("cell", "suite", "experiment", "kind", "arm", "point", "seed", "device", "status", "card_version", "data",
           "attempt", "started_at", "error", "metrics", *SAMPLE_COLUMNS)
_PLACE = ["suite", "experiment", "arm", "point", "device"]


@dataclass(frozen=True)
class Place:
    """What a series is about: ``point`` is JSON text with its axes in order of name."""

    machine: str
    profile: str
    suite: str
    experiment: str
    point: str
    arm: str
    device: str
    metric: str

    @property
    def axes(self) -> dict[str, Any]:
        """The point as a mapping."""
        found: dict[str, Any] = json.loads(self.point)
        return found


@dataclass(frozen=True)
class Measured:
    """A number of one run with its interval over ``n`` independent units; low and high are None where there is none.

    Times are in ns a call. ``cut`` tells what must be equal for two numbers to be compared; ``peer_log_ns`` is the
    mean log time of the peers that ran beside it.
    """

    center: float
    low: float | None
    high: float | None
    n: int
    unit: str
    cut: Hashable
    ours: bool = True
    peer_log_ns: float | None = None


def measured(
    records: pd.DataFrame, machine: str, profile: str, cards: Mapping[str, Card], level: float
) -> Iterator[tuple[Place, Measured]]:
    """Every number of a run whose record ended ``ok``; of cells tried again, the last attempt speaks.

    Raises LitmusError where a record is damaged.
    """
    by_age = records.sort_values(["attempt", "started_at"], kind="stable")
    newest = by_age.drop_duplicates([*_PLACE, "seed"], keep="last").sort_index()
    ok = newest[newest["status"] == "ok"]
    for kind, found in (("speed", _speeds), ("trial", _trials)):
        rows = ok[ok["kind"] == kind].reset_index(drop=True)
        if len(rows):
            for key, name, value in found(rows, cards, level):
                suite, experiment, arm, point, device = key
                yield Place(machine, profile, suite, experiment, point, arm, device, name), value


Key = tuple[str, ...]


def _groups(rows: pd.DataFrame) -> dict[Key, list[int]]:
    """Rows by place; points are equal whatever the order of their axes."""
    points = {text: _canonical(text) for text in dict.fromkeys(rows["point"])}
    found: dict[Key, list[int]] = {}
    columns = [rows[name].astype(str) for name in _PLACE if name != "point"]
    for index, (suite, experiment, arm, device, point) in enumerate(zip(*columns, rows["point"], strict=True)):
        found.setdefault((suite, experiment, arm, points[point], device), []).append(index)
    return found


def _canonical(text: str) -> str:
    plain = {name: int(value) if isinstance(value, float) and value.is_integer() else value
             for name, value in json.loads(text).items()}
    return json.dumps(plain, sort_keys=True)


def _cut(rows: pd.DataFrame, index: Sequence[int], *more: Hashable) -> Hashable:
    """Card version, data, seeds and whatever else makes numbers comparable."""
    own = rows.iloc[list(index)]
    data = tuple(sorted({item if isinstance(item, str) else "" for item in own["data"].astype(object)}))
    return tuple(sorted(set(own["card_version"].tolist()))), data, tuple(sorted(own["seed"].tolist())), *more


def _speeds(rows: pd.DataFrame, cards: Mapping[str, Card], level: float) -> Iterator[tuple[Key, str, Measured]]:
    rounds = read_rounds(rows[list(SAMPLE_COLUMNS)])
    reference = _references(rows, cards)
    cells = np.unique(rows["cell"].astype(str).to_numpy(), return_inverse=True)[1].astype(np.int64)
    relative = relative_to(rounds, cells, reference)
    absolute_of, relative_of = (_by_process(rounds, values, len(rows)) for values in (rounds.log_ns, relative))
    groups = _groups(rows)
    canaries = _canaries(rows, groups, absolute_of)
    peers = _peer_names(rows, cells, reference)
    for key, index in groups.items():
        if key[0] == CANARY:
            continue
        times = np.concatenate([absolute_of[row] for row in index])
        ratios = np.concatenate([relative_of[row] for row in index])
        ours = not reference[index].any()
        peer = canaries.get(key[4])
        if ours and len(ratios):
            peer = float(np.median(times) - np.median(ratios))
            yield from _timed(key, RATIO, ratios, level, _cut(rows, index, peers.get(cells[index[0]], ())), True, None)
        yield from _timed(key, "time", times, level, _cut(rows, index), ours, peer)
        errors = rows["error"].to_numpy(float)[index]
        if np.isfinite(errors).all():
            yield key, "error", Measured(float(errors.max()), None, None, len(errors), "seed", _cut(rows, index), ours)


def _timed(
    key: Key, name: str, logs: Floats, level: float, cut: Hashable, ours: bool, peer: float | None
) -> Iterator[tuple[Key, str, Measured]]:
    """The median over processes, with Student's interval of their mean on logarithms, widened to hold the median."""
    if not len(logs) or not np.isfinite(logs).all():
        return
    center = float(np.median(logs))
    low, high = t_interval(logs, level)
    bounds = [_exp(min(low, center)), _exp(max(high, center))] if math.isfinite(high - low) else [None, None]
    yield key, name, Measured(math.exp(center), bounds[0], bounds[1], len(logs), "process", cut, ours, peer)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _by_process(rounds: Rounds, values: Floats, size: int) -> list[Floats]:
    """Per record, the median of each process over its rounds; a process without a number is left out."""
    import pandas as pd

    known = ~np.isnan(values)
    table = pd.DataFrame({"row": rounds.row[known], "process": rounds.process[known], "value": values[known]})
    medians = table.groupby(["row", "process"], sort=True)["value"].median()
    rows = medians.index.get_level_values("row").to_numpy()
    found = np.split(medians.to_numpy(float), np.searchsorted(rows, np.arange(1, size)))
    return list(found)


def _references(rows: pd.DataFrame, cards: Mapping[str, Card]) -> Any:
    """Whose code is not the suite's: peers of a fast path, and yardsticks, which have no error."""
    peers = {(suite, name): set(item.fast_path.peers) for suite, card in cards.items()
             for name, item in card.experiments.items() if item.fast_path}
    names = zip(*(rows[column].astype(str) for column in ("suite", "experiment", "arm")), strict=True)
    named = np.array([arm in peers.get((suite, experiment), ()) for suite, experiment, arm in names], bool)
    return named | rows["error"].isna().to_numpy(bool)


def _peer_names(rows: pd.DataFrame, cells: Any, reference: Any) -> dict[int, tuple[str, ...]]:
    found: dict[int, list[str]] = {}
    for cell, arm, taken in zip(cells.tolist(), rows["arm"].astype(str), reference, strict=True):
        if taken:
            found.setdefault(cell, []).append(arm)
    return {cell: tuple(sorted(names)) for cell, names in found.items()}


def _canaries(rows: pd.DataFrame, groups: Mapping[Key, Sequence[int]], logs: Sequence[Floats]) -> dict[str, float]:
    """By device, the mean log time of the canary's arms: equal code in every run."""
    found: dict[str, list[float]] = {}
    for key, index in groups.items():
        own = np.concatenate([logs[row] for row in index])
        if key[0] == CANARY and len(own) and np.isfinite(own).all():
            found.setdefault(key[4], []).append(float(np.median(own)))
    return {device: float(np.mean(values)) for device, values in found.items()}


def _trials(rows: pd.DataFrame, cards: Mapping[str, Card], level: float) -> Iterator[tuple[Key, str, Measured]]:
    metrics = read_objects(rows["metrics"].tolist())
    for key, index in _groups(rows).items():
        if key[0] == CANARY:
            continue
        own = [metrics[row] for row in index]
        cut = _cut(rows, index)
        for name in _metric_names(own, cards.get(key[0]), key[1]):
            values = np.array([number(item.get(name)) for item in own])
            if not np.isfinite(values).all():
                continue
            low, high = t_interval(values, level)
            bounds = [low, high] if math.isfinite(high - low) else [None, None]
            yield key, name, Measured(float(values.mean()), bounds[0], bounds[1], len(values), "seed", cut)


def _metric_names(metrics: Sequence[Mapping[str, Any]], card: Card | None, experiment: str) -> list[str]:
    """The card's metrics that are one number; without a card every name that stands for one."""
    if card is not None and experiment in card.experiments:
        return list(compared_metrics(card.experiments[experiment]))
    return [str(name)[:200] for name in dict.fromkeys(
        name for item in metrics for name, value in item.items() if isinstance(value, int | float))]
