"""What the trials of a search gave, kept line by line as they end: a search that is cut off goes on where it was."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path

from harness.records.record import Record


class Scores:
    """The metrics of finished trials by cell id, and so by code, card version, values, point and seed.

    A trial that crashed, hung or ran out of memory scores None in this search and is made again by the next.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics: dict[str, dict[str, float | None]] = _read(path)

    def __contains__(self, cell: str) -> bool:
        return cell in self._metrics

    def value(self, cell: str, metric: str) -> float | None:
        """The trial's metric; None where it is not finite or the trial did not finish."""
        return self._metrics[cell].get(metric)

    def add(self, record: Record) -> None:
        """Keep a trial's metrics, on disk only if it ended well."""
        self._metrics[record.cell] = (
            {name: value if math.isfinite(value) else None
             for name, value in record.metrics.items() if isinstance(value, float)}
            if record.status == "ok" else {})
        if record.status != "ok":
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"cell": record.cell, "metrics": self._metrics[record.cell]})
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" + line)  # first the newline: the line before may have been cut off


def _read(path: Path) -> dict[str, dict[str, float | None]]:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    found = {}
    for line in lines:
        # A line that was cut off, or that nothing here wrote, is a trial to be made again.
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(line)
            found[str(kept["cell"])] = {str(name): value if value is None else float(value)
                                        for name, value in kept["metrics"].items()}
    return found
