"""How a table of points becomes panels: one numeric axis runs along x, the other axes split the panels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from harness.report.numbers import axis_value

MAX_PANELS = 12


class Placed(Protocol):
    """Anything measured at a point of the axes on a device."""

    @property
    def point(self) -> Mapping[str, Any]:
        """Axis name to value."""

    @property
    def device(self) -> str:
        """``cpu`` or ``cuda:i``."""


T = TypeVar("T", bound=Placed)


@dataclass(frozen=True)
class Panel:
    """The rows that share every axis but x, and the words that tell this panel from the others."""

    facets: tuple[tuple[str, Any], ...]
    rows: tuple[Any, ...]

    @property
    def title(self) -> str:
        """``threads = 1, device = cpu``; empty when there is one panel only."""
        return ", ".join(f"{name} = {axis_value(value)}" for name, value in self.facets)


def running_axis(rows: Iterable[Placed], at_least: int) -> str | None:
    """The numeric axis with the most distinct values, None where none has ``at_least``."""
    values: dict[str, set[Any]] = {}
    for row in rows:
        for name, value in row.point.items():
            values.setdefault(name, set()).add(value)
    numeric = {name: len(found) for name, found in values.items() if all(map(_positive_number, found))}
    best = max(numeric, key=lambda name: numeric[name], default=None)
    return best if best is not None and numeric[best] >= at_least else None


def split(rows: Sequence[T], x: str | None) -> list[Panel]:
    """Panels in the order in which their points first appear."""
    varying = _varying(rows, x)
    groups: dict[tuple[tuple[str, Any], ...], list[T]] = {}
    for row in rows:
        place = {**row.point, "device": row.device}
        groups.setdefault(tuple((name, place.get(name)) for name in varying), []).append(row)
    return [Panel(facets, tuple(found)) for facets, found in groups.items()]


def _varying(rows: Sequence[Placed], x: str | None) -> list[str]:
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in {**row.point, "device": row.device}.items():
            if name != x:
                values.setdefault(name, set()).add(repr(value))
    return [name for name, found in values.items() if len(found) > 1]


def _positive_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0
