"""The page of one paper in one run: what the template needs, gathered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.declare.tuned import TunedExperiment, load_tuned
from harness.report.claims import ClaimCard, claim_cards
from harness.report.experiments import Section, sections
from harness.report.failures import Failure
from harness.report.lines import Line, Result
from harness.report.words import VERDICTS

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Tuning:
    """One experiment's search as a table: the winner and every trial of each arm, best first."""

    experiment: str
    search: TunedExperiment
    stale: bool
    arms: tuple[tuple[str, Any, tuple[tuple[bool, str, float | None], ...]], ...]


@dataclass(frozen=True)
class PaperPage:
    """A paper, its claims and experiments in one run, and where else it was run."""

    line: Line
    result: Result | None
    claims: tuple[ClaimCard, ...]
    sections: tuple[Section, ...]
    tuning: tuple[Tuning, ...]
    failures: tuple[Failure, ...]
    problem: str = ""

    @property
    def counts(self) -> list[tuple[str, int]]:
        """(verdict, number of claims) for the verdicts that occur."""
        found = Counter(claim.verdict for claim in self.claims)
        return [(verdict, found[verdict]) for verdict in VERDICTS if found[verdict]]


def paper_page(
    root: Path, line: Line, result: Result | None, records: pd.DataFrame | None, failed: Sequence[Failure]
) -> PaperPage:
    """Gather the page; ``records`` are the suite's in that run, None where there are none."""
    made: list[Section] = []
    if result is not None and records is not None and line.card is not None:
        made = sections(line.card, records, result.run.info)
    constants = result.run.info.constants() if result else {}
    profile = result.run.info.profile if result else "small"
    return PaperPage(
        line=line, result=result,
        claims=tuple(claim_cards(line.card, result.verdicts if result else (), constants, profile)),
        sections=tuple(made), tuning=tuple(_tuning(line, result)), failures=tuple(failed),
    )


def _tuning(line: Line, result: Result | None) -> list[Tuning]:
    if line.entry is None:
        return []
    tables = []
    ran = result.run.info.cards.get(line.suite) if result else None
    for name, search in load_tuned(line.entry.folder / "tuned.yaml").experiments.items():
        lower = _lower_is_better(line, name, search.metric)
        arms = []
        for arm, winner in search.arms.items():
            trials = sorted(winner.trials, key=lambda trial: _rank(trial.score, lower))
            arms.append((arm, winner, tuple(
                (trial.values == winner.values, _values(trial.values), trial.score) for trial in trials)))
        stale = ran is not None and ran["code"] != search.code
        tables.append(Tuning(name, search, stale, tuple(arms)))
    return tables


def _lower_is_better(line: Line, experiment: str, metric: str) -> bool:
    known = line.card.experiments.get(experiment) if line.card else None
    return known is None or metric not in known.metrics or known.better(metric) != "higher"


def _rank(score: float | None, lower: bool) -> float:
    if score is None or math.isnan(score):
        return float("inf")
    return score if lower else -score


def _values(values: Any) -> str:
    return ", ".join(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
                     for name, value in values.items())
