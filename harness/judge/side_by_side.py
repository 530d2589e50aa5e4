"""Runs of several machines beside each other: which may stand there, and where their verdicts differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import LitmusError
from harness.records.store import Run, evidence_order

BUILT_IN = "litmus/"
ABSENT = "-"
_SHOWN = 5


@dataclass(frozen=True)
class Row:
    """One claim: the verdict of each machine in the table's order, None where the machine did not judge it."""

    suite: str
    claim: str
    verdicts: tuple[Mapping[str, Any] | None, ...]

    @property
    def words(self) -> list[str]:
        """The verdicts' words, a dash where there is none."""
        return [ABSENT if verdict is None else str(verdict["verdict"]) for verdict in self.verdicts]

    @property
    def agrees(self) -> bool:
        """Whether all machines that judged it say the same."""
        return len(set(self.words) - {ABSENT}) <= 1


@dataclass(frozen=True)
class SideBySide:
    """``machines`` are keys, ``runs`` those that speak; ``sources`` says for (suite, machine) which one."""

    machines: tuple[str, ...]
    runs: tuple[Run, ...]
    sources: Mapping[tuple[str, str], Run]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    @property
    def shared(self) -> list[Row]:
        """The claims that at least two machines judged."""
        return [row for row in self.rows if sum(word != ABSENT for word in row.words) > 1]

    @property
    def differing(self) -> list[Row]:
        """The claims on which the machines do not agree."""
        return [row for row in self.shared if not row.agrees]


def side_by_side(runs: Sequence[Run]) -> SideBySide:
    """The runs by machine; of one machine, the newest run of a suite speaks for it, smoke runs last.

    Raises LitmusError where a run is not finished and judged, and where two machines ran a suite in ways that cannot be
    compared: another profile, card, code or data.
    """
    for run in runs:
        _refuse_unfinished(run)
    sources: dict[tuple[str, str], Run] = {}
    for run in evidence_order(runs):
        for suite in run.info.cards:
            if not suite.startswith(BUILT_IN):
                sources.setdefault((suite, str(run.info.machine["key"])), run)
    machines = tuple(sorted({machine for _, machine in sources}))
    suites = sorted({suite for suite, _ in sources})
    faults = [fault for suite in suites for fault in _faults(suite, machines, sources)]
    if faults:
        more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise LitmusError("these runs cannot stand side by side", value="; ".join(faults[:_SHOWN]) + more,
                          expected="of each suite the same profile, card, code and data on every machine",
                          next_step="leave such runs out, or run those suites again on one of the machines")
    used = tuple(run for run in runs if any(run is source for source in sources.values()))
    rows = tuple(row for suite in suites for row in _rows(suite, machines, sources))
    return SideBySide(machines, used, sources, rows, tuple(_notes(used)))


def _refuse_unfinished(run: Run) -> None:
    if not run.info.machine.get("key"):
        raise LitmusError("the run does not say on which machine it was made", where=run.folder, key="machine.key",
                          expected="a run made by: litmus run", next_step="leave it out")
    if run.info.finished_at is None or not run.verdicts():
        raise LitmusError("the run is not finished", where=run.folder, expected="a run with verdicts",
                          next_step=f"go on with it on its machine: litmus run --resume {run.id}")


def _faults(suite: str, machines: Sequence[str], sources: Mapping[tuple[str, str], Run]) -> Iterator[str]:
    mine = [(machine, sources[suite, machine]) for machine in machines if (suite, machine) in sources]
    first, run = mine[0]
    for machine, other in mine[1:]:
        states = run.info.cards[suite], other.info.cards[suite]
        for what, base, head in (
            ("profile", run.info.profile, other.info.profile),
            ("card version", states[0]["version"], states[1]["version"]),
            ("code", states[0]["code"], states[1]["code"]),
        ):
            if base != head:
                yield f"{suite} has {what} {base} on {first}, {head} on {machine}"
                break
        else:
            if _data(run, suite, other):
                yield f"{suite} has other data on {first} than on {machine}"


def _data(run: Run, suite: str, other: Run) -> bool:
    """Whether the same arm of the same cell drew from other data in the two runs."""
    found = []
    for item in (run, other):
        table = item.records(("suite", "status", "cell", "arm", "data"))
        table = table[(table["suite"] == suite) & (table["status"] == "ok")]
        places = zip(table["cell"].astype(str), table["arm"].astype(str), strict=True)
        found.append(dict(zip(places, table["data"].astype(object), strict=True)))
    return any(isinstance(value, str) and isinstance(found[1].get(place), str) and found[1][place] != value
               for place, value in found[0].items())


def _rows(suite: str, machines: Sequence[str], sources: Mapping[tuple[str, str], Run]) -> Iterator[Row]:
    judged = [{verdict["claim"]: verdict for verdict in sources[suite, machine].verdicts()
               if verdict["suite"] == suite} if (suite, machine) in sources else {} for machine in machines]
    for claim in dict.fromkeys(name for verdicts in judged for name in verdicts):
        yield Row(suite, claim, tuple(verdicts.get(claim) for verdicts in judged))


def _notes(runs: Sequence[Run]) -> Iterator[str]:
    """What differs between the runs and may matter, without making them incomparable."""
    names = dict.fromkeys(name for run in runs for name in run.info.software if name != "kernel")
    for name in names:
        versions = {run.info.software.get(name, "none") for run in runs}
        if len(versions) > 1:
            yield f"{name}: {', '.join(sorted(versions))}"
    for run in runs:
        if run.info.canary and run.info.canary.get("alarm"):
            yield f"the A/A canary alarmed on {run.info.machine['key']}, so no claim on time was judged there"


def estimate_text(verdict: Mapping[str, Any] | None) -> str:
    """``1.23 [1.1, 1.4]`` of a claim with one part; empty for any other."""
    parts = verdict["parts"] if verdict else []
    estimate = parts[0]["estimate"] if len(parts) == 1 else None
    if not estimate or estimate["point"] is None:
        return ""
    low, high = ("…" if value is None else f"{value:.3g}" for value in (estimate["low"], estimate["high"]))
    return f"{estimate['point']:.3g} [{low}, {high}]"
