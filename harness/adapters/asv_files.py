"""Stored runs in asv's own files (result format 2), so that ``asv publish`` shows their history without measuring.

``benchmarks.json`` says what there is, ``<machine>/machine.json`` where it was measured, and
``<machine>/<commit>-litmus-<device>.json`` what came out. Files and entries that asv wrote itself stay.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.adapters.asv_series import COLUMNS, FindExperiment, Series, series_of
from harness.declare.card import Experiment
from harness.declare.catalog import Catalog
from harness.records.files import read_json_object, replacing
from harness.records.store import Run, RunInfo

_BENCHMARKS, _MACHINE = "benchmarks.json", "machine.json"
_VERSIONS = {"benchmarks": 2, "result": 2, "machine": 1}
_LIMIT_BYTES = 64 * 2**20
_STATS = ("ci_99_a", "ci_99_b", "q_25", "q_75", "number", "repeat")
_RESULT_COLUMNS = ("result", "params", "version", "started_at", "duration", *(f"stats_{name}" for name in _STATS))


@dataclass
class Export:
    """What was written, and ``left_out``: (run, reason)."""

    files: list[Path] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Place:
    """One result file: a machine, a commit, a device."""

    machine: str
    commit: str
    device: str

    @property
    def file(self) -> str:
        return f"{self.machine}/{self.commit[:8]}-{self.environment}.json"

    @property
    def environment(self) -> str:
        return "litmus-" + self.device.replace(":", "")


@dataclass
class _Result:
    info: RunInfo
    date_ms: int
    series: dict[str, Series] = field(default_factory=dict)


def export(root: Path, runs: Sequence[Run], out: Path) -> Export:
    """Write ``runs`` below ``out``. Of runs of one commit, machine and device the newest that has a value gives it.

    A run without a commit of this repository, or of files that differed from their commit, is left out: asv could
    only show it at a place where it was not measured. Raises LitmusError where ``out`` cannot be written or holds
    something else.
    """
    done, results = Export(), dict[_Place, _Result]()
    find = _experiments(root)
    for run in sorted(runs, key=lambda item: item.info.started_at):
        date_ms = _date_ms(root, run.info)
        if isinstance(date_ms, str):
            done.left_out.append((run.id, date_ms))
            continue
        for device, found in series_of(run.records(COLUMNS), find).items():
            place = _Place(_machine_name(run), str(run.info.commit), device)
            result = results.setdefault(place, _Result(run.info, date_ms))
            result.info = run.info
            _merge(result.series, found)
        done.runs.append(run.id)
    for place, result in results.items():
        done.files.append(_write(out / place.file, _result_file(place, result), _VERSIONS["result"]))
        _write(out / place.machine / _MACHINE, _machine_file(place.machine, result.info), _VERSIONS["machine"])
    if results:
        series = [item for result in results.values() for item in result.series.values()]
        _write(out / _BENCHMARKS, _benchmarks(out / _BENCHMARKS, series), _VERSIONS["benchmarks"])
    return done


def _experiments(root: Path) -> FindExperiment:
    entries = {entry.name: entry for entry in Catalog(root)}

    def find(suite: str, experiment: str) -> Experiment | None:
        return entries[suite].card.experiments.get(experiment) if suite in entries else None

    return find


def _date_ms(root: Path, info: RunInfo) -> int | str:
    """The commit's time as asv wants it, or why the run is left out."""
    if not re.fullmatch(r"[0-9a-f]{40}", info.commit or ""):
        return "it names no commit"
    if info.dirty:
        return "files differed from its commit"
    words = ["git", "-C", str(root), "show", "-s", "--format=%ct", f"{info.commit}^{{commit}}", "--"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    lines = done.stdout.split()
    if done.returncode or not lines:
        return f"its commit {str(info.commit)[:8]} is not in this repository"
    return int(lines[-1]) * 1000


def _machine_name(run: Run) -> str:
    key = str(run.info.machine.get("key", ""))
    return key if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,120}", key) else run.machine


def _merge(into: dict[str, Series], found: Sequence[Series]) -> None:
    """Newer values beside or over older ones of the same version and axes; otherwise the newer series alone."""
    for item in found:
        old = into.get(item.name)
        if old is not None and (old.version, old.param_names) == (item.version, item.param_names):
            item.values = {**old.values, **item.values}
        into[item.name] = item


def _result_file(place: _Place, result: _Result) -> dict[str, Any]:
    python = ".".join(result.info.software.get("python", "").split(".")[:2])
    return {
        "commit_hash": place.commit,
        "env_name": place.environment,
        "date": result.date_ms,
        "params": {**_machine_file(place.machine, result.info), "python": python, "device": place.device},
        "python": python,
        "requirements": {},
        "env_vars": {},
        "result_columns": list(_RESULT_COLUMNS),
        "results": {name: _row(series) for name, series in sorted(result.series.items())},
        "durations": {},
    }


def _row(series: Series) -> list[Any]:
    grid = series.grid()
    row: list[Any] = [[value.result for value in grid], series.params, series.version,
                      int(series.started_at * 1000), series.elapsed_ns / 1e9]
    for name in _STATS:
        column = [(value.stats or {}).get(name) for value in grid]
        row.append(column if any(item is not None for item in column) else None)
    while row[-1] is None:
        row.pop()
    return row


def _machine_file(name: str, info: RunInfo) -> dict[str, str]:
    machine = info.machine
    gibibytes = round((machine.get("memory_bytes") or 0) / 2**30)
    return {"machine": name, "os": str(machine.get("system", "")).split("-")[0],
            "arch": str(machine.get("system", "")).rpartition("-")[2], "cpu": str(machine.get("cpu", "")),
            "num_cpu": str(machine.get("cores", "")), "ram": f"{gibibytes}GB"}


def _benchmarks(path: Path, series: Sequence[Series]) -> dict[str, Any]:
    """The entries of asv's own benchmarks and of those that were exported before, and those of ``series``.

    The parameters of one benchmark are all that its newest version was measured with on any machine.
    """
    entries: dict[str, Any] = {}
    if path.exists():
        known = read_json_object(path, _LIMIT_BYTES, "remove it, or choose another --out")
        entries = {name: item for name, item in known.items() if isinstance(item, dict)}
    for name, same in _by_name(series):
        newest = max(same, key=lambda item: (int(item.version), item.started_at))
        alike = [item for item in same if (item.version, item.param_names) == (newest.version, newest.param_names)]
        whole = Series(newest.name, newest.kind, newest.unit, newest.version, newest.param_names, newest.code,
                       values={setting: value for item in alike for setting, value in item.values.items()})
        entries[name] = {"name": name, "type": whole.kind, "unit": whole.unit, "version": whole.version,
                         "param_names": list(whole.param_names), "params": whole.params, "code": whole.code,
                         "timeout": 0}
    return entries


def _by_name(series: Sequence[Series]) -> Iterator[tuple[str, list[Series]]]:
    names = dict.fromkeys(item.name for item in series)
    for name in names:
        yield name, [item for item in series if item.name == name]


def _write(path: Path, data: Mapping[str, Any], version: int) -> Path:
    """JSON as asv reads it: NaN is a skip; an infinity would break its pages and is none of our values."""
    text = json.dumps({**_plain(data), "version": version}, indent=1) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isinf(value) else value


