"""Which cells a claim rests on, and what keeps them from deciding: not selected, not recorded, not ended ok."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.declare.arithmetic import Condition
from harness.declare.card import Card, Experiment, Part, Profile, Requirement
from harness.declare.estimate_spec import Custom, RankCorrelation, Slope
from harness.declare.fields import is_condition
from harness.judge.sample import NotEstimable
from harness.judge.tidy import matches, objects, tidy, where

if TYPE_CHECKING:
    import pandas as pd

_CELL_COLUMNS = ("cell", "arm", "point", "seed", "device", "status", "reason", "input_bytes", "profile")
_BYTE_NAMES = ("input_bytes", "llc", "l1", "l2", "memory")


@dataclass(frozen=True)
class Place:
    """The tidy rows of one point, or of all points of a device: what one estimate is computed from."""

    point: dict[str, Any]
    table: pd.DataFrame

    @property
    def cells(self) -> tuple[str, ...]:
        """The ids of the cells behind the rows."""
        return tuple(sorted(map(str, self.table["cell"].unique())))


@dataclass
class Evidence:
    """The records of one suite, each question answered by its latest cell, and what is asked of them."""

    card: Card
    records: pd.DataFrame
    constants: Mapping[str, float]
    _tidy: dict[str, pd.DataFrame] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.records = _latest_cells(self.records)

    def experiment(self, name: str) -> Experiment:
        """The experiment as the recorded profile runs it."""
        declared = self.card.experiments[name]
        return declared.in_profile(self._profile()) or declared

    def places(self, need: Part | Requirement, name: str, unit: str | None = None) -> list[Place]:
        """The points on which ``need`` is to be decided, in the card's order; NotEstimable says why there are none.

        Every cell that ``where`` selects must be there, with an ok result of every arm the estimate reads. An axis that
        is the independent ``unit``, or the one a slope runs along, is not split into points.
        """
        cells = self._selected(need, name)
        table = self._table(name)
        table = table[table["cell"].isin(set(cells["cell"]))]
        if table.empty:
            raise NotEstimable(f"the cells of experiment '{name}' hold no samples")
        experiment = self.experiment(name)
        along = {unit, need.estimate.against if isinstance(need.estimate, Slope) else None}
        keys = [] if _pooled(need) else [axis for axis in experiment.axes if axis not in along]
        if table["device"].nunique() > 1:
            keys = [*keys, "device"]
        if not keys:
            return [Place({}, table)]
        groups = table.groupby([_as_text(table[key]) for key in keys], sort=False)
        found = [Place({key: _plain(part[key].iloc[0]) for key in keys}, part) for _, part in groups]
        return sorted(found, key=lambda place: _rank(place.point, experiment))

    def _profile(self) -> Profile:
        known: list[Profile] = ["smoke", "small", "full"]
        seen = [name for name in known if name in set(self.records["profile"])]
        return seen[0] if seen else "small"

    def _table(self, name: str) -> pd.DataFrame:
        if name not in self._tidy:
            self._tidy[name] = tidy(self.records, name, self.card.experiments[name])
        return self._tidy[name]

    def _selected(self, need: Part | Requirement, name: str) -> pd.DataFrame:
        cells = self.records.loc[self.records["experiment"] == name, list(_CELL_COLUMNS)]
        declared, experiment = self.card.experiments[name], self.experiment(name)
        if cells.empty:
            skipped = declared.in_profile(self._profile()) is None
            raise NotEstimable(f"profile {self._profile()} does not run experiment '{name}'" if skipped
                               else f"experiment '{name}' has no records in this run")
        points = objects(cells["point"])
        columns: dict[str, Any] = {axis: [point.get(axis) for point in points] for axis in declared.axes}
        cells = cells.assign(**columns)
        chosen = self._where(cells, need.where)
        if chosen.empty:
            asked = " and ".join(_condition_text(key, value, self.constants) for key, value in need.where.items())
            raise NotEstimable(f"no cell has {asked}")
        self._refuse_missing(cells, need, experiment)
        self._refuse_bad(chosen, need, name, experiment)
        return chosen

    def _where(self, cells: pd.DataFrame, conditions: Mapping[str, Any]) -> pd.DataFrame:
        """The selected cells; a cell that failed before its inputs existed is kept, whatever is asked of their size."""
        known = {key: value for key, value in conditions.items() if key != "input_bytes"}
        cells = where(cells, known, self.constants)
        if "input_bytes" not in conditions:
            return cells
        sizes = cells.groupby("cell", observed=True)["input_bytes"].transform("max")
        failed = (cells["status"] != "ok").groupby(cells["cell"], observed=True).transform("any") & (sizes == 0)
        wanted = conditions["input_bytes"]
        return cells[[unknown or matches("input_bytes", size, wanted, self.constants)
                      for size, unknown in zip(sizes, failed, strict=True)]]

    def _refuse_missing(self, cells: pd.DataFrame, need: Part | Requirement, experiment: Experiment) -> None:
        """Every point of the profile that ``where`` may select needs a cell for each seed and device that was run."""
        have = {(_key(row), row["seed"], row["device"]) for row in _cell_rows(cells, experiment)}
        devices = [name for name in sorted(set(cells["device"]))
                   if "device" not in need.where or matches("device", name, need.where["device"], self.constants)]
        expected = [(point, seed, device) for point in self._points(need, experiment)
                    for seed in sorted(set(cells["seed"])) for device in devices]
        missing = [item for item in expected if (_key_of(item[0]), item[1], item[2]) not in have]
        if missing:
            point, seed, _ = missing[0]
            raise NotEstimable(f"{len(missing)} of {len(expected)} cells have no record, the first at "
                               f"{point_text(point)}{_seed_text(experiment, seed)}")

    def _points(self, need: Part | Requirement, experiment: Experiment) -> Iterator[dict[str, Any]]:
        for values in itertools.product(*experiment.axes.values()):
            point = dict(zip(experiment.axes, values, strict=True))
            asked = {key: value for key, value in need.where.items() if key in point}
            if all(matches(key, point[key], value, self.constants) for key, value in asked.items()):
                yield point

    def _refuse_bad(self, cells: pd.DataFrame, need: Part | Requirement, name: str, experiment: Experiment) -> None:
        arms = self._arms(cells, need, experiment)
        for arm in arms:
            if arm not in experiment.arms:
                raise NotEstimable(f"profile {self._profile()} runs no arm '{arm}' in experiment '{name}'")
            lacking = cells["cell"].nunique() - cells.loc[cells["arm"] == arm, "cell"].nunique()
            if lacking:
                raise NotEstimable(f"arm '{arm}' has no record in {lacking} of {cells['cell'].nunique()} cells")
        bad = cells[cells["arm"].isin(arms) & (cells["status"] != "ok")]
        if bad.empty:
            return
        first = bad.iloc[0]
        point = {axis: first[axis] for axis in experiment.axes}
        why = f" ({first['reason']})" if isinstance(first["reason"], str) and first["reason"] else ""
        at = f" at {point_text(point)}{_seed_text(experiment, first['seed'])}" if point else ""
        raise NotEstimable(f"{bad['cell'].nunique()} of {cells['cell'].nunique()} cells did not end ok, the first: "
                           f"arm '{first['arm']}'{at} is {first['status']}{why}")

    def _arms(self, cells: pd.DataFrame, need: Part | Requirement, experiment: Experiment) -> list[str]:
        """The arms that must be ok: those the estimate names; else all but peers that were skipped in every cell."""
        spec = need.estimate
        named = _texts(spec.params) if isinstance(spec, Custom) else set(spec.arms())
        if not isinstance(spec, Custom | RankCorrelation) or (isinstance(spec, RankCorrelation) and spec.of):
            return sorted(named)
        ok_somewhere = set(cells.loc[cells["status"] != "skipped", "arm"])
        if not ok_somewhere:
            return list(experiment.arms)
        return [arm for arm in experiment.arms if arm in ok_somewhere or arm in named]


def _latest_cells(records: pd.DataFrame) -> pd.DataFrame:
    """Each question's latest cell and each arm's latest attempt: code may have changed between a run and its resume."""
    latest = records.sort_values(["started_at", "attempt"], kind="stable")
    latest = latest.drop_duplicates(["cell", "arm"], keep="last")
    question = [latest[name].astype(str) for name in ("experiment", "point", "seed", "device")]
    newest = latest["cell"].astype(str).groupby(question).transform("last")
    return latest[latest["cell"].astype(str) == newest].reset_index(drop=True)


def _pooled(need: Part | Requirement) -> bool:
    return need.points == "pool" or isinstance(need.estimate, Custom | RankCorrelation)


def _cell_rows(cells: pd.DataFrame, experiment: Experiment) -> list[dict[str, Any]]:
    columns = [*experiment.axes, "seed", "device"]
    rows = cells.drop_duplicates("cell")[columns].astype(object).to_numpy().tolist()
    return [{"axes": list(experiment.axes), **dict(zip(columns, row, strict=True))} for row in rows]


def _key(row: Mapping[str, Any]) -> str:
    return _key_of({axis: row[axis] for axis in row["axes"]})


def _key_of(point: Mapping[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in point.items()}, sort_keys=True)


def _plain(value: Any) -> Any:
    """A numpy scalar as Python's; a whole float as an int, since JSON and tables turn one into the other."""
    value = value.item() if hasattr(value, "item") else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _as_text(column: pd.Series[Any]) -> pd.Series[Any]:
    return column.map(_plain).astype(str)


def _rank(point: Mapping[str, Any], experiment: Experiment) -> list[int]:
    ranks = []
    for axis, value in point.items():
        order = [_plain(item) for item in experiment.axes.get(axis, [])]
        ranks.append(order.index(value) if value in order else len(order))
    return ranks


def _texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        value = list(value.values())
    return set().union(*(_texts(item) for item in value)) if isinstance(value, list | tuple) else set()


def point_text(point: Mapping[str, Any]) -> str:
    """``n=4096, threads=all``; "every point" for none."""
    return ", ".join(f"{name}={value}" for name, value in point.items()) or "every point"


def _seed_text(experiment: Experiment, seed: Any) -> str:
    return f", seed {seed}" if experiment.kind == "trial" else ""


def _condition_text(name: str, wanted: Any, constants: Mapping[str, float]) -> str:
    """``input_bytes >= 4*llc (128 MiB)``: the bound is spelled out where it mentions a machine's constant."""
    if isinstance(wanted, list | tuple):
        return f"{name} in {list(wanted)}"
    if not is_condition(wanted):
        return f"{name} = {wanted}"
    bound = Condition.parse(wanted, constants)
    mentions = [item for item in (*_BYTE_NAMES, "cores") if item in wanted]
    if not mentions:
        return f"{name} {wanted}"
    in_bytes = any(item in _BYTE_NAMES for item in mentions)
    ends = {bound.low, bound.high}
    return f"{name} {wanted} ({', '.join(_size(end) if in_bytes else f'{end:g}' for end in sorted(ends))})"


def _size(count: float) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:g} bytes"
