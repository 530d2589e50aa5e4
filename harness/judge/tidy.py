"""The tidy table of an experiment: one row per pairing unit, point and arm, metrics as columns.

The unit is the seed of a trial, and the (process, round) of a speed cell. Only arms that ended ``ok`` have rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.declare.arithmetic import Condition, looks_like_arithmetic, parse_number
from harness.declare.estimate_spec import SPEED_METRICS
from harness.declare.fields import is_condition
from harness.errors import LitmusError, did_you_mean
from harness.records.shapes import number

if TYPE_CHECKING:
    import pandas as pd

    from harness.declare.card import Experiment



def tidy(records: pd.DataFrame, experiment: str, card: Experiment) -> pd.DataFrame:
    """One row per (unit, point, arm) of the ``ok`` records of ``experiment``.

    Columns: ``cell``, ``arm``, ``device``, ``seed``, ``process`` (of a speed cell, else 0), ``unit`` (the seed, or
    "process/round"), ``input_bytes``, the experiment's axes, and its metrics as floats; series stay lists. For speed:
    ``time`` in ns per call (median over the samples of the unit), ``bandwidth`` in bytes/s, ``flop_rate`` in 1/s,
    ``error``, ``peak_bytes``. Rows are in an order that does not depend on the order of the records.
    ``records`` are those of one suite, with the sample columns for speed experiments.
    """
    mine = records[(records["experiment"] == experiment) & (records["status"] == "ok")]
    mine = mine.sort_values(["started_at", "cell", "arm"], kind="stable").reset_index(drop=True)
    base = _base(mine, list(card.axes))
    table: pd.DataFrame = _speed_rows(mine, base) if card.kind == "speed" else _trial_rows(mine, base, card)
    order = ["seed", "process", *(["unit"] if card.kind == "trial" else []), "cell", "arm"]
    return table.sort_values(order, kind="stable").reset_index(drop=True)


def _base(records: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    import pandas as pd

    plain = ("cell", "arm", "device", "seed", "input_bytes")
    base = pd.DataFrame({name: records[name].astype(object) for name in plain})
    points = objects(records["point"])
    for axis in axes:
        base[axis] = pd.Series([point.get(axis) for point in points], index=base.index, dtype=object).infer_objects()
    return base.infer_objects()


def objects(texts: pd.Series[Any]) -> list[dict[str, Any]]:
    """The JSON objects of a column, equal texts read once. Raises LitmusError where a text is something else."""
    known: dict[str, dict[str, Any]] = {}
    for text in texts:
        if text not in known:
            try:
                value = json.loads(text)
            except (TypeError, ValueError, RecursionError):
                value = None
            if not isinstance(value, dict):
                raise _damaged(str(texts.name), str(text)[:80], "a JSON object")
            known[text] = value
    return [known[text] for text in texts]


def _damaged(column: str, value: str, expected: str) -> LitmusError:
    return LitmusError("a record is damaged", key=column, value=value, expected=expected,
                       next_step="make the run again with: litmus run")


def _trial_rows(records: pd.DataFrame, base: pd.DataFrame, card: Experiment) -> pd.DataFrame:
    import pandas as pd

    base["process"], base["unit"] = 0, base["seed"]
    metrics = objects(records["metrics"])
    for name, metric in card.metrics.items():
        values = [row.get(name) for row in metrics]
        if metric.series:
            series = [[number(item) for item in value] if isinstance(value, list) else None for value in values]
            base[name] = pd.Series(series, index=base.index, dtype=object)
        else:
            base[name] = np.array([number(value) for value in values], dtype=float)
    return base


def _speed_rows(records: pd.DataFrame, base: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    names = [f"samples_{name}" for name in ("process", "round", "calls", "elapsed_ns")]
    lengths = np.array([[-1 if items is None else len(items) for items in records[name]] for name in names], dtype=int)
    if (lengths != lengths[0]).any() or (lengths < 0).any():
        raise _damaged("samples", "lists of different lengths", "one process, round, calls and time for each sample")
    counts = lengths[0]

    def joined(name: str) -> np.ndarray[Any, Any]:
        return np.concatenate([np.asarray(items, float) for items in records[name]] or [np.empty(0)])

    samples = pd.DataFrame({
        "row": np.repeat(np.arange(len(records)), counts),
        "process": joined("samples_process").astype(int), "round": joined("samples_round").astype(int),
        "time": joined("samples_elapsed_ns") / joined("samples_calls"),
    })
    units = samples.groupby(["row", "process", "round"], sort=True, as_index=False)["time"].median()
    row = units["row"].to_numpy()
    table: pd.DataFrame = base.iloc[row].reset_index(drop=True)
    table["process"] = units["process"]
    table["unit"] = units["process"].astype(str) + "/" + units["round"].astype(str)
    table["time"] = units["time"]
    seconds = units["time"].to_numpy() / 1e9
    table["bandwidth"] = records["bytes_moved"].to_numpy(float)[row] / seconds
    table["flop_rate"] = records["flops"].to_numpy(float)[row] / seconds
    for name in ("error", "peak_bytes"):
        table[name] = records[name].to_numpy(float)[row]
    assert set(SPEED_METRICS) <= set(table.columns)
    return table


def where(table: pd.DataFrame, conditions: Mapping[str, Any], constants: Mapping[str, float]) -> pd.DataFrame:
    """The rows that satisfy all ``conditions``: a scalar, a list of scalars, or a condition such as ``">= 4*llc"``.

    ``constants`` are the machine's (``Machine.constants()``). ``device`` matches an id (``cuda:0``) or its kind.
    A value that is no number never satisfies a condition. Raises LitmusError for a column that is not there, and for a
    constant that the machine does not have.
    """
    for name, wanted in conditions.items():
        if name not in table.columns:
            raise LitmusError("no such column", key="where", value=name, expected=did_you_mean(name, table.columns))
        keep = np.array([matches(name, value, wanted, constants) for value in table[name]], dtype=bool)
        table = table.loc[keep]
    return table


def matches(name: str, value: Any, wanted: Any, constants: Mapping[str, float]) -> bool:
    """Whether one ``value`` of column ``name`` satisfies one condition, see :func:`where`."""
    if isinstance(wanted, list | tuple):
        return any(matches(name, value, item, constants) for item in wanted)
    if is_condition(wanted):
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        return number and Condition.parse(wanted, constants).holds(float(value))
    if isinstance(wanted, str) and looks_like_arithmetic(wanted):
        wanted = parse_number(wanted)
    return bool(value == wanted) or (name == "device" and str(value).split(":")[0] == wanted)
