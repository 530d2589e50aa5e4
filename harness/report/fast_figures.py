"""Figures of the fast paths: the ratio to the best peer over size, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.records.store import RunInfo
from harness.report.fast_rows import ArmResult, FastRow
from harness.report.figures import Figure, View, cache_marks, short, x_axis, y_axis
from harness.report.numbers import axis_value, digits_for, with_unit
from harness.report.panels import MAX_PANELS, Panel, running_axis, split

# Bounds further than this from every ratio are cut off, so that one wide interval does not flatten the rest.
_REACH = 4.0
# Between the arms at one word of an axis, as a share of the distance between words.
_APART = 0.09


@dataclass(frozen=True)
class _Placed:
    """A row as panels see it: the device by the name that the page gives it."""

    point: Mapping[str, Any]
    device: str
    row: FastRow

    @property
    def input_bytes(self) -> float:
        """For the marks of the caches."""
        return self.row.input_bytes


def ratio_figures(
    rows: Sequence[FastRow], arms: Sequence[str], slots: Mapping[str, int], wheres: Mapping[tuple[str, str], str],
    infos: Mapping[str, RunInfo],
) -> tuple[Figure, ...]:
    """At most 12 panels; none where no axis has two values, or no arm has a ratio."""
    placed = [_Placed(row.point, wheres[(row.machine, row.device)], row) for row in rows]
    x, numeric = _size_axis(placed)
    if x is None:
        return ()
    made = []
    for panel in split(placed, x):
        view = _view(panel, x, numeric, arms, slots, infos)
        if view is not None:
            made.append({"title": panel.title, "views": [view]})
    return tuple(made[:MAX_PANELS])


def _size_axis(placed: Sequence[_Placed]) -> tuple[str | None, bool]:
    """The axis along x and whether it is numeric: threads only where nothing else varies, words in order of size."""
    without = [_Placed({name: value for name, value in item.point.items() if name != "threads"}, item.device, item.row)
               for item in placed]
    numeric = running_axis(without, at_least=2)
    if numeric is not None:
        return numeric, True
    words: dict[str, set[str]] = {}
    for item in without:
        for name, value in item.point.items():
            words.setdefault(name, set()).add(str(value))
    most = max(words, key=lambda name: len(words[name]), default=None)
    if most is not None and len(words[most]) > 1:
        return most, False
    return running_axis(placed, at_least=2), True


def _view(
    panel: Panel, x: str, numeric: bool, arms: Sequence[str], slots: Mapping[str, int], infos: Mapping[str, RunInfo]
) -> View | None:
    rows: list[_Placed] = sorted(panel.rows, key=lambda item: item.input_bytes)
    words = list(dict.fromkeys(str(item.point[x]) for item in rows))
    heights: list[float] = [1.0]
    data = []
    for index, arm in enumerate(arms):
        beside = _APART * (index - (len(arms) - 1) / 2)
        found = [(float(item.point[x]) if numeric else words.index(str(item.point[x])) + 1.0 + beside, item, result)
                 for item in rows if (result := item.row.of(arm)) and _has_ratio(result)]
        if found:
            found.sort(key=lambda entry: entry[0])
            data.append(_trace(arm, slots.get(arm, 0), x, found, numeric))
            heights += [bound for _, _, result in found for bound in _ends(result)]
    if not data:
        return None
    shapes = [{"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": 1, "y1": 1, "name": "equal",
               "label": {"text": "best peer", "textposition": "start", "yanchor": "bottom"}}]
    first = rows[0].row
    if numeric and first.device == "cpu" and x != "threads":
        shapes += cache_marks(rows, x, infos[first.machine].machine.get("caches") or {})
    across = x_axis([float(item.point[x]) for item in rows], x) if numeric else _word_axis(words, x)
    title = "best peer's time ÷ ours"
    return {"name": title, "data": data, "layout": {"xaxis": across, "yaxis": y_axis(heights, "×", title, True),
                                                    "shapes": shapes}}


def _trace(
    arm: str, slot: int, x: str, found: Sequence[tuple[float, _Placed, ArmResult]], numeric: bool
) -> dict[str, Any]:
    points = [_three(result) for _, _, result in found]
    ends = [_ends(result) for _, _, result in found]
    hover = [_hover(x, item, result) for _, item, result in found]
    return {
        "type": "scatter", "x": short(entry[0] for entry in found), "y": short(point for _, point, _ in points),
        "name": _plain(arm), "mode": "lines+markers" if numeric else "markers", "text": hover, "hoverinfo": "text",
        "error_y": {
            "type": "data", "symmetric": False, "width": 3, "thickness": 1.5,
            "array": short(high - point for (_, high), (_, point, _) in zip(ends, points, strict=True)),
            "arrayminus": short(point - low for (low, _), (_, point, _) in zip(ends, points, strict=True)),
        },
        "meta": {"role": "line", "slot": slot},
    }


def _hover(x: str, item: _Placed, result: ArmResult) -> str:
    low, point, high = _three(result)
    digits = digits_for(point, low, high)
    shown = [with_unit(value, "×", digits) for value in (point, low, high)]
    word = result.best.word if result.best else ""
    time = with_unit(result.speed.time_ns[1], "ns") if result.speed else ""
    place = f"{_plain(result.arm)} · {x} = {_plain(axis_value(item.point[x]))}"
    return f"{place}<br>{shown[0]} [{shown[1]}, {shown[2]}] {word}<br>{time} a call"


def _word_axis(words: Sequence[str], name: str) -> dict[str, Any]:
    places = [float(index + 1) for index in range(len(words))]
    return {"type": "linear", "title": {"text": name}, "tickvals": places, "ticktext": [_plain(word) for word in words],
            "range": [0.5, len(words) + 0.5]}


def _has_ratio(result: ArmResult) -> bool:
    return result.best is not None and result.best.ratio is not None and math.isfinite(result.best.ratio.point)


def _three(result: ArmResult) -> tuple[float, float, float]:
    assert result.best is not None and result.best.ratio is not None  # only results with a ratio are drawn
    ratio = result.best.ratio
    return ratio.low, ratio.point, ratio.high


def _ends(result: ArmResult) -> tuple[float, float]:
    """The interval, cut off far from its ratio."""
    low, point, high = _three(result)
    return max(low, point / _REACH), min(high, point * _REACH)


def _plain(text: str) -> str:
    """Plotly reads tags in its texts; names are no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
