"""A run's folder: ``run.json``, ``records.parquet``, ``verdicts.json``, and how runs are found below ``results/``.

Names of runs and machines are the folders' names, never what a file says. pandas and pyarrow are imported only when
records are read or written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from typing_extensions import TypedDict

from harness.errors import LitmusError, did_you_mean
from harness.records.files import own_file, read_json_object, write_json
from harness.records.record import SCHEMA_VERSION
from harness.records.shapes import (
    VERDICTS,
    CanaryShape,
    CeilingsShape,
    Count,
    EngineShape,
    MachineShape,
    Name,
    Seconds,
    SuiteName,
    Text,
    Verdict,
    check_verdicts,
    has_shape,
)
from harness.records.table import COLUMNS, DEFAULT_COLUMNS, RECORDS_FILE, load_records, write_records

if TYPE_CHECKING:
    import pandas as pd

RUN_FILE = "run.json"
VERDICTS_FILE = "verdicts.json"
RESULTS = "results"
BASELINE = "baseline"

_RUN_LIMIT_BYTES = 8 * 2**20
_VERDICTS_LIMIT_BYTES = 64 * 2**20
_RUN_AGAIN = "remove the folder, or make the run again with: litmus run"


class CardState(TypedDict):
    """Which card and code a suite's records come from."""

    version: int
    code: Name


class RunInfo(BaseModel):
    """``run.json``: what was asked, on which machine, with which software, and how it went.

    Times are seconds since the epoch; ``finished_at`` is None while the run goes on. ``counts`` maps status to records.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    schema_version: int = SCHEMA_VERSION
    run: str
    started_at: Seconds
    finished_at: Seconds | None = None
    profile: Name
    selectors: list[Text] = Field(default_factory=list)
    devices: list[Name] = Field(default_factory=lambda: ["auto"])
    seeds: int | None = None
    command: Text = ""
    litmus: Name
    commit: Name | None = None
    dirty: bool = False
    machine: dict[str, Any] = Field(default_factory=dict)
    engine: dict[str, Any] = Field(default_factory=lambda: {"name": "local"})
    software: dict[Name, Name] = Field(default_factory=dict)
    volatile: dict[str, Any] = Field(default_factory=dict)
    ceilings: dict[str, Any] = Field(default_factory=dict)
    canary: dict[str, Any] | None = None
    counts: dict[Name, Count] = Field(default_factory=dict)
    cards: dict[SuiteName, CardState] = Field(default_factory=dict)
    tuning: dict[str, Any] = Field(default_factory=dict)

    @field_validator("machine", "engine", "ceilings", "canary")
    @classmethod
    def _shaped(cls, value: Any, info: ValidationInfo) -> Any:
        shapes = {"machine": MachineShape, "engine": EngineShape, "ceilings": CeilingsShape, "canary": CanaryShape}
        return value if value is None else has_shape(value, shapes[info.field_name or ""])

    def constants(self) -> dict[str, float]:
        """The machine's constants that conditions may mention (l1, l2, llc, memory in bytes; cores)."""
        known = {**(self.machine.get("caches") or {}), "cores": self.machine.get("cores"),
                 "memory": self.machine.get("memory_bytes")}
        return {name: value for name, value in known.items() if isinstance(value, int | float)}


def write_run_info(folder: Path, info: RunInfo) -> Path:
    """Write ``run.json``, replacing the old one in one step; non-finite numbers become null."""
    return write_json(Path(folder) / RUN_FILE, finite(info.model_dump()))


def read_run_info(folder: Path) -> RunInfo:
    """Read ``run.json``; ``run`` is the folder's name whatever the file says. Raises LitmusError on anything else."""
    path = Path(folder) / RUN_FILE
    data = read_json_object(path, _RUN_LIMIT_BYTES, _RUN_AGAIN)
    version = data.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise LitmusError("the run is of a newer schema", where=path, key="schema_version", value=version,
                          expected=f"at most {SCHEMA_VERSION}", next_step="update Litmus")
    try:
        return RunInfo.model_validate({**data, "run": Path(folder).resolve().name})
    except ValidationError as error:
        first = error.errors()[0]
        raise LitmusError("run.json is not valid", where=path, key=".".join(map(str, first["loc"]))[:300],
                          expected=first["msg"][:300], next_step=_RUN_AGAIN) from error


def write_verdicts(folder: Path, verdicts: Sequence[Mapping[str, Any]]) -> Path:
    """Write ``verdicts.json`` in one step; strict JSON, so an unbounded or undefined number is null."""
    rows = [finite(dict(verdict)) for verdict in verdicts]
    return write_json(Path(folder) / VERDICTS_FILE, {"schema_version": SCHEMA_VERSION, "verdicts": rows})


def read_verdicts(folder: Path) -> list[dict[str, Any]]:
    """The verdicts of a run, [] where none were judged yet. Raises LitmusError for a file that is something else."""
    path = Path(folder) / VERDICTS_FILE
    if not path.exists() and not path.is_symlink():
        return []
    step = "judge the run again with: litmus verdicts " + Path(folder).name
    return check_verdicts(read_json_object(path, _VERDICTS_LIMIT_BYTES, step).get("verdicts"), path, step)


def finite(value: Any) -> Any:
    """``value`` with every float that JSON does not have replaced by None, inside lists and dicts too."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


class Run:
    """One run's folder. Files are read when asked for; ``id`` and ``machine`` are the names of the folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.id = self.folder.resolve().name
        self.machine = self.folder.resolve().parent.name

    @cached_property
    def info(self) -> RunInfo:
        """``run.json``. Raises LitmusError, see :func:`read_run_info`."""
        return read_run_info(self.folder)

    def records(self, columns: Sequence[str] | None = None, kind: str | None = None) -> pd.DataFrame:
        """The records, see :func:`load_records`."""
        return load_records(self.folder, columns, kind)

    def verdicts(self) -> list[dict[str, Any]]:
        """The verdicts, [] where none were judged yet."""
        return read_verdicts(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def find_runs(root: Path) -> list[Run]:
    """The readable runs in ``root/results/<machine>/<run>/``, newest first. Links that lead out are not followed."""
    return [run for run, refusal in _scan(root) if refusal is None]


def refused_runs(root: Path) -> list[LitmusError]:
    """Why folders that hold a ``run.json`` are not among :func:`find_runs`."""
    return [refusal for _, refusal in _scan(root) if refusal is not None]


def _scan(root: Path) -> list[tuple[Run, LitmusError | None]]:
    found: list[tuple[Run, LitmusError | None]] = []
    for folder in _run_folders(Path(root) / RESULTS):
        run, refusal = Run(folder), None
        try:
            _ = run.info
        except LitmusError as error:
            refusal = error
        found.append((run, refusal))
    return sorted(found, key=_age)


def _age(item: tuple[Run, LitmusError | None]) -> tuple[float, str]:
    run, refusal = item
    return (-run.info.started_at if refusal is None else math.inf, run.id)


def _run_folders(results: Path) -> Iterator[Path]:
    inside = results.resolve()
    for machine in _folders(results, inside):
        for folder in _folders(machine, inside):
            if _leads_inside(folder / RUN_FILE, inside) and (folder / RUN_FILE).is_file():
                yield folder


def _folders(parent: Path, inside: Path) -> list[Path]:
    try:
        with os.scandir(parent) as entries:
            paths = sorted(Path(entry.path) for entry in entries if not entry.name.startswith("."))
    except OSError:
        return []
    return [path for path in paths if _leads_inside(path, inside) and path.is_dir()]


def _leads_inside(path: Path, inside: Path) -> bool:
    """Whether ``path``, its links followed, is a readable place below ``inside``."""
    try:
        return path.resolve(strict=True).is_relative_to(inside)
    except (OSError, RuntimeError):  # RuntimeError is Python 3.11's word for a loop of links
        return False


def resolve_run(root: Path, text: str) -> Run:
    """The run that ``text`` names: a folder, a run's id, ``<machine>/<id>``, or ``latest``.

    Raises LitmusError where it names none or several.
    """
    if text != "latest" and (Path(text) / RUN_FILE).is_file():
        return Run(Path(text))
    runs = find_runs(root)
    if text == "latest" and runs:
        return runs[0]
    named = [run for run in runs if text in (run.id, f"{run.machine}/{run.id}")]
    if len(named) == 1:
        return named[0]
    names = [f"{run.machine}/{run.id}" for run in named or runs]
    if named:
        raise LitmusError("more than one run has this name", value=text, expected="one of " + ", ".join(names))
    near = did_you_mean(text, [*names, *(run.id for run in runs)])
    raise LitmusError("no such run", where=Path(root) / RESULTS, value=text, expected=near,
                      next_step="make one with: litmus run")


def resolve_pair(root: Path, base: str, head: str) -> tuple[Run, Run]:
    """Two runs as :func:`resolve_run` finds them; ``baseline`` is what the other is to be held against.

    It is the run that the file ``results/baseline`` names (``<machine>/<id>`` or an id, on one line). Without that file
    it is the newest run before the other one of the same machine and profile. Raises LitmusError where there is none.
    """
    if base == head == BASELINE:
        raise LitmusError("both runs are the baseline", where="the command line", value=BASELINE,
                          expected="two different runs", next_step="try: litmus compare baseline latest")
    found = {name: resolve_run(root, name) for name in (base, head) if name != BASELINE}
    for name, other in ((base, head), (head, base)):
        if name == BASELINE:
            found[name] = _baseline(root, found[other])
    return found[base], found[head]


def _baseline(root: Path, other: Run) -> Run:
    pointer = Path(root) / RESULTS / BASELINE
    if pointer.is_file():
        name = own_file(pointer).read_bytes()[:1000].decode(errors="replace").strip()
        runs = [run for run in find_runs(root) if name in (run.id, f"{run.machine}/{run.id}")]
        if len(runs) == 1:
            return runs[0]
        raise LitmusError("the baseline is no stored run" if not runs else "the baseline names several runs",
                          where=pointer, value=name, expected="<machine>/<id> of a run below results/",
                          next_step="correct the file, or remove it to take the run before")
    mine = other.info
    runs = [run for run in find_runs(root) if run.info.machine.get("key") == mine.machine.get("key")
            and run.info.profile == mine.profile and run.info.started_at < mine.started_at]
    if not runs:
        raise LitmusError("there is no baseline", where=Path(root) / RESULTS, value=f"{other.machine}/{other.id}",
                          expected=f"an earlier run of this machine with profile {mine.profile}",
                          next_step="name two runs, or write one's name into results/baseline")
    return runs[0]


def newest_verdicts(root: Path, runs: Sequence[Run] | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """Verdicts by (suite, claim): each suite's from the newest of ``runs`` (default: all found) that judged it.

    A smoke run only shows that a suite works, so it counts for a suite only where no other profile was run.
    """
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for run in evidence_order(find_runs(root) if runs is None else runs):
        taken = {suite for suite, _ in newest}
        newest.update({(row["suite"], row["claim"]): row for row in run.verdicts() if row["suite"] not in taken})
    return newest


def evidence_order(runs: Sequence[Run]) -> list[Run]:
    """Newest first, smoke runs behind all others."""
    return sorted(runs, key=lambda run: (run.info.profile == "smoke", -run.info.started_at))


__all__ = [
    "COLUMNS",
    "DEFAULT_COLUMNS",
    "RECORDS_FILE",
    "RESULTS",
    "RUN_FILE",
    "VERDICTS",
    "VERDICTS_FILE",
    "CardState",
    "Run",
    "RunInfo",
    "Verdict",
    "evidence_order",
    "find_runs",
    "finite",
    "load_records",
    "newest_verdicts",
    "read_run_info",
    "read_verdicts",
    "refused_runs",
    "resolve_pair",
    "resolve_run",
    "write_records",
    "write_run_info",
    "write_verdicts",
]
