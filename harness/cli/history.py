"""``litmus history``: what a suite measured over its stored runs, and where a level changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.output import console, print_json
from harness.declare.catalog import Catalog, find_root
from harness.errors import NOTHING_COMPARABLE, LitmusError, did_you_mean

if TYPE_CHECKING:
    from rich.table import Table

    from harness.declare.card import Card
    from harness.judge.history import ChangePoint, Series
    from harness.records.store import Run

FORMATS = ("table", "json")
_BLOCKS = "▁▂▃▄▅▆▇█"
_MOST_ROWS = 60


class _TooFew(LitmusError):
    """There are not two runs to compare."""

    exit_code = NOTHING_COMPARABLE


def history(
    suite: Annotated[str, typer.Argument(help="A suite: FAMILY/SLUG or SLUG.")],
    metric: Annotated[str | None, typer.Option(help="Only this metric: time, time_to_peers, error, or one of the "
                                               "card's.")] = None,
    experiment: Annotated[str | None, typer.Option(help="Only this experiment.")] = None,
    machine: Annotated[str | None, typer.Option(help="Only this machine's runs, by its key.")] = None,
    output: Annotated[str, typer.Option("--format", help="table or json.")] = "table",
) -> None:
    """Show a suite's speed and accuracy over its stored runs, and between which runs a level changed, worst first.

    Each line of the table is one arm at one point: its first and last value, and all values as blocks from lowest to
    highest. Runs are compared on one machine and profile; another card version, data set or choice of seeds cuts a
    series (|). Change points locate; they decide nothing: ask 'litmus ab' about the two commits.

    \b
    Examples:
      litmus history two_pass_softmax
      litmus history softmax/two_pass_softmax --metric time_to_peers
      litmus history galore --experiment pretrain --format json
    """
    if output not in FORMATS:
        raise LitmusError("no such format", where="the command line", key="--format", value=output,
                          expected=f"{', '.join(FORMATS)}; {did_you_mean(output, FORMATS)}",
                          next_step="leave --format out for a table")
    root = find_root()
    name, runs = _runs_of(root, suite, machine)
    series = _narrowed(_series(root, name, runs), metric, experiment)
    if output == "json":
        print_json({"suite": name, "runs": len(runs), "series": [item.to_dict() for item in series]})
        return
    _print(name, series)


def _runs_of(root: Path, suite: str, machine: str | None) -> tuple[str, list[Run]]:
    """The suite's whole name and the runs that have it. Raises LitmusError where there are not two of one machine."""
    from harness.judge.history import machine_of
    from harness.records.store import find_runs

    runs = find_runs(root)
    stored = {name for run in runs for name in run.info.cards}
    name = suite if suite in stored else Catalog(root).get(suite).name
    runs = [run for run in runs if name in run.info.cards]
    machines = [machine_of(run) for run in runs]
    if machine is not None and machine not in machines:
        raise LitmusError("no run of this suite is from this machine", where="the command line", key="--machine",
                          value=machine, expected=did_you_mean(machine, machines),
                          next_step="leave --machine out for all machines")
    chosen = [run for run, key in zip(runs, machines, strict=True) if machine in (None, key)]
    if max((machines.count(key) for key in set(machines)), default=0) < 2 or len(chosen) < 2:
        raise _TooFew("a history needs at least two runs of one machine", where=root / "results", key=name,
                      value=f"{len(chosen)} run{'' if len(chosen) == 1 else 's'}",
                      next_step=f"make another with: litmus run {name}")
    return name, chosen


def _series(root: Path, suite: str, runs: Sequence[Run]) -> list[Series]:
    from harness.judge.history import History
    from harness.judge.measured import COLUMNS
    from harness.records.table import RECORDS_FILE

    found = History(_cards(root))
    for run in runs:
        if (run.folder / RECORDS_FILE).is_file():
            found.add(run, run.records(COLUMNS), (suite,))
    series = found.series(suite)
    if not series:
        raise _TooFew("no two runs measured the same thing", where=root / "results", key=suite,
                      value=f"{len(runs)} runs", expected="two runs of one machine and profile that ended ok",
                      next_step=f"make another with: litmus run {suite}")
    return series


def _cards(root: Path) -> dict[str, Card]:
    return {entry.name: entry.card for entry in Catalog(root).entries}


def _narrowed(series: Sequence[Series], metric: str | None, experiment: str | None) -> list[Series]:
    kept = list(series)
    for key, wanted, field in (("--experiment", experiment, "experiment"), ("--metric", metric, "metric")):
        if wanted is None:
            continue
        known = {getattr(item.place, field) for item in kept}
        if wanted not in known:
            raise LitmusError(f"no stored runs have this {field}", where="the command line", key=key, value=wanted,
                              expected=did_you_mean(wanted, known), next_step=f"leave {key} out to see them all")
        kept = [item for item in kept if getattr(item.place, field) == wanted]
    return kept


def _print(suite: str, series: Sequence[Series]) -> None:
    from harness.judge.history import worst_first
    from harness.report.history_words import moment_text

    out = console()
    changes = worst_first(series)
    groups: dict[tuple[str, str], list[Series]] = {}
    for item in series:
        groups.setdefault((item.place.machine, item.place.profile), []).append(item)
    for (machine, profile), own in groups.items():
        moments = own[0].moments
        out.print(f"{suite} on {machine}, profile {profile}: {len(moments)} runs, "
                  f"{moment_text(moments[0])} to {moment_text(moments[-1])}", style="bold")
        out.print(_table(_shown(own)))
        if len(own) > _MOST_ROWS:
            out.print(f"{len(own) - _MOST_ROWS} more series: narrow with --experiment or --metric, or --format json",
                      style="dim")
        out.print()
    if not changes:
        out.print("no change points")
        return
    out.print(f"{len(changes)} change point{'' if len(changes) == 1 else 's'}, worst first "
              "(they locate; ask 'litmus ab' about the commits)", style="bold")
    for item, change in changes:
        _print_change(item, change)


def _shown(series: Sequence[Series]) -> list[Series]:
    """Those with change points first to stay, in their own order."""
    kept = {id(item) for item in sorted(series, key=lambda item: not item.changes)[:_MOST_ROWS]}
    return [item for item in series if id(item) in kept]


def _table(series: Sequence[Series]) -> Table:
    from rich.table import Table

    from harness.report.history_words import place_text
    from harness.report.numbers import with_unit

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("experiment", "at", "arm", "metric"):
        table.add_column(column, overflow="fold")
    for column in ("first", "last"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("runs", overflow="fold")
    table.add_column("changes", justify="right")
    for item in series:
        known = [value.center for value in item.values if value is not None]
        table.add_row(item.place.experiment, place_text(item.place), item.place.arm, item.place.metric,
                      with_unit(known[0], item.unit), with_unit(known[-1], item.unit), sparkline(item),
                      str(len(item.changes)) if item.changes else "-")
    return table


def _print_change(series: Series, change: ChangePoint) -> None:
    from rich.text import Text

    from harness.report.history_words import change_text, moment_text, place_text, why_text

    place = series.place
    style = {"worse": "red", "better": "green"}.get(change.word, "yellow")
    where = " ".join(text for text in (place.experiment, place_text(place), place.arm, place.metric) if text)
    console().print(Text(f"  {change.word}  ", style=style), Text(where), sep="")
    console().print(f"    {change_text(series, change)}")
    console().print(f"    between {moment_text(change.before)} and {moment_text(change.after)}", style="dim")
    for text in why_text(series, change):
        console().print(f"    {text}", style="dim")


def sparkline(series: Series) -> str:
    """A block per run from the lowest to the highest value, a dot where a run has none, a bar where the series is cut.

    Each stretch has a scale of its own: its values cannot be compared with another's.
    """
    return "|".join(_blocks([value.center if value else None for value in series.values[first:last]])
                    for first, last in series.stretches)


def _blocks(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = (high - low) if high - low > 1e-12 * max(abs(low), abs(high)) else 0.0
    return "".join("·" if value is None else
                   _BLOCKS[round((value - low) / span * (len(_BLOCKS) - 1)) if span else 3] for value in values)
