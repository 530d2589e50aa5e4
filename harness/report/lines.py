"""Which stored run speaks for which suite, and whether the code has changed since."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.declare.card import Card
from harness.declare.catalog import Catalog, Entry
from harness.plan.code import code_hash
from harness.records.store import Run

Verdict = Mapping[str, Any]
BUILT_IN = "litmus/"  # the canary and other cells of the harness itself


@dataclass(frozen=True)
class Result:
    """One suite in one run. ``stale`` says what differs between now and the run, empty where nothing does."""

    suite: str
    run: Run
    verdicts: tuple[Verdict, ...]
    stale: str = ""


@dataclass(frozen=True)
class Line:
    """One suite of the project, or one that only old runs know (``entry`` is None), with its results, newest first."""

    suite: str
    entry: Entry | None
    results: tuple[Result, ...]

    @property
    def card(self) -> Card | None:
        """The suite's card as it is now."""
        return self.entry.card if self.entry else None

    @property
    def family(self) -> str:
        """The first part of the suite's name."""
        return self.suite.split("/")[0]

    @property
    def title(self) -> str:
        """The paper's title, the suite's name where there is no card."""
        return self.card.paper.title if self.card else self.suite

    @cached_property
    def newest(self) -> Result | None:
        """The newest run that judged the suite, smoke runs last, else the newest that has it; None without a run."""
        judged = sorted((result for result in self.results if result.verdicts),
                        key=lambda result: result.run.info.profile == "smoke")
        return next(iter([*judged, *self.results]), None)

    @property
    def claims(self) -> list[tuple[str, str, str, str]]:
        """(claim id, statement, verdict, reason): the card's claims in order, or those of the newest verdicts."""
        verdicts = {item["claim"]: item for item in (self.newest.verdicts if self.newest else ())}
        if self.card is None:
            return [(name, name.replace("_", " "), item["verdict"], item["reason"]) for name, item in verdicts.items()]
        absent = {"verdict": "not run", "reason": "no stored run has judged this claim"}
        found = [(claim, verdicts.get(claim.id, absent)) for claim in self.card.claims]
        return [(claim.id, claim.statement, item["verdict"], item["reason"]) for claim, item in found]


def lines(root: Path, runs: Sequence[Run]) -> list[Line]:
    """Every suite of the project and of the runs, by family and name; results are ordered newest first."""
    entries = {entry.name: entry for entry in Catalog(root).entries}
    results: dict[str, list[Result]] = {}
    codes: dict[str, str] = {}
    for run in sorted(runs, key=lambda item: (-item.info.started_at, item.id)):
        verdicts: dict[str, list[Verdict]] = {}
        for verdict in run.verdicts():
            verdicts.setdefault(verdict["suite"], []).append(verdict)
        for suite in dict.fromkeys([*run.info.cards, *verdicts]):
            entry = entries.get(suite)
            if suite.startswith(BUILT_IN):
                continue
            if entry is not None and suite not in codes:
                codes[suite] = code_hash(root, entry.folder)
            stale = _stale(run.info.cards.get(suite), entry, codes.get(suite))
            results.setdefault(suite, []).append(Result(suite, run, tuple(verdicts.get(suite, ())), stale))
    names = sorted({*entries, *results})
    return [Line(name, entries.get(name), tuple(results.get(name, ()))) for name in names]


def _stale(state: Mapping[str, Any] | None, entry: Entry | None, code: str | None) -> str:
    if entry is None:
        return "the suite is no longer in the project"
    if state is None:
        return ""
    changes = []
    if state["version"] != entry.card.version:
        changes.append(f"card version {state['version']} then, {entry.card.version} now")
    if state["code"] != code:
        changes.append("code changed since this run")
    return ", ".join(changes)


def date_text(seconds: float | None) -> str:
    """A point in time as ``2026-01-31 09:05 UTC``."""
    if not seconds:
        return "unknown"
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
