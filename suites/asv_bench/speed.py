"""One asv class for each speed experiment of a suite, with the arms and smoke points as parameters.

asv keeps the history and finds the commit that changed a number; Litmus measures. The harness and the reference code
are the commit's; cards and suites are the working tree's, as asv takes its benchmarks from there. Discovery reads cards
only: suites, torch and Numba are imported by the worker that measures. An arm that cannot run here is skipped, a wrong
one fails.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.declare.catalog import Catalog, Entry
from harness.plan.cell import Cell

if TYPE_CHECKING:
    from harness.adapters.in_process import Proved

ROOT = Path(__file__).resolve().parents[2]
SAMPLES, SAMPLE_MS = 7, 2


class _Clock:
    """Seconds of single calls, added up."""

    seconds = 0.0


_CLOCK = _Clock()
_PROVED: dict[tuple[str, ...], Proved] = {}


class _SpeedExperiment:
    """The base of the generated classes; asv calls ``setup`` before each method, in a process of its own."""

    entry: Entry
    experiment: str
    points: dict[str, dict[str, Any]]
    timeout = 300
    # asv takes `repeat` samples in each of `rounds` processes, and between those of two commits it alternates.
    rounds, repeat, number, warmup_time = 3, 5, 1, 0
    calls = taken = 0

    @staticmethod
    def timer() -> float:
        """What asv reads before and after ``time_call``: else its samples would hold many calls, and asv's own."""
        return _CLOCK.seconds

    def setup(self, point: str, arm: str) -> None:
        """Prove the arm, once in a process. Raises NotImplementedError, asv's word for a skip, where it cannot run."""
        key = (self.entry.name, self.experiment, point, arm)
        if key not in _PROVED:
            _PROVED.clear()
            _PROVED[key] = self._prove(point, arm)
        self.proved, self.record = _PROVED[key], _PROVED[key].records[arm]
        if self.record.status == "skipped":
            raise NotImplementedError(self.record.reason)
        if self.record.status != "ok":
            raise RuntimeError(f"{self.record.status}: {self.record.reason}\n{self.record.stderr_tail}".rstrip())

    def _prove(self, point: str, arm: str) -> Proved:
        from harness.run.worker import load_suite

        try:
            from harness.adapters.in_process import prove
        except ModuleNotFoundError as error:
            raise NotImplementedError("this commit's harness proves no cell for others") from error
        # The commit's, which asv installed: loading a suite puts the working tree, the same for all commits, in front.
        import_module("reference")
        declared = self.entry.card.experiments[self.experiment]
        cell = Cell(
            suite=self.entry.name, experiment=self.experiment, kind="speed", point=self.points[point], seed=0,
            device="cpu", profile="smoke", arms=(arm,), card_version=self.entry.card.version, code="", tuned={},
            measure=declared.measure, timeout_s=declared.timeout_s, memory_gib=declared.memory_gib,
        )
        return prove(cell, load_suite(ROOT, self.entry.name))

    def time_call(self, point: str, arm: str) -> None:
        """The best of some of Litmus' samples; asv's clock goes on by the time of one call.

        What else runs on the machine only ever adds time, and asv cannot pair the sides against it. What lasts longer
        than these samples shows between asv's processes.
        """
        from harness.run.measure.rounds import HostTimer, calibrate

        bench, elapsed_ns = self.proved.benches[arm], []
        if self.calls == 0:
            self.calls = calibrate(bench, SAMPLE_MS * 1e6)
        for _ in range(SAMPLES):
            elapsed_ns.append(HostTimer().sample(bench, self.calls, self.taken, ""))
            self.taken += self.calls
        _CLOCK.seconds += min(elapsed_ns) / self.calls / 1e9

    def track_error(self, point: str, arm: str) -> float:
        """Distance from the float64 truth, as the suite measures it; 0 for a yardstick without a result."""
        return float(self.record.error or 0.0)

    def track_peak_bytes(self, point: str, arm: str) -> int:
        """What one call needs at its peak beyond what is there before it; asv's peakmem_ would count torch as well."""
        return int(self.record.peak_bytes)


_SpeedExperiment.track_error.unit = "error"  # type: ignore[attr-defined]  # asv reads it off the function
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
