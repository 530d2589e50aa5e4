from __future__ import annotations

import math
import re

from hypothesis import given
from hypothesis import strategies as some

from harness.declare.arithmetic import Condition
from harness.report.strips import Scale, decision_strip, dot_strip

ABOVE, BELOW = Condition.parse("> 1.05"), Condition.parse("< 1.0")


def strip(estimate, supported=ABOVE, refuted=BELOW, refute=None):
    values = [*(estimate or {}).values(), supported.low, supported.high, refuted.low, refuted.high]
    return str(decision_strip(estimate, refute, supported, refuted, "×", Scale.over(values)))


def percents(markup, attribute):
    return [float(item) for item in re.findall(rf'\b{attribute}="(-?[\d.]+)%"', markup)]


def test_the_interval_is_drawn_over_both_regions():
    markup = strip({"point": 1.3, "low": 1.2, "high": 1.4})
    assert markup.count('class="region supported"') == 1 and markup.count('class="region refuted"') == 1
    assert 'class="point"' in markup and 'class="main"' in markup
    assert "estimate 1.30×, interval 1.20× to 1.40×; supported if &gt; 1.05, refuted if &lt; 1" in markup


def test_outside_a_band_is_two_regions():
    markup = strip(
        {"point": 0.0, "low": -0.01, "high": 0.02},
        Condition.parse("inside [-0.05, 0.05]"),
        Condition.parse("outside [-0.05, 0.05]"),
    )
    assert markup.count('class="region refuted"') == 2 and markup.count('class="tick"') == 2


def test_without_an_estimate_only_the_rule_is_drawn():
    markup = strip(None)
    assert 'class="region supported"' in markup and 'class="point"' not in markup and "estimate" not in markup


numbers = some.floats(-1e9, 1e9) | some.sampled_from([math.inf, -math.inf])


@given(some.floats(-1e9, 1e9), numbers, numbers)
def test_whatever_is_drawn_stays_in_the_picture(point, one, two):
    low, high = sorted((one, two))
    markup = strip({"point": point, "low": min(low, point), "high": max(high, point)})
    assert all(0 <= item <= 100 for name in ("x", "x1", "x2", "cx") for item in percents(markup, name))


@given(some.lists(some.floats(1e-12, 1e12), min_size=2, max_size=6))
def test_a_scale_keeps_the_order(values):
    scale = Scale.over(values)
    ordered = [scale.percent(value) for value in sorted(values)]
    assert ordered == sorted(ordered) and all(0 <= item <= 100 for item in ordered)


def test_many_dots_are_cut_to_forty():
    values = [float(item) for item in range(100)]
    assert str(dot_strip(values, 50.0, 40.0, 60.0, 1, Scale.over(values), "label")).count('class="dot"') == 40


def test_labels_are_escaped():
    assert "<b>" not in str(dot_strip([1.0], 1.0, 0.5, 1.5, 0, Scale.over([1.0, 2.0]), "<b>&"))


def test_ticks_of_bytes_are_round_in_binary():
    assert Scale.over([1.2 * 2**20, 3.1 * 2**20]).ticks("B") == [2**20, 2 * 2**20, 3 * 2**20]
