"""What a call declares to allocate, beside what it was seen to allocate."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.declare.catalog import Entry
from harness.errors import LitmusError
from harness.plan.code import code_hash
from harness.records.allowance import allowed_bytes
from harness.records.record import Record
from harness.records.store import find_runs

_MIB = 2**20
_COLUMNS = ("suite", "kind", "status", "experiment", "point", "device", "arm", "workspace_bytes", "returned_bytes",
            "peak_bytes", "input_bytes")


@dataclass(frozen=True)
class Need:
    """One arm's call: the workspace it declares, the fresh arrays it returned, and its measured peak. Bytes."""

    label: str
    workspace_bytes: float
    returned_bytes: int
    peak_bytes: int
    input_bytes: int

    @property
    def fault(self) -> str | None:
        """What is wrong, None where the call kept its word."""
        if self.peak_bytes <= allowed_bytes(self.workspace_bytes, self.returned_bytes):
            return None
        needed, declared, result = (f"{value / _MIB:.1f} MiB"
                                    for value in (self.peak_bytes, self.workspace_bytes, self.returned_bytes))
        return f"{self.label} needs {needed}, declares {declared} beside a result of {result}"


def needs_of(records: Iterable[Record]) -> list[Need]:
    """The calls that were timed and declare a workspace; who declares none promises nothing."""
    return [_need(vars(record)) for record in records if _declares(vars(record))]


def stored_needs(root: Path, entry: Entry) -> list[Need]:
    """The same from the newest stored run of this very code, since smoke inputs are too small to show much."""
    code = code_hash(root, entry.folder)
    for run in find_runs(root):
        state = run.info.cards.get(entry.name)
        if run.info.profile == "smoke" or state is None or state["code"] != code:
            continue
        try:
            table = run.records(_COLUMNS)
        except LitmusError:  # a run that is still going on has no records yet
            continue
        rows = [dict(zip(_COLUMNS, values, strict=True)) for values in table.itertuples(index=False, name=None)]
        return [_need({**row, "point": json.loads(row["point"])}) for row in rows
                if row["suite"] == entry.name and _declares(row)]
    return []


def _declares(row: Mapping[str, Any]) -> bool:
    said = row["workspace_bytes"]
    return row["kind"] == "speed" and row["status"] == "ok" and said is not None and not math.isnan(said)


def _need(row: Mapping[str, Any]) -> Need:
    point = ",".join(f"{axis}={value}" for axis, value in row["point"].items())
    label = f"{row['experiment']}[{point}] {row['arm']} on {row['device']}"
    return Need(label, float(row["workspace_bytes"]), int(row["returned_bytes"]), int(row["peak_bytes"]),
                int(row["input_bytes"]))
