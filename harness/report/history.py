"""A suite's history page: per machine and profile, each experiment's numbers over the runs, with change points."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.judge.history import ChangePoint, Moment, Series, machine_of, worst_first
from harness.judge.measured import RATIO
from harness.records.store import RunInfo
from harness.report.experiments import SLOTS, arm_slots
from harness.report.fast_paths import ArmKey
from harness.report.figures import Figure, View, short, y_axis
from harness.report.history_words import METRICS, level_text, place_text, plain_text, short_change, why_text
from harness.report.lines import Line, date_text
from harness.report.numbers import point_text
from harness.report.panels import MAX_PANELS

MOST_CHANGES = 200
_TIMES = ("time", RATIO, "error")
# Bounds further than this from a time are cut off, so that one unsteady run does not flatten the rest.
_REACH = 2.0
_UNITS = {"process": "processes", "seed": "seeds"}


@dataclass(frozen=True)
class Change:
    """A row of the table of change points; ``kind`` is better, worse, changed, machine, or peer."""

    series: Series
    point: ChangePoint

    @property
    def kind(self) -> str:
        """The word; ``peer`` for code that is not ours, ``machine`` where what is the same code moved as well."""
        if not self.series.ours:
            return "peer"
        return "machine" if self.point.machine_changed else self.point.word

    @property
    def where(self) -> str:
        """The point and device."""
        return place_text(self.series.place)

    @property
    def metric(self) -> str:
        """The metric in words."""
        return _metric_name(self.series.place.metric)

    @property
    def start(self) -> str:
        """The level before with its interval."""
        return level_text(self.point.start, self.series.unit)

    @property
    def end(self) -> str:
        """The level after with its interval."""
        return level_text(self.point.end, self.series.unit)

    @property
    def size(self) -> str:
        """The factor, or the difference."""
        return short_change(self.point)

    @property
    def why(self) -> list[str]:
        """What is known of the machine and the libraries."""
        return why_text(self.series, self.point)


@dataclass(frozen=True)
class Chapter:
    """One experiment: a figure per point and device with a view per metric, those with change points first."""

    name: str
    figures: tuple[Figure, ...]
    legend: tuple[ArmKey, ...]
    omitted: int


@dataclass(frozen=True)
class Part:
    """The runs of one machine in one profile. ``changes`` are worst first, at most 200; ``left_out`` counts the rest.

    ``info`` is the newest run's.
    """

    machine: str
    profile: str
    info: RunInfo | None
    moments: tuple[Moment, ...]
    chapters: tuple[Chapter, ...]
    changes: tuple[Change, ...]
    left_out: int = 0


def has_history(line: Line) -> bool:
    """Whether a suite has at least two runs of one machine."""
    counts = Counter(machine_of(result.run) for result in line.results)
    return max(counts.values(), default=0) > 1


def parts(line: Line, series: Sequence[Series]) -> list[Part]:
    """The page's parts, machine by machine; [] where no two runs measured the same thing."""
    groups: dict[tuple[str, str], list[Series]] = {}
    for item in series:
        groups.setdefault((item.place.machine, item.place.profile), []).append(item)
    made = []
    for (machine, profile), own in groups.items():
        infos = [result.run.info for result in line.results if machine_of(result.run) == machine]
        changes = [Change(item, point) for item, point in worst_first(own)]
        names = list(dict.fromkeys(item.place.experiment for item in own))
        chapters = tuple(_chapter(line, name, [item for item in own if item.place.experiment == name])
                         for name in names)
        made.append(Part(machine, profile, infos[0] if infos else None, own[0].moments, chapters,
                         tuple(changes[:MOST_CHANGES]), max(0, len(changes) - MOST_CHANGES)))
    return made


def _chapter(line: Line, name: str, series: Sequence[Series]) -> Chapter:
    slots = _slots(line, name, series)
    panels: dict[tuple[str, str], list[Series]] = {}
    for item in series:
        panels.setdefault((item.place.point, item.place.device), []).append(item)
    found = sorted(panels.values(), key=_interest)
    figures = tuple(_figure(own, slots, len(panels) > 1) for own in found[:MAX_PANELS])
    drawn = {item.place.arm for own in found[:MAX_PANELS] for item in own}
    legend = tuple(ArmKey(arm, slot) for arm, slot in slots.items() if arm in drawn)
    return Chapter(name, figures, legend, max(0, len(found) - MAX_PANELS))


def _interest(panel: Sequence[Series]) -> tuple[int, float]:
    """Panels with change points first, those of our own code before the machine's, large ones before small."""
    ranked = worst_first(panel)
    if not ranked:
        return 2, 0.0
    series, change = ranked[0]
    return int(bool(change.machine_changed) or not series.ours), -change.size


def _slots(line: Line, name: str, series: Sequence[Series]) -> dict[str, int]:
    known = arm_slots(line.card, name) if line.card and name in line.card.experiments else {}
    unknown = dict.fromkeys(item.place.arm for item in series if item.place.arm not in known)
    return {**known, **{arm: (len(known) + index) % SLOTS for index, arm in enumerate(unknown)}}


def _figure(series: Sequence[Series], slots: Mapping[str, int], titled: bool) -> Figure:
    metrics = dict.fromkeys(name for name in _TIMES if any(item.place.metric == name for item in series))
    metrics |= dict.fromkeys(item.place.metric for item in series)
    place = series[0].place
    title = ", ".join(text for text in (point_text(place.axes), f"device = {place.device}"
                                        if place.device != "cpu" else "") if text) if titled else ""
    return {"title": title, "views": [
        _view(name, [item for item in series if item.place.metric == name], slots) for name in metrics]}


def _view(metric: str, series: Sequence[Series], slots: Mapping[str, int]) -> View:
    factor, unit = (1e-9, "s") if series[0].unit == "ns" else (1.0, series[0].unit)
    data: list[dict[str, Any]] = []
    heights: list[float] = []
    shapes: list[dict[str, Any]] = []
    for item in series:
        data.append(_trace(item, slots.get(item.place.arm, 0), factor, heights))
    for after, found in _by_boundary(series).items():
        shapes.append(_mark(after, found))
    for cut in sorted({first for item in series for first, _ in item.stretches[1:]}):
        shapes.append(_cut_mark(cut))
    log = True if metric in _TIMES and all(height > 0 for height in heights) else None
    name = _metric_name(metric)
    return {"name": plain_text(name), "data": data, "layout": {
        "xaxis": _run_axis(series[0].moments), "yaxis": y_axis(heights, plain_text(unit), plain_text(name), log),
        "shapes": shapes}}


def _trace(item: Series, slot: int, factor: float, heights: list[float]) -> dict[str, Any]:
    """A line with a bar for each interval; it is broken where the series is cut."""
    xs: list[float] = []
    spans: list[tuple[float, float, float]] = []
    hover: list[str] = []
    for first, last in item.stretches:
        for index in range(first, last):
            value = item.values[index]
            xs.append(index + 1.0)
            hover.append(_hover(item, index))
            nan = float("nan")
            spans.append((nan, nan, nan) if value is None else _span(item, index, factor))
        if last < len(item.values):
            xs.append(last + 0.5)
            hover.append("")
            spans.append((float("nan"),) * 3)
    heights += [bound for span in spans for bound in span if math.isfinite(bound)]
    return {
        "type": "scatter", "x": short(xs), "y": short(center for _, center, _ in spans),
        "name": plain_text(item.place.arm), "mode": "lines+markers", "text": hover, "hoverinfo": "text",
        "error_y": {
            "type": "data", "symmetric": False, "width": 3, "thickness": 1.5,
            "array": short(high - center for _, center, high in spans),
            "arrayminus": short(center - low for low, center, _ in spans),
        },
        "meta": {"role": "line", "slot": slot},
    }


def _span(item: Series, index: int, factor: float) -> tuple[float, float, float]:
    value = item.values[index]
    assert value is not None  # the caller leaves gaps out
    center = value.center * factor
    low, high = (center if bound is None else bound * factor for bound in (value.low, value.high))
    if item.place.metric in _TIMES and center > 0:
        low, high = max(low, center / _REACH), min(high, center * _REACH)
    return low, center, high


def _hover(item: Series, index: int) -> str:
    moment, value = item.moments[index], item.values[index]
    if value is None:
        return ""
    low, high = (float("nan") if bound is None else bound for bound in (value.low, value.high))
    shown = level_text((low, value.center, high), item.unit)
    unit = value.unit if value.n == 1 else _UNITS.get(value.unit, value.unit)
    lines = [f"{item.place.arm} · {shown}", f"{value.n} {unit}", f"run {moment.run}",
             f"commit {moment.revision}, {date_text(moment.started_at)}"]
    return "<br>".join(plain_text(text) for text in lines)


def _by_boundary(series: Sequence[Series]) -> dict[int, list[Change]]:
    found: dict[int, list[Change]] = {}
    for item in series:
        places = {moment.run: index for index, moment in enumerate(item.moments)}
        for point in item.changes:
            found.setdefault(places[point.after.run], []).append(Change(item, point))
    return found


def _mark(after: int, found: Sequence[Change]) -> dict[str, Any]:
    """A vertical line before the first run of the new level, labelled by its largest change."""
    kinds = {item.kind for item in found}
    kind = next(word for word in ("worse", "changed", "machine", "peer", "better") if word in kinds)
    shown = max((item for item in found if item.kind == kind), key=lambda item: item.point.size)
    more = f" (+{len(found) - 1})" if len(found) > 1 else ""
    return {"type": "line", "xref": "x", "x0": after + 0.5, "x1": after + 0.5, "yref": "paper", "y0": 0, "y1": 1,
            "name": f"change-{kind}", "label": {"text": plain_text(f"{kind} {shown.size}{more}"),
                                                "textposition": "end", "textangle": 0, "yanchor": "bottom"}}


def _cut_mark(first: int) -> dict[str, Any]:
    return {"type": "line", "xref": "x", "x0": first + 0.5, "x1": first + 0.5, "yref": "paper", "y0": 0, "y1": 1,
            "name": "cut", "label": {"text": "cut", "textposition": "start", "textangle": 0, "yanchor": "top"}}


def _run_axis(moments: Sequence[Moment]) -> dict[str, Any]:
    return {"type": "linear", "title": {"text": "run, oldest first (commit)"},
            "tickvals": [float(index + 1) for index in range(len(moments))],
            "ticktext": [plain_text(moment.revision[:6] if moment.commit else "–") for moment in moments],
            "range": [0.5, len(moments) + 0.5], "room": 58}


def _metric_name(metric: str) -> str:
    return METRICS.get(metric, metric)

