"""Times of two stored runs: relative to arms whose code is the same where there are some, else as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from harness.judge.compare import Decision, zone
from harness.judge.decide import Canary
from harness.judge.matching import Matches
from harness.judge.unpaired import Rounds, Spread, decide_unpaired, process_spread, read_rounds, relative_to

if TYPE_CHECKING:
    from harness.judge.stored import Side

CANARY = "litmus/canary"
_NOT_LIBRARIES = ("kernel",)


@dataclass(frozen=True)
class Told:
    """What is said about one arm's time: the zone used and the times (ns a call, mean over processes) beside it."""

    decision: Decision
    zone: float
    base_ns: float | None
    head_ns: float | None


@dataclass(frozen=True)
class Times:
    """The times of both runs, by row of their speed records.

    In a cell with arms whose code is not ours (a fast path's peers, yardsticks without a result) and equal library
    versions, a time is compared relative to theirs, round by round: the machine's speed at each moment cancels.
    Elsewhere absolute times are compared, and the zone is at least as wide as the canary's own times moved
    between the runs, since that much equal code changed.
    """

    matches: Matches
    place: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    absolute: tuple[Spread, Spread]
    relative: tuple[Spread, Spread]
    faults: tuple[str, ...]
    floor: float
    drift: Mapping[str, float]
    devices: list[str]
    references: Set[int]

    @classmethod
    def read(
        cls, sides: tuple[Side, Side], rows: tuple[dict[str, list[Any]], dict[str, list[Any]]], matches: Matches,
        both_ok: npt.NDArray[np.bool_], peers: Mapping[tuple[str, str], Set[str]],
    ) -> Times:
        """Read the samples of both sides. Raises LitmusError where they are damaged."""
        place = tuple(np.cumsum([kind == "speed" for kind in columns["kind"]], dtype=np.int64) - 1 for columns in rows)
        rounds = tuple(read_rounds(side.samples) for side in sides)
        sizes = tuple(len(side.samples) for side in sides)
        same_libraries = _libraries(sides[0]) == _libraries(sides[1])
        chosen = _references(rows, matches, both_ok, peers) if same_libraries else []
        absolute = tuple(process_spread(part, part.log_ns, size) for part, size in zip(rounds, sizes, strict=True))
        relative = []
        for index, pair_rows in enumerate((matches.base, matches.head)):
            mask = np.zeros(sizes[index], bool)
            mask[place[index][pair_rows[chosen]]] = True
            relative.append(_relative(rounds[index], rows[index], mask, sizes[index]))
        canaries = [Canary.read(side.info.canary) for side in sides]
        devices = [rows[0]["device"][row] if row >= 0 else rows[1]["device"][matches.head[pair]]
                   for pair, row in enumerate(matches.base)]
        made = cls(
            matches, (place[0], place[1]), (absolute[0], absolute[1]), (relative[0], relative[1]),
            tuple(f"{name}: {canary.fault}" for name, canary in zip(("base", "head"), canaries, strict=True)
                  if canary.fault),
            math.expm1(max(canary.floor for canary in canaries)), {}, devices, frozenset(chosen))
        return replace(made, drift=made._drift(rows[0]["suite"], both_ok))

    def _drift(self, suites: list[str], both_ok: npt.NDArray[np.bool_]) -> dict[str, float]:
        """By device, how much the canary's own times differ between the runs at most, as a ratio minus one."""
        found: dict[str, float] = {}
        for pair in np.flatnonzero(both_ok):
            if suites[self.matches.base[pair]] == CANARY:
                (base, _, _), (head, _, _) = self._sides(int(pair), self.absolute)
                device = self.devices[pair]
                if math.isfinite(head - base):
                    found[device] = max(found.get(device, 0.0), math.expm1(abs(head - base)))
        return found

    def _sides(self, pair: int, spreads: tuple[Spread, Spread]) -> list[tuple[float, float, int]]:
        rows = (self.place[0][self.matches.base[pair]], self.place[1][self.matches.head[pair]])
        return [(float(spread.mean[row]), float(spread.variance[row]), int(spread.count[row]))
                for spread, row in zip(spreads, rows, strict=True)]

    def decide(self, pair: int, threshold: float, level: float) -> Told:
        """Whether the head's arm is slower; ``inconclusive``, ``canary`` where a run's noise is not known."""
        absolute = self._sides(pair, self.absolute)
        base_ns, head_ns = (math.exp(mean) if -700 < mean < 700 else None for mean, _, _ in absolute)
        width = zone(threshold, self.floor)
        if self.faults:
            unsaid = Decision("inconclusive", "canary", None, None, None, level, 0, "process", "; ".join(self.faults))
            return Told(unsaid, width, base_ns, head_ns)
        relative = self._sides(pair, self.relative)
        if pair not in self.references and all(count > 0 for _, _, count in relative):
            decision = decide_unpaired(relative[0], relative[1], width, level)
            return Told(_with(decision, "relative to peers in the cell"), width, base_ns,
                        head_ns)
        drift = self.drift.get(self.devices[pair])
        if drift is None:
            unsaid = Decision("inconclusive", "canary", None, None, None, level, 0, "process",
                              "the canary's times of the two runs cannot be compared")
            return Told(unsaid, width, base_ns, head_ns)
        width = zone(width, drift)
        decision = decide_unpaired(absolute[0], absolute[1], width, level)
        return Told(_with(decision, f"absolute times; the canary moved by {drift:.2%}"), width, base_ns,
                    head_ns)


def _with(decision: Decision, how: str) -> Decision:
    return replace(decision, detail="; ".join(text for text in (decision.detail, how) if text))


def _libraries(side: Side) -> dict[str, str]:
    return {name: version for name, version in side.info.software.items() if name not in _NOT_LIBRARIES}


def _references(
    rows: tuple[dict[str, list[Any]], dict[str, list[Any]]], matches: Matches, both_ok: npt.NDArray[np.bool_],
    peers: Mapping[tuple[str, str], Set[str]],
) -> list[int]:
    """Pairs of ok speed records of arms whose code is not ours: peers of a fast path, and yardsticks (no error)."""
    base, head = rows
    found = []
    for pair in np.flatnonzero(both_ok):
        row, other = matches.base[pair], matches.head[pair]
        if base["kind"][row] != "speed" or base["suite"][row] == CANARY:
            continue
        yardstick = math.isnan(base["error"][row]) and math.isnan(head["error"][other])
        if yardstick or base["arm"][row] in peers.get((base["suite"][row], base["experiment"][row]), ()):
            found.append(int(pair))
    return found


def _relative(rounds: Rounds, rows: dict[str, list[Any]], reference: npt.NDArray[np.bool_], size: int) -> Spread:
    cells: dict[str, int] = {}
    places = [cells.setdefault(cell, len(cells)) for cell, kind in zip(rows["cell"], rows["kind"], strict=True)
              if kind == "speed"]
    return process_spread(rounds, relative_to(rounds, np.array(places, np.int64), reference), size)
