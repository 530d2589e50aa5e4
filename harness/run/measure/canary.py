"""The A/A canary of a run: how far apart the same function lies from itself, measured like everything else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from harness.declare.card import load_card
from harness.plan.cell import Cell
from harness.plan.code import code_hash
from harness.records.record import Record, Samples

NAME = "litmus/canary"
BUILTIN = Path(__file__).resolve().parents[1] / "builtin"
# A pair of equal arms this far apart, with an interval that excludes zero, means that the machine or the timer lies.
ALARM_LOG_RATIO = math.log(1.02)
_RESAMPLES = 2000


def builtin_folder(suite: str) -> Path | None:
    """The folder of a suite that ships with the harness, None for a suite of the project."""
    folder = BUILTIN / suite
    return folder if suite.startswith("litmus/") and folder.is_dir() else None


def canary_cells(occasion: int, devices: Sequence[str] = ("cpu",)) -> list[Cell]:
    """The canary's cells on ``devices``; ``occasion`` (0 at the begin, 1 at the end of the timing lane) sets apart."""
    folder = BUILTIN / NAME
    card = load_card(folder / "card.yaml")
    experiment = card.experiments["aa"]
    return [
        Cell(
            suite=NAME, experiment="aa", kind="speed", point={"load": load}, seed=occasion, device=device,
            profile="small", arms=tuple(experiment.arms), card_version=card.version, code=code_hash(BUILTIN, folder),
            tuned={}, measure=experiment.measure, timeout_s=experiment.timeout_s, memory_gib=experiment.memory_gib,
        )
        for device in devices
        for load in experiment.axes["load"]
    ]


def canary_summary(records: Iterable[Record]) -> dict[str, Any]:
    """The floor of this run: the widest bound of any canary cell's interval of the median log ratio a / b.

    One floor holds for all devices, the noisiest one's.

    Keys: ``median_log_ratio``, ``low``, ``high`` (of the worst cell), ``floor`` (a ratio minus one), ``alarm``, ``n``
    (rounds in all) and ``cells`` (all of them). Raises ValueError when no canary cell finished.
    """
    pairs: dict[str, dict[str, Record]] = {}
    for record in records:
        if record.suite == NAME and record.status == "ok":
            pairs.setdefault(record.cell, {})[record.arm] = record
    cells = [_cell_summary(pair["a"], pair["b"]) for pair in pairs.values() if {"a", "b"} <= pair.keys()]
    if not cells:
        raise ValueError("no canary cell finished")
    worst = max(cells, key=lambda cell: abs(cell["median_log_ratio"]))
    floor = max(max(abs(cell["low"]), abs(cell["high"])) for cell in cells)
    return {
        "median_log_ratio": worst["median_log_ratio"], "low": worst["low"], "high": worst["high"],
        "floor": math.expm1(floor), "alarm": any(cell["alarm"] for cell in cells),
        "n": sum(cell["n"] for cell in cells), "cells": cells,
    }


def _cell_summary(a: Record, b: Record) -> dict[str, Any]:
    times_a, times_b = per_round(a.samples), per_round(b.samples)
    ratios = np.log([times_a[unit] / times_b[unit] for unit in sorted(times_a.keys() & times_b.keys())])
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(ratios, size=(_RESAMPLES, len(ratios))), axis=1)
    low, high = (float(value) for value in np.quantile(medians, [0.025, 0.975]))
    middle = float(np.median(ratios))
    return {
        "point": dict(a.point), "device": a.device, "occasion": a.seed, "median_log_ratio": middle, "low": low,
        "high": high, "n": len(ratios), "alarm": abs(middle) > ALARM_LOG_RATIO and not low <= 0.0 <= high,
    }


def per_round(samples: Samples) -> Mapping[tuple[int, int], float]:
    """Nanoseconds per call of each (process, round): the median of its samples."""
    found: dict[tuple[int, int], list[float]] = {}
    columns = zip(samples.process, samples.round, samples.elapsed_ns, samples.calls, strict=True)
    for process, index, elapsed_ns, calls in columns:
        found.setdefault((process, index), []).append(elapsed_ns / calls)
    return {unit: median(values) for unit, values in found.items()}
