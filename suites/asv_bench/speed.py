"""One asv class for each speed experiment of a suite, with the arms and smoke points as parameters.

asv keeps the history and finds the commit that changed a number; Litmus measures. The harness and the reference code
are the commit's; cards and suites are the working tree's, as asv takes its benchmarks from there. Discovery reads cards
only: suites, torch and Numba are imported by the worker that measures. An arm that cannot run here is skipped, a wrong
one fails.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from harness.declare.card import Measure
from harness.declare.catalog import Catalog, Entry
from harness.plan.cell import Cell

ROOT = Path(__file__).resolve().parents[2]
MEASURE = Measure(processes=1, rounds=8, min_sample_ms=2)


class _SpeedExperiment:
    """The base of the generated classes; asv calls ``setup`` before each ``track_`` method, in a process of its own."""

    entry: Entry
    experiment: str
    points: dict[str, dict[str, Any]]
    timeout = 300

    def setup(self, point: str, arm: str) -> None:
        """Prove the arm, untimed. Raises NotImplementedError, asv's word for a skip, where it cannot run here."""
        self.record = self._run(point, arm, sample=lambda *_: None)

    def _run(self, point: str, arm: str, sample: Any = None) -> Any:
        """The record of one process with this arm alone; ``sample`` times it in place of Litmus' rounds."""
        from harness.records.record import Record
        from harness.run.speed import run_speed
        from harness.run.worker import load_suite

        # The commit's, which asv installed: loading a suite puts the working tree, the same for all commits, in front.
        import_module("reference")
        declared = self.entry.card.experiments[self.experiment]
        cell = Cell(
            suite=self.entry.name, experiment=self.experiment, kind="speed", point=self.points[point], seed=0,
            device="cpu", profile="smoke", arms=(arm,), card_version=self.entry.card.version, code="", tuned={},
            measure=MEASURE, timeout_s=declared.timeout_s, memory_gib=declared.memory_gib,
        )
        records: list[Record] = []
        run_speed(cell, load_suite(ROOT, self.entry.name), 0, records.append, sample=sample)
        (record,) = records
        if record.status == "skipped":
            raise NotImplementedError(record.reason)
        if record.status != "ok":
            raise RuntimeError(f"{record.status}: {record.reason}\n{record.stderr_tail}".rstrip())
        return record

    def track_time(self, point: str, arm: str) -> float:
        """Nanoseconds of one call: the median over the rounds' samples of an arm that was right before and after."""
        from statistics import median

        samples = self._run(point, arm).samples
        return float(median(ns / calls for ns, calls in zip(samples.elapsed_ns, samples.calls, strict=True)))

    def track_error(self, point: str, arm: str) -> float:
        """Distance from the float64 truth, as the suite measures it; 0 for a yardstick without a result."""
        return float(self.record.error or 0.0)

    def track_peak_bytes(self, point: str, arm: str) -> int:
        """What one call needs at its peak beyond what is there before it; asv's peakmem_ would count torch as well."""
        return int(self.record.peak_bytes)


_SpeedExperiment.track_time.unit = "ns"  # type: ignore[attr-defined]  # asv reads it off the function
_SpeedExperiment.track_error.unit = "error"  # type: ignore[attr-defined]
_SpeedExperiment.track_peak_bytes.unit = "bytes"  # type: ignore[attr-defined]


def _classes() -> dict[str, type]:
    made: dict[str, type] = {}
    for entry in Catalog(ROOT):
        for name, declared in entry.card.experiments.items():
            smoke = declared.in_profile("smoke")
            if declared.kind != "speed" or smoke is None or "cpu" not in smoke.devices:
                continue
            points = {", ".join(f"{axis}={value}" for axis, value in point.items()) or "-": point
                      for point in smoke.grid()}
            title = f"{entry.slug}__{name}"
            made[title] = type(title, (_SpeedExperiment,), {
                "__module__": __name__, "__qualname__": title, "entry": entry, "experiment": name, "points": points,
                "params": [list(points), list(smoke.arms)], "param_names": ["point", "arm"],
                "version": str(entry.card.version), "__doc__": declared.help,
            })
    return made


globals().update(_classes())
