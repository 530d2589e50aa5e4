"""The contract tests for an author: does this suite keep what its card promises?"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.declare.card import Card
from harness.declare.catalog import Catalog, Entry
from harness.declare.estimate_spec import Custom
from harness.declare.tuned import load_tuned
from harness.errors import LitmusError
from harness.plan.cell import Cell
from harness.plan.code import code_hash, library_modules
from harness.plan.machine import this_machine
from harness.plan.plan import Plan, Request, make_plan
from harness.records.record import Record
from harness.run.engine.base import Engine, RunEngine
from harness.run.engine.local import LocalEngine
from harness.run.lanes import run_cell
from harness.run.oracles import ask
from harness.run.progress import Progress
from harness.run.protocol import Job, Limits
from harness.run.session import RunOptions, run
from harness.run.workspace import needs_of, stored_needs

PACE = "smoke budget"  # the one check that a busy machine can fail for a good suite
SMOKE_LIMIT_S = 3.0
# Virtual CPUs have two speeds, so only twice the limit is a fault.
_SMOKE_SLACK = 2.0
_CROWDED = 1.5
_LIMITS = Limits(arm_s=120.0, startup_s=120.0, memory_bytes=8 * 2**30)


@dataclass(frozen=True)
class Check:
    """One promise: kept or not, and what was seen."""

    name: str
    ok: bool
    detail: str


def validate(root: Path, suite: str, progress: Progress, engine: RunEngine | None = None) -> list[Check]:
    """All checks of one suite, in order. Raises LitmusError where its card or its file cannot be read."""
    entry = Catalog(root).get(suite)
    card = entry.card
    checks = [Check("card", True, f"{len(card.experiments)} experiments, {len(card.claims)} claims")]
    with nullcontext(engine) if engine else _local(root, entry) as running:
        seen = _inspect(running, root, entry)
        checks += [_functions(card, seen), _estimates(card, seen), _tuning(root, entry)]
        checks.append(_oracles(running, root, entry, seen))
        watch = _Watch(progress)
        checks += _smoke(running, root, entry, watch)
        checks.append(_determinism(running, root, watch))
    return checks


def _local(root: Path, entry: Entry) -> LocalEngine:
    return LocalEngine(root, this_machine().cores, library_modules(root, entry.folder))


def _inspect(engine: Engine, root: Path, entry: Entry) -> Mapping[str, Any]:
    job = Job(task="inspect", root=str(root), limits=_LIMITS, argument={"suite": entry.name})
    found: list[dict[str, Any]] = []
    ending = engine.execute(job, lambda message: found.append(message["value"]))
    if ending.status != "done":
        raise LitmusError("suite.py cannot be loaded", where=entry.folder / "suite.py",
                          value=ending.last_words, expected="a module that defines 'suite'",
                          next_step="run it by hand: python -c 'import suites."
                          f"{entry.family}.{entry.slug}.suite'")
    return found[0]


def _functions(card: Card, seen: Mapping[str, Any]) -> Check:
    """Every experiment has its function, with the parameters it is called with."""
    missing = [name for name, item in card.experiments.items() if name not in seen[item.kind]]
    faults = [f"no @suite.{card.experiments[name].kind}('{name}')" for name in missing]
    faults += [f"{name}: {text}" for name, text in seen["wrong_parameters"].items()]
    return Check("functions", not faults, "; ".join(faults) or f"{len(card.experiments)} registered")


def _estimates(card: Card, seen: Mapping[str, Any]) -> Check:
    """Every custom estimate that a claim names is registered."""
    specs = [part.estimate for claim in card.claims for part in claim.resolved_parts()]
    specs += [requirement.estimate for claim in card.claims for requirement in claim.requires]
    wanted = {spec.custom for spec in specs if isinstance(spec, Custom)}
    faults = [f"no @suite.estimate('{name}')" for name in sorted(wanted - set(seen["estimates"]))]
    return Check("estimates", not faults, "; ".join(faults) or f"{len(wanted)} custom")


def _tuning(root: Path, entry: Entry) -> Check:
    """Every grid has its winners; those found with other code are named."""
    tuned, code = load_tuned(entry.folder / "tuned.yaml"), code_hash(root, entry.folder)
    faults, old = [], []
    declared = {name: item.tune for name, item in entry.card.experiments.items() if item.tune is not None}
    for name, tune in declared.items():
        missing = [arm for arm in tune.grid if tuned.values(name, arm) is None]
        if missing:
            faults.append(f"{name}: no winner for {', '.join(missing)}; run: litmus tune {entry.slug}:{name}")
        elif tuned.experiments[name].code != code:
            old.append(name)
    for name, experiment in entry.card.experiments.items():
        faults += [f"{name}: no winner to take from {of}:{arm}; run: litmus tune {entry.slug}:{of}"
                   for of, arm in tuned.borrowed(experiment) if of != name and tuned.values(of, arm) is None]
    faults += [f"{name}: in tuned.yaml, not in the card" for name in tuned.experiments if name not in declared]
    note = f"{len(declared)} searches"
    edges = [f"{name} ({arm}: {', '.join(winner.at_edge)})" for name, search in tuned.experiments.items()
             for arm, winner in search.arms.items() if winner.at_edge]
    if edges:
        note += f"; winners at the edge of what was tried: {', '.join(edges)}"
    if old:
        note += f"; found with older code, search again if the methods changed: {', '.join(old)}"
    return Check("tuned.yaml", not faults, "; ".join(faults) or note)


def _oracles(engine: Engine, root: Path, entry: Entry, seen: Mapping[str, Any]) -> Check:
    """Every oracle agrees, and there is one: without it nothing says that a method is right."""
    if not seen["oracles"]:
        return Check("oracles", False, "none registered; prove the method with @suite.oracle")
    answers = ask(engine, root, entry.name)
    faults = [f"{name}: {fault}" for name, fault in answers.faults.items()]
    notes = [f"{len(answers.agreed)} agree: {', '.join(answers.agreed)}"]
    notes += [f"{name}: skipped: {reason}" for name, reason in answers.skipped.items()]
    return Check("oracles", not faults, "; ".join(faults or notes))


class _Watch:
    """Passes progress on and keeps what the checks need."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.records: list[Record] = []
        self.seconds = 0.0

    def recorded(self, record: Record) -> None:
        self.records.append(record)
        self._progress.recorded(record)

    def finished(self, cell: Cell, seconds: float) -> None:
        self.seconds += seconds
        self._progress.finished(cell, seconds)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return getattr(self._progress, name)  # type: ignore[no-any-return]  # the Protocol's other methods


def _smoke(engine: RunEngine, root: Path, entry: Entry, watch: _Watch) -> list[Check]:
    """The smoke profile: every arm ok, quick enough, and every claim gets a verdict."""
    with tempfile.TemporaryDirectory(prefix="litmus-validate-") as folder:
        request = Request((entry.name,), "smoke", ("cpu",))
        try:
            result = run(root, request, RunOptions(out=Path(folder) / "smoke"), watch, engine)
        except LitmusError as error:
            return [Check("smoke run", False, str(error))]
    return [_all_ok(entry, watch), _budget(watch), _workspace(root, entry, watch),
            _computable(entry.card, result.verdicts)]


def _own(entry: Entry, watch: _Watch) -> list[Record]:
    return [record for record in watch.records if record.suite == entry.name]


def _all_ok(entry: Entry, watch: _Watch) -> Check:
    records = _own(entry, watch)
    bad = [f"{record.experiment} {record.arm}: {record.status}, {record.reason}" for record in records
           if record.status not in ("ok", "skipped")]
    ok = sum(record.status == "ok" for record in records)
    skipped = sorted({f"{record.experiment}: {record.reason}" for record in records if record.status == "skipped"})
    detail = f"{ok} arms ok" + (f"; skipped {'; '.join(skipped)}" if skipped else "")
    return Check("smoke run", not bad and ok > 0, "; ".join(bad) or detail)


def _budget(watch: _Watch) -> Check:
    prepare_s = sum(record.prepare_ns for record in watch.records) / 1e9
    spent_s = max(0.0, watch.seconds - prepare_s)
    crowded = max(1.0, os.getloadavg()[0] / this_machine().cores)  # other work stretches wall time by about this
    detail = f"{spent_s:.1f} s of {SMOKE_LIMIT_S:g} s, and {prepare_s:.1f} s to prepare"
    if crowded > _CROWDED:
        detail += f" (the machine has {crowded:.1f} times as much to do as cores to do it)"
    return Check(PACE, spent_s <= _SMOKE_SLACK * SMOKE_LIMIT_S * crowded, detail)


def _workspace(root: Path, entry: Entry, watch: _Watch) -> Check:
    """No arm allocates more than it declares, here and in the newest stored run of this code."""
    needs = [*needs_of(_own(entry, watch)), *stored_needs(root, entry)]
    faults = [fault for need in needs if (fault := need.fault)]
    largest = max((need.input_bytes for need in needs), default=0)
    note = f"{len(needs)} calls keep what they declared, on inputs of up to {largest / 2**20:.3g} MiB"
    return Check("workspace", not faults, "; ".join(faults) or (note if needs else "no arm declares one"))


def _computable(card: Card, verdicts: Any) -> Check:
    judged = {verdict["claim"]: verdict for verdict in verdicts}
    faults = [f"{name}: not judged" for name in card.claim_ids if name not in judged]
    words = sorted({verdict["verdict"] for verdict in verdicts})
    return Check("claims", not faults, "; ".join(faults) or f"{len(judged)} computable (smoke says {', '.join(words)})")


def _determinism(engine: Engine, root: Path, watch: _Watch) -> Check:
    """The same seed again, in a fresh process: the same metrics, bit for bit."""
    first = {(record.cell, record.arm): record for record in watch.records
             if record.kind == "trial" and record.status == "ok"}
    suites = {record.suite for record in first.values()}
    plan = make_plan(root, Request(tuple(suites), "smoke", ("cpu",)), this_machine()) if suites else Plan((), ())
    again: list[Record] = []
    for cell in plan.cells:
        arms = [arm for arm in cell.arms if (cell.id, arm) in first]
        if arms:
            run_cell(engine, root, cell, arms, again.append, lambda text: None)
    faults = []
    for record in again:
        before = first[record.cell, record.arm].metrics
        faults += [f"{record.experiment} {record.arm}: {name} differs" for name in before
                   if not _same(before[name], record.metrics.get(name))]
    return Check("determinism", not faults, "; ".join(faults) or f"{len(again)} trials repeated, equal bit for bit")


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return one == two or (math.isnan(one) and math.isnan(two))
    return False
