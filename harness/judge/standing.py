"""Whether one arm at one point of two stored runs can be compared, and why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from harness.judge.matching import Matches

Columns = dict[str, list[Any]]
Why = tuple[str, str]  # reason code, detail
BOTH_SKIPPED = "both_skipped"  # of no interest to anyone
_ENDED = ("ok", "skipped")


@dataclass(frozen=True)
class Standing:
    """The matched records of both sides by column, and the machines they were measured on."""

    rows: tuple[Columns, Columns]
    matches: Matches
    machines: tuple[str | None, str | None]

    def at(self, pair: int, name: str) -> Any:
        """A column of the pair's record, the base's where it has one."""
        row = self.matches.base[pair]
        return self.rows[0][name][row] if row >= 0 else self.rows[1][name][self.matches.head[pair]]

    @cached_property
    def ok(self) -> npt.NDArray[np.bool_]:
        """Which pairs ended ok on both sides."""
        base, head = (self._column("status", side) == "ok" for side in (0, 1))
        return np.asarray(base & head)

    @cached_property
    def alike(self) -> npt.NDArray[np.bool_]:
        """Which pairs can be compared without more ado: ok on both sides, from one machine, card version and data."""
        found = self.ok & (self.machines[0] == self.machines[1] is not None)
        for name in ("card_version", "data"):
            found &= self._column(name, 0) == self._column(name, 1)
        return np.asarray(found)

    def _column(self, name: str, side: int) -> npt.NDArray[np.object_]:
        """A column of one side by pair, None where that side has no record."""
        rows = (self.matches.base, self.matches.head)[side]
        return np.array([*self.rows[side][name], None], dtype=object)[rows]

    def why_not(self, first: int, last: int) -> Why | None:
        """The reason code and detail for a place, pairs [first, last); None where it can be compared."""
        base, head = (self._ends(first, last, side) for side in (0, 1))
        if not any(base) or not any(head):
            return self._missing(first, in_base=any(base))
        if self.machines[0] is None or self.machines[0] != self.machines[1]:
            return "machine", " and ".join(name or "unknown" for name in self.machines)
        return _lost(base, head) or self._apart(first, last) or _undone(base, head)

    def _ends(self, first: int, last: int, side: int) -> list[Why | None]:
        """(status, reason) of each pair's record on one side."""
        rows = (self.matches.base, self.matches.head)[side][first:last]
        columns = self.rows[side]
        return [(columns["status"][row], columns["reason"][row] or "") if row >= 0 else None for row in rows]

    def _apart(self, first: int, last: int) -> Why | None:
        for name in ("card_version", "data"):
            for base, head in self._values(first, last, name):
                if base != head:
                    return name, f"{str(base)[:16]} and {str(head)[:16]}"
        return None

    def _values(self, first: int, last: int, name: str) -> Iterator[tuple[Any, Any]]:
        for base, head in zip(self.matches.base[first:last], self.matches.head[first:last], strict=True):
            if base >= 0 and head >= 0:
                yield self.rows[0][name][base], self.rows[1][name][head]

    @cached_property
    def _known(self) -> dict[str, tuple[set[int], set[int]]]:
        """By what is left out of the place, which of the rest each side has."""
        rests = {"point": self.matches.without_point, "device": self.matches.without_device}
        return {name: (set(rest[self.matches.base >= 0].tolist()), set(rest[self.matches.head >= 0].tolist()))
                for name, rest in rests.items()}

    def _missing(self, first: int, in_base: bool) -> Why:
        """Why one side lacks a place: it was measured on other devices or at other points, or the arm is not there."""
        here, other = ("base", 1) if in_base else ("head", 0)
        if self.matches.without_device[first] in self._known["device"][other]:
            return "device", f"only the {here} has it on {self.at(first, 'device')}"
        if self.matches.without_point[first] in self._known["point"][other]:
            return "point", f"only the {here} has this point"
        return f"only_{here}", ""


def _lost(base: Sequence[Why | None], head: Sequence[Why | None]) -> Why | None:
    """What the base finished and the head did not; a skip is no failure."""
    lost = [now for was, now in zip(base, head, strict=True)
            if was and now and was[0] == "ok" and now[0] not in _ENDED]
    return ("head_status", _status_text(lost)) if lost else None


def _undone(base: Sequence[Why | None], head: Sequence[Why | None]) -> Why | None:
    """Why no pair ended ok on both sides; None where one did."""
    if any(was and now and was[0] == now[0] == "ok" for was, now in zip(base, head, strict=True)):
        return None
    failed = [was for was in base if was and was[0] not in _ENDED]
    if failed:
        return "base_status", _status_text(failed)
    skipped = [[end for end in side if end and end[0] == "skipped"] for side in (base, head)]
    if all(skipped):
        return BOTH_SKIPPED, ""
    if any(skipped):
        return ("only_head", _status_text(skipped[0])) if skipped[0] else ("only_base", _status_text(skipped[1]))
    return "few_units", "no seed ended ok on both sides"


def _status_text(ends: Sequence[Why]) -> str:
    """``2 crashed: the first reason``."""
    status, _ = Counter(status for status, _ in ends).most_common(1)[0]
    reason = next((why for name, why in ends if name == status and why), "")
    return f"{len(ends)} {status}" + (f": {reason[:300]}" if reason else "")
