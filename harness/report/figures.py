"""Plotly figures as plain JSON: data and layout without colours, which the page's script takes from its scheme.

A trace's ``meta`` says what it is (``role``: line, band or limit) and which colour slot its arm has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from harness.report.numbers import axis_value, tick, with_unit
from harness.report.panels import Panel
from harness.report.speed_view import Limits, SpeedRow
from harness.report.ticks import log_ticks
from harness.report.trial_view import CurveRow, TrialRow

View = dict[str, Any]
Figure = dict[str, Any]


def speed_figure(
    panel: Panel, x: str, slots: Mapping[str, int], limits: Limits | None, caches: Mapping[str, float]
) -> Figure:
    """Time against size, four ways: per input byte, per call, as bandwidth, and over the fastest arm."""
    rows: Sequence[SpeedRow] = panel.rows
    views = []
    if all(row.input_bytes > 0 for row in rows):
        views.append(_speed_view("Time per input byte", rows, x, slots, "s/B", _per_input_byte,
                                 _limit_line(rows, x, limits, per_byte=True)))
    views.append(_speed_view("Time per call", rows, x, slots, "s", _per_call, _limit_line(rows, x, limits, False)))
    if any(row.bytes_moved > 0 for row in rows):
        band = _bandwidth_band(limits) if x != "threads" else None
        views.append(_speed_view("Bandwidth", rows, x, slots, "B/s", _bandwidth, band))
    if len({row.arm for row in rows}) > 1:
        views.append(_speed_view("Against the fastest", rows, x, slots, "×", lambda row: row.relative, None))
    for view in views:
        view["layout"]["shapes"] = view["layout"].get("shapes", []) + cache_marks(rows, x, caches)
    return {"title": panel.title, "views": views}


def metric_figure(panel: Panel, x: str, slots: Mapping[str, int], units: Mapping[str, str]) -> Figure:
    """Each scalar metric against a numeric axis: mean over seeds with its 95 % interval."""
    metrics = list(dict.fromkeys(row.metric for row in panel.rows))
    return {"title": panel.title, "views": [
        _metric_view(metric, [row for row in panel.rows if row.metric == metric], x, slots, units.get(metric, ""))
        for metric in metrics
    ]}


def curve_figure(panel: Panel, slots: Mapping[str, int], units: Mapping[str, str]) -> Figure:
    """Learning curves: median over seeds with the band from the 10th to the 90th percentile."""
    metrics = list(dict.fromkeys(row.metric for row in panel.rows))
    return {"title": panel.title, "views": [
        _curve_view(metric, [row for row in panel.rows if row.metric == metric], slots, units.get(metric, ""))
        for metric in metrics
    ]}


def _speed_view(
    name: str, rows: Sequence[SpeedRow], x: str, slots: Mapping[str, int], unit: str,
    value: Callable[[SpeedRow], tuple[float, float, float]], limit: tuple[list[dict[str, Any]], list[float]] | None,
) -> View:
    data: list[dict[str, Any]] = []
    heights: list[float] = list(limit[1]) if limit else []
    for arm, own in _by_arm(rows, x):
        points = [value(row) for row in own]
        hover = [_speed_hover(row, x, with_unit(point[1], unit)) for row, point in zip(own, points, strict=True)]
        xs = [float(row.point[x]) for row in own]
        data += _line(arm, slots[arm], xs, points, hover)
        heights += [item for point in points for item in point]
    layout = {"xaxis": x_axis([float(row.point[x]) for row in rows], x), "yaxis": y_axis(heights, unit, name, True)}
    shapes = [item for item in limit[0] if "xref" in item] if limit else []
    data += [item for item in limit[0] if "xref" not in item] if limit else []
    return {"name": name, "data": data, "layout": {**layout, "shapes": shapes}}


def _metric_view(metric: str, rows: Sequence[TrialRow], x: str, slots: Mapping[str, int], unit: str) -> View:
    data: list[dict[str, Any]] = []
    heights: list[float] = []
    for arm, own in _by_arm(rows, x):
        points = [(row.low, row.mean, row.high) for row in own]
        hover = [f"{arm} · {x} = {axis_value(row.point[x])}<br>{metric} {with_unit(row.mean, unit)} "
                 f"({len(row.values)} seeds{f', {row.failed} not finite' if row.failed else ''})" for row in own]
        data += _line(arm, slots[arm], [float(row.point[x]) for row in own], points, hover)
        heights += [item for row in own for item in (row.mean, *row.values)]
    return {"name": metric, "data": data, "layout": {
        "xaxis": x_axis([float(row.point[x]) for row in rows], x), "yaxis": y_axis(heights, unit, metric, None)}}


def _curve_view(metric: str, rows: Sequence[CurveRow], slots: Mapping[str, int], unit: str) -> View:
    data: list[dict[str, Any]] = []
    heights: list[float] = []
    for row in rows:
        points = list(zip(row.low, row.middle, row.high, strict=True))
        hover = [f"{row.arm} · {step}<br>{metric} {with_unit(point[1], unit)} ({row.n} seeds)"
                 for step, point in zip(row.step, points, strict=True)]
        data += _line(row.arm, slots[row.arm], [float(step) for step in row.step], points, hover, markers=False)
        heights += [*row.low, *row.high]
    last = max((row.step[-1] for row in rows if row.step), default=1)
    return {"name": metric, "data": data, "layout": {
        "xaxis": {"type": "linear", "range": [0, last], "title": {"text": "point of the series"}, "nticks": 6},
        "yaxis": y_axis(heights, unit, metric, None)}}


def _line(
    arm: str, slot: int, xs: Sequence[float], points: Sequence[tuple[float, float, float]], hover: Sequence[str],
    markers: bool = True,
) -> list[dict[str, Any]]:
    kept = [index for index, point in enumerate(points) if all(map(math.isfinite, point))]
    band_x = [xs[index] for index in [*kept, *reversed(kept)]]
    band_y = [points[index][2] for index in kept] + [points[index][0] for index in reversed(kept)]
    band = {"type": "scatter", "x": short(band_x), "y": short(band_y), "mode": "none", "fill": "toself",
            "hoverinfo": "skip", "meta": {"role": "band", "slot": slot}}
    line = {"type": "scatter", "x": short(xs), "y": short(point[1] for point in points), "name": arm,
            "mode": "lines+markers" if markers else "lines", "text": list(hover), "hoverinfo": "text",
            "meta": {"role": "line", "slot": slot}}
    return [band, line] if len(kept) > 1 else [line]


def _limit_line(
    rows: Sequence[SpeedRow], x: str, limits: Limits | None, per_byte: bool
) -> tuple[list[dict[str, Any]], list[float]] | None:
    if limits is None or x == "threads":
        return None
    least: dict[float, tuple[float, str]] = {}
    for row in [item for item in rows if item.checked] or rows:
        bound = limits.time_ns(row)
        if bound is not None:
            found = (bound * 1e-9 / (row.input_bytes if per_byte else 1), row.arm)
            least[float(row.point[x])] = min(found, least.get(float(row.point[x]), found))
    if not least:
        return None
    xs = sorted(least)
    text = [f"roofline: the least time for {least[item][1]}<br>at the bandwidth and FLOP rate measured here"
            for item in xs]
    trace = {"type": "scatter", "x": short(xs), "y": short(least[item][0] for item in xs), "mode": "lines",
             "name": "roofline", "text": text, "hoverinfo": "text", "meta": {"role": "limit"}}
    return [trace], [bound for bound, _ in least.values()]


def _bandwidth_band(limits: Limits | None) -> tuple[list[dict[str, Any]], list[float]] | None:
    if limits is None or not limits.streams:
        return None
    low, high = min(limits.streams.values()), max(limits.streams.values())
    shown = tick(low, "B/s") if low == high else f"{tick(low, 'B/s')} – {tick(high, 'B/s')}"
    label = {"text": f"memory, measured: {shown}", "textposition": "top left", "yanchor": "bottom"}
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": low, "y1": max(high, low * 1.01),
            "name": "limit", "label": label}
    return [band], [low, high]


def cache_marks(rows: Sequence[Any], x: str, caches: Mapping[str, float]) -> list[dict[str, Any]]:
    """Where the inputs outgrow a cache, by interpolating input bytes along x."""
    sizes = sorted({(float(row.point[x]), row.input_bytes) for row in rows if row.input_bytes > 0})
    marks = []
    for name in ("l2", "llc"):
        at = _crossing(sizes, caches.get(name))
        if at is not None:
            marks.append({"type": "line", "xref": "x", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1,
                          "name": "cache", "label": {"text": {"l2": "L2", "llc": "LLC"}[name], "textposition": "end",
                                                     "textangle": 0, "yanchor": "bottom"}})
    return marks


def _crossing(sizes: Sequence[tuple[float, float]], size: float | None) -> float | None:
    if not size:
        return None
    for (x0, bytes0), (x1, bytes1) in itertools.pairwise(sizes):
        if bytes0 <= size < bytes1 and x0 < x1:
            share = math.log(size / bytes0) / math.log(bytes1 / bytes0)
            return float(f"{math.exp(math.log(x0) + share * math.log(x1 / x0)):.6g}")
    return None


def x_axis(values: Sequence[float], name: str) -> dict[str, Any]:
    """A horizontal axis with a tick at every value, logarithmic from a factor of four."""
    distinct = sorted(set(values))
    low, high = distinct[0], distinct[-1]
    title = {"text": name}
    if high / low < 4:
        return {"type": "linear", "title": title, "tickvals": distinct, "ticktext": [axis_value(v) for v in distinct]}
    room = math.log10(high / low) * 0.03
    return {"type": "log", "title": title, "tickvals": distinct, "ticktext": [axis_value(v) for v in distinct],
            "range": [round(math.log10(low) - room, 4), round(math.log10(high) + room, 4)]}


def y_axis(values: Iterable[float], unit: str, title: str, log: bool | None) -> dict[str, Any]:
    """A vertical axis with explicit range and ticks; ``log`` None decides by the span of the values."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if log is None:
        log = low > 0 and high / low > 20
    if log and low > 0:
        low, high = low / 1.12, high * 1.12
        ticks = log_ticks(low, high)
        ends = [round(math.log10(low), 4), round(math.log10(high), 4)]
        return {"type": "log", "title": {"text": title}, "range": ends, "tickvals": ticks,
                "ticktext": [tick(item, unit) for item in ticks]}
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return {"type": "linear", "title": {"text": f"{title}, {unit}" if unit and unit != "×" else title},
            "range": [float(f"{low - room:.6g}"), float(f"{high + room:.6g}")], "nticks": 6}


def _by_arm(rows: Sequence[Any], x: str) -> list[tuple[str, list[Any]]]:
    arms = list(dict.fromkeys(row.arm for row in rows))
    return [(arm, sorted((row for row in rows if row.arm == arm), key=lambda row: float(row.point[x]))) for arm in arms]


def _speed_hover(row: SpeedRow, x: str, shown: str) -> str:
    text = f"{row.arm} · {x} = {axis_value(row.point[x])}<br>{shown} · {with_unit(row.time_ns[1], 'ns')} a call"
    if math.isfinite(row.bandwidth):
        text += f"<br>{with_unit(row.bandwidth, 'B/s')}"
    return text + f" · {row.n} rounds"


def _per_call(row: SpeedRow) -> tuple[float, float, float]:
    return tuple(value * 1e-9 for value in row.time_ns)  # type: ignore[return-value]  # three in, three out


def _per_input_byte(row: SpeedRow) -> tuple[float, float, float]:
    return tuple(value * 1e-9 / row.input_bytes for value in row.time_ns)  # type: ignore[return-value]  # as above


def _bandwidth(row: SpeedRow) -> tuple[float, float, float]:
    low, middle, high = (row.bytes_moved / (value * 1e-9) if value and row.bytes_moved else math.nan
                         for value in reversed(row.time_ns))
    return low, middle, high


def short(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON. Six digits are finer than a pixel; what JSON cannot hold becomes a gap."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
