"""What is said of a series of runs, in words that the terminal and the pages share."""

from __future__ import annotations

import math

from harness.judge.history import ChangePoint, Moment, Series
from harness.judge.measured import RATIO, Place
from harness.report.lines import date_text
from harness.report.numbers import digits_for, plain, point_text, with_unit

METRICS = {"time": "Time per call", RATIO: "Time over the peers'", "error": "Error"}


def moment_text(moment: Moment) -> str:
    """``20260102-030405-small (0123456789, 2026-01-02 03:04 UTC)``."""
    return f"{moment.run} ({moment.revision}, {date_text(moment.started_at)})"


def place_text(place: Place) -> str:
    """The point, and the device where it is not the CPU."""
    return ", ".join(text for text in (point_text(place.axes), place.device if place.device != "cpu" else "") if text)


def level_text(span: tuple[float, float, float], unit: str) -> str:
    """``1.02 ms [0.99 ms, 1.04 ms]``; without the interval where nothing bounds it."""
    low, center, high = span
    digits = digits_for(center, low, high)
    shown = with_unit(center, unit, digits)
    if not math.isfinite(high - low):
        return shown
    return f"{shown} [{with_unit(low, unit, digits)}, {with_unit(high, unit, digits)}]"


def short_change(change: ChangePoint) -> str:
    """``1.5×`` for a relative change, ``+0.02`` otherwise."""
    if change.relative:
        return f"{plain(1 + change.change)}×"
    return ("+" if change.change > 0 else "") + plain(change.change)


def change_text(series: Series, change: ChangePoint) -> str:
    """``1.02 ms [..] → 1.53 ms [..], 1.5×``."""
    return (f"{level_text(change.start, series.unit)} → {level_text(change.end, series.unit)}, "
            f"{short_change(change)}")


def why_text(series: Series, change: ChangePoint) -> list[str]:
    """What else is known of a change: the machine's part in it, and the libraries that changed."""
    told = []
    if change.peer_change is not None:
        moved = f"{plain(1 + change.peer_change)}×"
        if change.machine_changed:
            told.append(f"the machine changed: what runs beside it and is the same code moved by {moved}")
        else:
            told.append(f"the machine did not do it: what runs beside it and is the same code moved by {moved}")
    if not series.ours:
        told.append("the suite does not own its code: the machine or a library changed")
    if change.software:
        told.append("software: " + ", ".join(change.software))
    return told


def plain_text(text: str) -> str:
    """Plotly reads tags in its texts; names are no tags."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
