"""Inline SVG strips: an estimate with its interval over the regions that decide, and dots with their mean.

Positions are percentages of the strip's width, so a strip follows the page's width and its text does not scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from harness.declare.arithmetic import Condition
from harness.report.numbers import BYTES, binary_prefix, data, digits_for, tick, with_unit
from harness.report.ticks import linear_ticks, log_ticks

_HEIGHT, _MIDDLE = 46, 16


@dataclass(frozen=True)
class Scale:
    """Maps values to percent of the width; logarithmic where positive values span more than a factor of 30."""

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Iterable[float | None], pad: float = 0.12) -> Scale:
        """A scale that holds every finite value with some room at both ends."""
        finite = [float(value) for value in values if value is not None and math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        log = low > 0 and high / low > 30
        if log:
            low, high = math.log10(low), math.log10(high)
        room = (high - low) * pad or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room, log)

    def ticks(self, unit: str) -> list[float]:
        """A few numbers inside the scale that are round in ``unit`` as it is shown."""
        if self.log:
            return log_ticks(10**self.low, 10**self.high)
        step = binary_prefix(max(abs(self.low), abs(self.high))) if unit in BYTES else 1
        return [step * item for item in linear_ticks(self.low / step, self.high / step)]

    def percent(self, value: float) -> float:
        """Where ``value`` lies, in percent; infinite and outlying values go to the ends."""
        if self.log and math.isfinite(value):
            value = math.log10(value) if value > 0 else -math.inf
        if math.isinf(value) or math.isnan(value):
            return 0.0 if value < 0 else 100.0
        return min(100.0, max(0.0, 100 * (value - self.low) / (self.high - self.low)))


def bounds_of(condition: Condition | None) -> list[float]:
    """The thresholds of a rule."""
    return [] if condition is None else sorted({condition.low, condition.high})


def decision_strip(
    estimate: dict[str, float] | None,
    refute_interval: dict[str, float] | None,
    supported: Condition | None,
    refuted: Condition | None,
    unit: str,
    scale: Scale,
) -> Markup:
    """The regions where the whole interval must lie, and the interval. Works without an estimate."""
    parts = [*_regions(supported, "supported", scale), *_regions(refuted, "refuted", scale)]
    parts.append(Markup('<line class="axis" x1="0" x2="100%" y1="31.5" y2="31.5"/>'))
    parts += _ticks([*bounds_of(supported), *bounds_of(refuted)], unit, scale)
    label = _rule_label(supported, refuted)
    if estimate is not None and _finite(estimate.get("point")):
        parts += _interval(estimate, refute_interval, scale)
        digits = digits_for(estimate["point"], estimate["low"], estimate["high"])
        shown = [with_unit(estimate[key], unit, digits) for key in ("point", "low", "high")]
        label = f"estimate {shown[0]}, interval {shown[1]} to {shown[2]}; {label}"
    return _svg(parts, label, "decision")


def dot_strip(
    values: Sequence[float], centre: float, low: float, high: float, slot: int, scale: Scale, label: str
) -> Markup:
    """One row of dots with its centre and interval; at most 40 dots are drawn."""
    dots = [Markup('<circle class="dot" cx="{}%" cy="11" r="2.6"/>').format(_p(scale.percent(value)))
            for value in values[:40] if math.isfinite(value)]
    bar = []
    if math.isfinite(centre):
        ends = [_p(scale.percent(item if math.isfinite(item) else centre)) for item in (low, high)]
        bar = [
            Markup('<line class="bar" x1="{}%" x2="{}%" y1="11" y2="11"/>').format(*ends),
            Markup('<svg x="{}%" y="11" overflow="visible"><path class="centre" d="M0-6 5 0 0 6-5 0Z"/></svg>').format(
                _p(scale.percent(centre))),
        ]
    return _svg([*dots, *bar], label, f"dots slot-{slot}", 22)


def scale_ticks(scale: Scale, unit: str) -> Markup:
    """The scale under a column of dot strips: round numbers at their places."""
    found = [item for item in scale.ticks(unit) if 2 < scale.percent(item) < 98]
    texts = [Markup('<text x="{0}%" y="12" text-anchor="middle">{1}</text><line x1="{0}%" x2="{0}%" y1="-4" y2="0"/>')
             .format(_p(scale.percent(item)), tick(item, unit, 9)) for item in found]
    return Markup('<svg class="scale" aria-hidden="true" width="100%" height="16">{}</svg>').format(
        Markup("").join(texts))


def estimate_text(estimate: dict[str, float], unit: str) -> Markup:
    """``1.27× 1.24× … 1.30×`` with exact values in the markup; ``exact`` for an interval without width."""
    digits = digits_for(estimate["point"], estimate["low"], estimate["high"])
    if estimate["low"] == estimate["high"]:
        return Markup('<b>{}</b> <span class="interval">exact</span>').format(data(estimate["point"], unit, digits))
    point, low, high = (data(estimate[key], unit, digits) for key in ("point", "low", "high"))
    return Markup('<b>{}</b> <span class="interval">{} … {}</span>').format(point, low, high)


def _regions(condition: Condition | None, name: str, scale: Scale) -> list[Markup]:
    if condition is None:
        return []
    if condition.kind == "inside":
        spans = [(condition.low, condition.high)]
    elif condition.kind == "outside":
        spans = [(-math.inf, condition.low), (condition.high, math.inf)]
    elif condition.kind == "==":
        spans = [(condition.low, condition.low)]
    else:
        spans = [(condition.low, math.inf) if condition.kind[0] == ">" else (-math.inf, condition.low)]
    shapes = []
    for low, high in spans:
        left, right = scale.percent(low), scale.percent(high)
        width = max(right - left, 0.6)
        shapes.append(Markup('<rect class="region {}" x="{}%" width="{}%" y="1" height="30"/>').format(
            name, _p(left), _p(width)))
        if width > 9:
            mark = "✓" if name == "supported" else "✗"
            at, anchor, shift = (right, "end", -6) if math.isinf(high) else (left, "start", 6)
            shapes.append(Markup('<text class="mark {}" x="{}%" dx="{}" y="12" text-anchor="{}">{}</text>').format(
                name, _p(at), shift, anchor, mark))
    return shapes


def _ticks(bounds: Iterable[float], unit: str, scale: Scale) -> list[Markup]:
    found = sorted(set(bounds))
    shapes = []
    for index, bound in enumerate(found):
        at = scale.percent(bound)
        shapes.append(Markup('<line class="tick" x1="{0}%" x2="{0}%" y1="1" y2="34"/>').format(_p(at)))
        before = at - scale.percent(found[index - 1]) if index else 100.0
        after = scale.percent(found[index + 1]) - at if index + 1 < len(found) else 100.0
        if before < 6 and after < 6:
            continue
        anchor = "end" if (after < 16 and at > 8) or at > 94 else "start" if before < 16 or at < 6 else "middle"
        shapes.append(Markup('<text class="bound" x="{}%" y="44" text-anchor="{}">{}</text>').format(
            _p(at), anchor, tick(bound, unit)))
    return shapes


def _interval(estimate: dict[str, float], refute: dict[str, float] | None, scale: Scale) -> list[Markup]:
    shapes = []
    for bounds, style in ((refute, "wide"), (estimate, "main")):
        if bounds is None or bounds.get("low") is None or bounds.get("high") is None:
            continue
        left, right = _p(scale.percent(bounds["low"])), _p(scale.percent(bounds["high"]))
        shapes.append(Markup('<line class="{}" x1="{}%" x2="{}%" y1="{y}" y2="{y}"/>').format(
            style, left, right, y=_MIDDLE))
        if style == "main":
            shapes += [Markup('<line class="cap" x1="{0}%" x2="{0}%" y1="{1}" y2="{2}"/>').format(
                end, _MIDDLE - 5, _MIDDLE + 5) for end in (left, right)]
    shapes.append(Markup('<circle class="point" cx="{}%" cy="{}" r="5"/>').format(
        _p(scale.percent(estimate["point"])), _MIDDLE))
    return shapes


def _rule_label(supported: Condition | None, refuted: Condition | None) -> str:
    rules = [f"{name} if {rule}" for name, rule in (("supported", supported), ("refuted", refuted)) if rule]
    return ", ".join(rules) or "no decision rule"


def _svg(parts: Sequence[Markup], label: str, style: str, height: int = _HEIGHT) -> Markup:
    return Markup('<svg class="strip {}" role="img" aria-label="{}" width="100%" height="{}">{}</svg>').format(
        style, escape(label), height, Markup("").join(parts))


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _p(percent: float) -> str:
    return f"{percent:.2f}".rstrip("0").rstrip(".")
