"""A section of a paper's page for one experiment: figures, dot rows, and the table of arms with their status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from harness.declare.card import Card, Experiment
from harness.judge.tidy import tidy
from harness.records.record import STATUSES
from harness.records.store import RunInfo
from harness.report.figures import Figure, curve_figure, metric_figure, speed_figure
from harness.report.numbers import axis_value, data, digits_for, with_unit
from harness.report.panels import MAX_PANELS, Panel, running_axis, split
from harness.report.speed_view import SpeedRow, limits_for, speed_rows
from harness.report.strips import Scale, dot_strip, scale_ticks
from harness.report.trial_view import TrialRow, curve_rows, trial_rows

if TYPE_CHECKING:
    import pandas as pd

SLOTS = 8


@dataclass(frozen=True)
class Dots:
    """One metric in one panel: a row per arm on a shared scale. ``rows`` are (arm, slot, strip, value, remark).

    Where every arm and seed has one and the same value there is one row, without a strip, and no ``scale``.
    """

    metric: str
    panel: str
    better: str
    rows: tuple[tuple[str, int, Markup, Markup, str], ...]
    scale: Markup


@dataclass(frozen=True)
class ArmStatus:
    """How one arm's records ended; sizes in bytes, times in ns, medians over its ``ok`` records."""

    arm: str
    slot: int
    counts: Mapping[str, int]
    elapsed_ns: float | None
    first_call_ns: float | None
    peak_bytes: float | None
    worst_error: float | None
    tolerance: float | None


@dataclass(frozen=True)
class Section:
    """What a page shows of an experiment. ``omitted`` says which panels were left out."""

    name: str
    kind: str
    help: str
    axes: tuple[tuple[str, str], ...]
    seeds: int
    arms: tuple[ArmStatus, ...]
    statuses: tuple[str, ...]
    figures: tuple[Figure, ...] = ()
    curves: tuple[Figure, ...] = ()
    dots: tuple[Dots, ...] = ()
    table: tuple[SpeedRow, ...] = ()
    caption: str = ""
    omitted: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)

    @property
    def drawn(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.figures or self.curves or self.dots)


def arm_slots(card: Card, name: str) -> dict[str, int]:
    """A colour slot for every arm of an experiment: the arm's own across the paper, another where that is taken."""
    arms = dict.fromkeys(arm for experiment in card.experiments.values() for arm in experiment.arms)
    own = {arm: index % SLOTS for index, arm in enumerate(arms)}
    slots: dict[str, int] = {}
    for arm in card.experiments[name].arms:
        free = [slot for slot in range(SLOTS) if slot not in slots.values()]
        slots[arm] = own[arm] if own[arm] in free or not free else free[0]
    return slots


def sections(card: Card, records: pd.DataFrame, info: RunInfo) -> list[Section]:
    """One section per experiment of the card that left records in this run."""
    made = []
    for name, experiment in card.experiments.items():
        own = records.loc[(records["experiment"] == name).to_numpy()]
        if len(own):
            build = _speed if experiment.kind == "speed" else _trial
            made.append(build(name, experiment, own, arm_slots(card, name), info, _claimed(card, name)))
    return made


def _claimed(card: Card, name: str) -> list[str]:
    """The metrics that claims about this experiment read: shown first."""
    parts = [part for claim in card.claims for part in claim.resolved_parts() if part.experiment == name]
    return list(dict.fromkeys(metric for part in parts for metric in part.estimate.metrics()))


def _speed(
    name: str, experiment: Experiment, records: pd.DataFrame, slots: Mapping[str, int], info: RunInfo,
    claimed: list[str],
) -> Section:
    rows = speed_rows(tidy(records, name, experiment), records)
    slots = _with_unknown(slots, rows)
    x = running_axis(rows, at_least=2)
    panels = split(rows, x)
    base = _base(name, experiment, records, slots, info.profile)
    shown, omitted = panels[:MAX_PANELS], max(0, len(panels) - MAX_PANELS)
    if x is None:
        dots = tuple(_time_dots(panel, slots) for panel in shown if panel.rows)
        return Section(**base, dots=dots, table=tuple(rows), omitted=omitted,
                       caption="Diamond: median over rounds; bar: the middle half of the rounds.")
    figures = tuple(_speed_panel(panel, x, slots, info) for panel in shown)
    return Section(**base, figures=figures, table=tuple(rows), omitted=omitted, caption=_speed_caption(figures))


def _speed_panel(panel: Panel, x: str, slots: Mapping[str, int], info: RunInfo) -> Figure:
    first: SpeedRow = panel.rows[0]
    limits = limits_for(info.ceilings, first.point.get("threads"), first.device)
    caches = (info.machine.get("caches") or {}) if first.device == "cpu" else {}
    return speed_figure(panel, x, slots, limits, caches)


def _speed_caption(figures: Sequence[Figure]) -> str:
    """Explains what is drawn, and nothing that is not."""
    views = [view for figure in figures for view in figure["views"]]
    text = ["Line: median over rounds; band: the middle half."]
    if any(trace["meta"]["role"] == "limit" for view in views for trace in view["data"]):
        text.append("Dashed: the roofline, the least time for the arm that moves the fewest bytes at the bandwidth "
                    "measured in this run.")
    if any(shape["name"] == "cache" for view in views for shape in view["layout"]["shapes"]):
        text.append("Dotted: where the inputs outgrow L2 and the last-level cache (LLC).")
    return " ".join(text)


def _trial(
    name: str, experiment: Experiment, records: pd.DataFrame, slots: Mapping[str, int], info: RunInfo,
    claimed: list[str],
) -> Section:
    order = [*claimed, *(metric for metric in experiment.metrics if metric not in claimed)]
    scalars = [metric for metric in order if metric in experiment.metrics and not experiment.metrics[metric].series]
    series = [metric for metric in order if metric in experiment.metrics and experiment.metrics[metric].series]
    units = {metric: item.unit for metric, item in experiment.metrics.items()}
    rows, curves = trial_rows(records, scalars), curve_rows(records, series)
    slots = _with_unknown(slots, [*rows, *curves])
    x = running_axis(rows, at_least=3)
    base = _base(name, experiment, records, slots, info.profile)
    panels, curve_panels = split(rows, x), split(curves, None)
    omitted = max(0, len(panels) - MAX_PANELS) + max(0, len(curve_panels) - MAX_PANELS)
    drawn: dict[str, Any] = {
        "curves": tuple(curve_figure(panel, slots, units) for panel in curve_panels[:MAX_PANELS]), "omitted": omitted}
    if x is not None:
        figures = tuple(metric_figure(panel, x, slots, units) for panel in panels[:MAX_PANELS])
        return Section(**base, **drawn, figures=figures, caption="Line: mean over seeds; band: its 95 % interval.")
    dots = [_metric_dots(metric, panel, experiment, slots) for metric in scalars for panel in panels[:MAX_PANELS]]
    varying = any(item.scale for item in dots)
    return Section(**base, **drawn, dots=tuple(item for item in dots if item.rows),
                   caption="Dot: one seed; diamond: their mean; bar: its 95 % interval." if varying else "")


def _time_dots(panel: Panel, slots: Mapping[str, int]) -> Dots:
    rows: Sequence[SpeedRow] = panel.rows
    scale = Scale.over([value for row in rows for value in row.time_ns])
    made = []
    for row in rows:
        low, middle, high = row.time_ns
        label = f"{row.arm}: {with_unit(middle, 'ns')} per call, middle half {with_unit(low, 'ns')} to " \
                f"{with_unit(high, 'ns')}"
        made.append((row.arm, slots[row.arm], dot_strip((), middle, low, high, slots[row.arm], scale, label),
                     data(middle, "ns"), f"{row.n} rounds"))
    return Dots("time per call", panel.title, "lower", tuple(made), scale_ticks(scale, "ns"))


def _metric_dots(metric: str, panel: Panel, experiment: Experiment, slots: Mapping[str, int]) -> Dots:
    rows: list[TrialRow] = [row for row in panel.rows if row.metric == metric]
    unit, better = experiment.metrics[metric].unit, experiment.metrics[metric].better
    values = [value for row in rows for value in row.values]
    if len(set(values)) == 1 and all(row.values for row in rows):
        only = (_all_of(rows), -1, Markup(""), data(values[0], unit), _seeds(rows))
        return Dots(metric, panel.title, better, (only,), Markup(""))
    scale = Scale.over([value for row in rows for value in (*row.values, row.low, row.high)], pad=0.04)
    apart = digits_for(*(float(np.median(values)), min(values), max(values))) + 1 if values else 3
    made = []
    for row in rows:
        digits = max(apart, digits_for(row.mean, row.low, row.high))
        shown = [with_unit(item, unit, digits) for item in (row.mean, row.low, row.high)]
        label = f"{row.arm}: mean {shown[0]}, 95 % interval {shown[1]} to {shown[2]}, {_seeds([row])}"
        strip = dot_strip(row.values, row.mean, row.low, row.high, slots[row.arm], scale, label)
        value = data(row.mean, unit, digits) if row.values else Markup("–")
        made.append((row.arm, slots[row.arm], strip, value, _seeds([row])))
    return Dots(metric, panel.title, better, tuple(made), scale_ticks(scale, unit))


def _all_of(rows: Sequence[TrialRow]) -> str:
    return "every arm" if len(rows) > 1 else rows[0].arm


def _seeds(rows: Sequence[TrialRow]) -> str:
    counts, failed = {len(row.values) for row in rows}, sum(row.failed for row in rows)
    seeds = max(counts)
    text = f"{seeds} seed{'s' if seeds != 1 else ''}"
    return text + (f", {failed} not finite" if failed else "")


def _base(
    name: str, experiment: Experiment, records: pd.DataFrame, slots: Mapping[str, int], profile: str
) -> dict[str, Any]:
    here = experiment.in_profile(profile) or experiment  # type: ignore[arg-type]  # a stored run's profile is one
    counts = records["status"].astype(str).value_counts()
    skipped = records.loc[(records["status"] != "ok").to_numpy(), "reason"].astype(str).value_counts()
    return {
        "name": name, "kind": experiment.kind, "help": experiment.help,
        "axes": tuple((axis, ", ".join(axis_value(value) for value in values)) for axis, values in here.axes.items()),
        "seeds": int(records["seed"].nunique()), "arms": _arms(records, slots),
        "statuses": tuple(status for status in STATUSES if counts.get(status, 0)),
        "reasons": {str(reason): int(count) for reason, count in skipped.items() if count},
    }


def _arms(records: pd.DataFrame, slots: Mapping[str, int]) -> tuple[ArmStatus, ...]:
    found = []
    for arm, own in records.groupby("arm", sort=False, observed=True):
        good = own.loc[(own["status"] == "ok").to_numpy()]
        checked = good.loc[good["error"].notna().to_numpy()].sort_values("error", ascending=False)
        found.append(ArmStatus(
            arm=str(arm), slot=slots.get(str(arm), 0),
            counts={str(key): int(value) for key, value in own["status"].astype(str).value_counts().items()},
            elapsed_ns=_median(good["elapsed_ns"]), first_call_ns=_median(good["first_call_ns"]),
            peak_bytes=_median(good["peak_bytes"]),
            worst_error=float(checked["error"].iloc[0]) if len(checked) else None,
            tolerance=float(checked["tolerance"].iloc[0]) if len(checked) else None,
        ))
    return tuple(found)


def _median(values: pd.Series) -> float | None:
    positive = values[values > 0]
    return float(positive.median()) if len(positive) else None


def _with_unknown(slots: Mapping[str, int], rows: Sequence[Any]) -> dict[str, int]:
    """Arms that only old records know get the last colour."""
    return {**{row.arm: SLOTS - 1 for row in rows}, **slots}
