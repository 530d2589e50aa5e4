"""The canary of ``litmus ab``: the harness's own suite on both sides, equal code through the very same mechanism."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.judge.compare import decide_speed
from harness.judge.stats.bootstrap import Floats
from harness.run.ab.pair import BASE, HEAD, CellPair, PairResult
from harness.run.ab.worktree import Side
from harness.run.measure.canary import canary_cells

PAIRS, OCCASIONS = 3, 2
_ARM, _ZONE, _LEVEL, _FLOOR_LEVEL = "a", 0.01, 0.99, 0.95


@dataclass
class Canary:
    """Measured before and after the cells; ``measure`` runs one pair."""

    sides: tuple[Side, Side]
    devices: Sequence[str]
    measure: Callable[[CellPair, dict[str, list[str]], int], PairResult]
    rounds: dict[str, list[list[float]]] = field(default_factory=dict)
    faults: dict[str, str] = field(default_factory=dict)

    def sing(self) -> None:
        """One occasion: some pairs of each load on each device."""
        roots = {side.role: side.root for side in self.sides}
        cells = canary_cells(0, self.devices)
        for number in range(PAIRS):
            for cell in cells:
                result = self.measure(CellPair(cell, cell, roots), {BASE: [_ARM], HEAD: [_ARM]}, number)
                label = f"{cell.point['load']} on {cell.device}"
                broken = [str(fault) for found in result.faults.values() for fault in found.values()]
                if broken:
                    self.faults[label] = broken[0]
                elif _ARM in result.rounds:
                    self.rounds.setdefault(label, []).append(result.rounds[_ARM])

    @property
    def floor(self) -> float:
        """The least difference that equal code surely has here, relative: no zone is narrower. Mostly 0."""
        said = [decide_speed(_table(pairs), 0.0, _FLOOR_LEVEL) for pairs in self.rounds.values()]
        return max((max(0.0, item.low or 0.0, -(item.high or 0.0)) for item in said), default=0.0)

    def alarm(self) -> str | None:
        """What went wrong: equal code that differs by more than 1 %, or a canary that did not finish; else None."""
        for label, fault in self.faults.items():
            if "skipped" not in fault:
                return f"the canary ({label}) did not finish: {fault}"
        if not self.rounds and not self.faults:
            return "the canary did not finish"
        level = 1 - (1 - _LEVEL) / max(1, len(self.rounds))
        for label, pairs in self.rounds.items():
            said = decide_speed(_table(pairs), _ZONE, level)
            if said.word in ("slower", "faster"):
                return f"equal code did not take equal time ({label}): {said.word} by {abs(said.change or 0.0):.1%}"
        return None


def _table(pairs: Sequence[Sequence[float]]) -> Floats:
    table = np.full((len(pairs), max(map(len, pairs))), np.nan)
    for row, pair in zip(table, pairs, strict=True):
        row[: len(pair)] = pair
    return table
