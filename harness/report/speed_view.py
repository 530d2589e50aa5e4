"""What a page shows of a speed experiment: medians and quantiles per arm and point, never raw samples."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class SpeedRow:
    """One arm at one point. Times in ns per call as (quartile, median, quartile) over ``n`` rounds.

    ``relative`` is the same three quantiles of the time over the fastest arm's time in the same round.
    ``checked`` is False for a yardstick: an arm without a result to prove, such as a copy.
    """

    point: Mapping[str, Any]
    device: str
    arm: str
    n: int
    time_ns: tuple[float, float, float]
    relative: tuple[float, float, float]
    input_bytes: float
    bytes_moved: float
    flops: float
    peak_bytes: float
    checked: bool = True

    @property
    def bandwidth(self) -> float:
        """Bytes per second by the arm's cost model, NaN without one."""
        return self.bytes_moved / (self.time_ns[1] * 1e-9) if self.bytes_moved and self.time_ns[1] else float("nan")


def speed_rows(table: pd.DataFrame, records: pd.DataFrame) -> list[SpeedRow]:
    """Rows of the tidy ``table`` of one experiment; costs come from its ``records``, whose order the rows keep."""
    units = table.assign(cell=table["cell"].astype(str), arm=table["arm"].astype(str)).groupby("cell")
    groups = {str(cell): group for cell, group in units}
    rows: list[SpeedRow] = []
    for cells, costs in _places(records):
        found = [groups[cell] for cell in cells if cell in groups]
        if not found:
            continue
        keyed = pd.concat(found).set_index(["cell", "unit", "arm"])["time"]
        times = keyed[~keyed.index.duplicated()].unstack("arm")
        fastest = times[times.median().idxmin()]
        for arm, cost in costs.items():
            if arm not in times.columns:
                continue
            own = times[arm].dropna()
            ratio = (times[arm] / fastest).dropna()
            rows.append(SpeedRow(
                point=cost["point"], device=cost["device"], arm=arm, n=len(own),
                time_ns=_quantiles(own), relative=_quantiles(ratio), input_bytes=float(cost["input_bytes"]),
                bytes_moved=float(cost["bytes_moved"]), flops=float(cost["flops"]),
                peak_bytes=float(cost["peak_bytes"]), checked=not math.isnan(cost["error"]),
            ))
    return rows


def _places(records: pd.DataFrame) -> list[tuple[list[str], dict[str, dict[str, Any]]]]:
    """(cells, arm to costs) of every point and device that has an ``ok`` record."""
    names = ["cell", "arm", "point", "device", "input_bytes", "bytes_moved", "flops", "peak_bytes", "error"]
    kept = records.loc[(records["status"] == "ok").to_numpy()]
    places: dict[tuple[str, str], tuple[list[str], dict[str, dict[str, Any]]]] = {}
    for values in zip(*(kept[name] for name in names), strict=True):
        row = dict(zip(names, values, strict=True))
        cells, costs = places.setdefault((str(row["point"]), str(row["device"])), ([], {}))
        if row["cell"] not in cells:
            cells.append(str(row["cell"]))
        costs.setdefault(str(row["arm"]), {**row, "point": json.loads(row["point"])})
    return list(places.values())


def _quantiles(values: pd.Series) -> tuple[float, float, float]:
    if values.empty:
        return (float("nan"),) * 3
    low, middle, high = np.quantile(values.to_numpy(dtype=float), QUARTILES)
    return float(low), float(middle), float(high)


@dataclass(frozen=True)
class Limits:
    """Measured ceilings of one device, a CPU's for one number of threads: memory streams in bytes/s and FLOP/s."""

    streams: Mapping[str, float]
    flops_per_s: float | None

    @property
    def fastest_stream(self) -> float | None:
        """The highest measured memory bandwidth in bytes/s."""
        return max(self.streams.values(), default=None)

    def time_ns(self, row: SpeedRow) -> float | None:
        """The roofline's least time for one call of this arm; None without a cost or a ceiling."""
        stream = self.fastest_stream
        parts = [row.bytes_moved / stream] if stream and row.bytes_moved else []
        if self.flops_per_s and row.flops:
            parts.append(row.flops / self.flops_per_s)
        return max(parts) * 1e9 if parts else None


def limits_for(ceilings: Mapping[str, Any], threads: Any, device: str) -> Limits | None:
    """The ceilings of the device: on a CPU with as many threads as the cell uses (1 without such an axis)."""
    asked = str(threads if threads is not None else 1) if device == "cpu" else device
    measured = ceilings.get("threads" if device == "cpu" else "devices")
    found = measured.get(asked) if isinstance(measured, Mapping) else None
    if not isinstance(found, Mapping):
        return None
    names = {"read_bytes_per_s": "read", "copy_bytes_per_s": "copy", "triad_bytes_per_s": "triad"}
    streams = {word: float(found[key]) for key, word in names.items() if found.get(key)}
    flops = found.get("flops_per_s")
    return Limits(streams, float(flops) if flops else None)
