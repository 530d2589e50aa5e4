"""Fitting a plan into a time: the order of cells, how long each will take, and which no longer fit."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness.plan.cell import Cell

DURATIONS_FILE = Path(".litmus") / "durations.json"
# Guesses for what was never run here: one arm of a trial, and what a speed process needs beside its samples.
_TRIAL_ARM_S = 2.0
_SPEED_PROCESS_S = 1.0
_KEPT_PER_CELL = 5


def breadth_first(cells: Iterable[Cell]) -> list[Cell]:
    """The cells so that every experiment has its first cell before any has its second, and so on.

    Claims rest on experiments, so a run that is cut short has something for each. Inside an experiment the plan's
    order stays: all points once before any seed comes again.
    """
    queues: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        queues.setdefault((cell.suite, cell.experiment, cell.device), []).append(cell)
    rounds = itertools.zip_longest(*queues.values())
    return [cell for together in rounds for cell in together if cell is not None]


def side_by_side(cells: Iterable[Cell], devices: Mapping[str, int] | None = None) -> list[list[Cell]]:
    """The cells in groups that may run at the same time: one each on the CPU, one group for each CUDA device.

    A device's memory holds one cell at a time, as its card says; inside a group the order stays. ``devices`` says of
    which there are several with the same name.
    """
    groups: dict[tuple[str, int], list[Cell]] = {}
    counts: Counter[str] = Counter()
    for cell in cells:
        name = cell.id if cell.device == "cpu" else cell.device
        groups.setdefault((name, counts[name] % (devices or {}).get(name, 1)), []).append(cell)
        counts[name] += 1
    return list(groups.values())


def fit(cells: Sequence[Cell], budget_s: float, durations: Durations, slots: int) -> tuple[list[Cell], list[Cell]]:
    """(cells that fit, cells that do not), of ``cells`` in the order of importance.

    Speed cells run alone, trial cells share ``slots``. A cell that does not fit does not stop a smaller one after it.
    """
    kept: list[Cell] = []
    dropped: list[Cell] = []
    used_s = 0.0
    for cell in cells:
        cost_s = durations.estimate_s(cell) / (slots if cell.kind == "trial" else 1)
        fits = used_s + cost_s <= budget_s
        (kept if fits else dropped).append(cell)
        used_s += cost_s if fits else 0.0
    return kept, dropped


@dataclass
class Durations:
    """Wall seconds of cells as this machine remembers them, by experiment and point."""

    machine: str
    known: dict[str, list[float]] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path, machine: str) -> Durations:
        """What ``.litmus/durations.json`` remembers for ``machine``; a file that is not readable remembers nothing."""
        try:
            mine = _read(root / DURATIONS_FILE).get(machine, {})
            return cls(machine, {str(key): [float(item) for item in values] for key, values in mine.items()})
        except (ValueError, TypeError, AttributeError):
            return cls(machine)

    def save(self, root: Path) -> None:
        """Write them back beside those of other machines; only a memory, so an unwritable folder is no error."""
        path = root / DURATIONS_FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            data = {**_read(path), self.machine: self.known}
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(data, sort_keys=True, indent=0), encoding="utf-8")
            temporary.replace(path)
        except OSError:
            return

    def remember(self, cell: Cell, seconds: float) -> None:
        """Note how long ``cell`` took, all arms together."""
        values = self.known.setdefault(_key(cell), [])
        values.append(round(seconds, 3))
        del values[:-_KEPT_PER_CELL]

    def estimate_s(self, cell: Cell) -> float:
        """Seconds that ``cell`` will take: remembered, else like other points of its experiment, else a guess."""
        values = self.known.get(_key(cell))
        if values:
            return median(values)
        prefix = _prefix(cell)
        others = [value for key, items in self.known.items() if key.startswith(prefix) for value in items]
        return median(others) if others else _guess_s(cell)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _prefix(cell: Cell) -> str:
    return f"{cell.suite}:{cell.experiment}@{cell.device}|"


def _key(cell: Cell) -> str:
    return _prefix(cell) + json.dumps(dict(cell.point), sort_keys=True)


def _guess_s(cell: Cell) -> float:
    if cell.kind == "trial":
        return _TRIAL_ARM_S * len(cell.arms)
    # Each round goes forward and backward through the arms.
    sampling_s = 2 * cell.measure.rounds * len(cell.arms) * cell.measure.min_sample_ms / 1000
    return cell.measure.processes * (sampling_s + _SPEED_PROCESS_S)
