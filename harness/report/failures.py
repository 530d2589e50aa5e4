"""Every record that is not ok, grouped where status and reason are the same, with what it takes to repeat it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.records.record import STATUSES
from harness.records.store import Run
from harness.report.numbers import point_text

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("cell", "suite", "experiment", "arm", "point", "seed", "device", "status", "reason", "repro", "stderr_tail")
_TAIL_CHARACTERS = 4000


@dataclass(frozen=True)
class Place:
    """One cell of a group: its id, where it is, its arms and the command that repeats it."""

    cell: str
    text: str
    arms: tuple[str, ...]
    repro: str


@dataclass(frozen=True)
class Failure:
    """Records of one experiment that ended the same way for the same reason. ``stderr`` is the first tail found."""

    run: str
    machine: str
    suite: str
    experiment: str
    status: str
    reason: str
    stderr: str
    places: tuple[Place, ...]

    @property
    def count(self) -> int:
        """The number of records."""
        return sum(len(place.arms) for place in self.places)


def failures(run: Run, records: pd.DataFrame) -> list[Failure]:
    """The groups of one run: wrong and crashed ones first, skipped ones last."""
    bad = records.loc[(records["status"] != "ok").to_numpy(), list(COLUMNS)]
    groups: dict[tuple[str, str, str, str], list[dict[str, object]]] = {}
    for values in zip(*(bad[name] for name in COLUMNS), strict=True):
        row = dict(zip(COLUMNS, values, strict=True))
        key = (str(row["suite"]), str(row["experiment"]), str(row["status"]), _text(row["reason"]))
        groups.setdefault(key, []).append(row)
    found = [
        Failure(run.id, run.machine, suite, experiment, status, reason or "no reason was recorded", _tail(rows),
                _places(rows))
        for (suite, experiment, status, reason), rows in groups.items()
    ]
    return sorted(found, key=lambda item: (STATUSES.index(item.status), item.suite, item.experiment, item.reason))


def _places(rows: list[dict[str, object]]) -> tuple[Place, ...]:
    cells: dict[str, list[dict[str, object]]] = {}
    for row in rows:
        cells.setdefault(str(row["cell"]), []).append(row)
    places = []
    for cell, own in cells.items():
        first = own[0]
        where = [point_text(json.loads(str(first["point"]))), f"seed {first['seed']}", str(first["device"])]
        places.append(Place(cell, ", ".join(item for item in where if item), tuple(str(row["arm"]) for row in own),
                            _text(first["repro"])))
    return tuple(places)


def _tail(rows: list[dict[str, object]]) -> str:
    return next((text[-_TAIL_CHARACTERS:] for text in (_text(row["stderr_tail"]) for row in rows) if text.strip()), "")


def _text(value: object) -> str:
    """The text of a cell of a table; absent values, whatever stands for them, are empty."""
    return value if isinstance(value, str) else ""
