"""Which records of two runs answer the same question: the same arm at the same point, seed and device."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Ints = npt.NDArray[np.int64]
PLACE_COLUMNS = ("suite", "experiment", "arm", "point", "device")
COLUMNS = (*PLACE_COLUMNS, "cell", "kind", "seed", "status", "reason", "card_version", "data", "started_at", "attempt",
           "error", "metrics")


@dataclass(frozen=True)
class Matches:
    """Pairs of records by question, sorted by place (all but the seed) and seed.

    ``base`` and ``head`` are rows of the two tables, -1 where that side has no record; ``place`` numbers the places.
    ``alike`` maps each of :data:`PLACE_COLUMNS` that is left out to an id of what the rest of the place says.
    """

    base: Ints
    head: Ints
    place: Ints
    without_point: Ints
    without_device: Ints

    def bounds(self) -> list[tuple[int, int]]:
        """[first, last) of each place's pairs."""
        if not len(self.place):
            return []
        first = np.flatnonzero(np.r_[True, self.place[1:] != self.place[:-1]])
        return list(zip(first.tolist(), [*first[1:].tolist(), len(self.place)], strict=True))


def match(base: pd.DataFrame, head: pd.DataFrame) -> Matches:
    """Pair the records of two tables with :data:`COLUMNS`; each question's newest cell speaks for it."""
    split = len(base)
    codes = {name: _codes(base[name], head[name]) for name in (*PLACE_COLUMNS, "cell", "seed")}
    side = np.r_[np.zeros(split, np.int64), np.ones(len(head), np.int64)]
    place = _combined([codes[name] for name in PLACE_COLUMNS])
    ages = [np.r_[base[name].to_numpy(float), head[name].to_numpy(float)] for name in ("attempt", "started_at")]
    order = np.lexsort(ages)
    cell_question = _combined([side, *(codes[name] for name in ("suite", "experiment", "point", "device", "seed"))])
    newest = np.empty(cell_question.max(initial=-1) + 1, np.int64)
    newest[cell_question[order]] = codes["cell"][order]
    order = order[codes["cell"][order] == newest[cell_question[order]]]
    question = _combined([place, codes["seed"]])
    count = question.max(initial=-1) + 1
    rows = np.full((2, count), -1)
    rows[side[order], question[order]] = np.where(side[order] == 0, order, order - split)
    taken = np.flatnonzero((rows >= 0).any(axis=0))
    either = np.where(rows[0] >= 0, rows[0], rows[1] + split)[taken]
    by_place = np.lexsort((_values(base["seed"], head["seed"])[either], place[either]))
    taken, either = taken[by_place], either[by_place]
    rest = {left: _combined([codes[name] for name in PLACE_COLUMNS if name != left])[either]
            for left in ("point", "device")}
    return Matches(rows[0][taken], rows[1][taken], place[either], rest["point"], rest["device"])


def _codes(base: pd.Series[Any], head: pd.Series[Any]) -> Ints:
    """Equal numbers for equal values of both columns, one after the other; points are equal whatever their order."""
    if not hasattr(base, "cat"):
        return np.unique(_values(base, head), return_inverse=True)[1].astype(np.int64)
    known: dict[Any, int] = {}
    parts = []
    for column in (base, head):
        names = [_canonical(name) if column.name == "point" else name for name in column.cat.categories]
        numbers = np.array([known.setdefault(name, len(known)) for name in names] or [0], dtype=np.int64)
        parts.append(numbers[column.cat.codes.to_numpy()])
    return np.concatenate(parts)


def _values(base: pd.Series[Any], head: pd.Series[Any]) -> Any:
    return np.r_[base.to_numpy(), head.to_numpy()]


def _canonical(text: str) -> str:
    point = json.loads(text)
    plain = {name: int(value) if isinstance(value, float) and value.is_integer() else value
             for name, value in point.items()}
    return json.dumps(plain, sort_keys=True)


def _combined(columns: Sequence[Ints]) -> Ints:
    """One number for each combination of numbers, 0 to their count - 1."""
    found = np.asarray(columns[0], np.int64)
    for column in columns[1:]:
        found = np.unique(found * (column.max(initial=0) + 1) + column, return_inverse=True)[1].astype(np.int64)
    return found
