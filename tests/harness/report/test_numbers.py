from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as some

from harness.report.numbers import axis_value, data, digits_for, plain, point_text, seconds_text, tick, with_unit

THIN = "\u202f"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1.3123456, "×", "1.31×"),
        (12_345.0, "ns", f"12.3{THIN}µs"),
        (18.7e9, "B/s", f"18.7{THIN}GB/s"),
        (5e10, "FLOP/s", f"50{THIN}GFLOP/s"),
        (1536, "B", f"1.50{THIN}KiB"),
        (999_999, "ns", f"1{THIN}ms"),
        (-0.05, "", "\u22120.0500"),
        (0, "ns", f"0{THIN}s"),
        (math.inf, "ns", "∞"),
        (math.nan, "", "not a number"),
        (None, "B", "–"),
        (2.5e-7, "", "2.50×10⁻⁷"),
        (2.25, "nats", f"2.25{THIN}nats"),
    ],
)
def test_a_number_reads_with_its_unit(value, unit, text):
    assert with_unit(value, unit) == text


def test_round_numbers_have_no_trailing_zeros():
    assert [tick(0.8, "×"), tick(15e9, "B/s"), tick(0.05), tick(100.0), tick(1.5e-6)] == [
        "0.8×",
        f"15{THIN}GB/s",
        "0.05",
        "100",
        "1.5×10⁻⁶",
    ]


def test_powers_of_two_on_an_axis():
    assert [axis_value(value) for value in (2**20, 512, 1000, 0.001, "all", True)] == [
        "2²⁰",
        "512",
        "1000",
        "0.001",
        "all",
        "True",
    ]
    assert point_text({"n": 2**12, "threads": "all"}) == f"n{THIN}={THIN}2¹², threads{THIN}={THIN}all"


@given(some.floats(allow_nan=True, allow_infinity=True))
def test_the_attribute_holds_the_exact_number(value):
    markup = str(data(value, "ns"))
    kept = float(markup.split('"')[1])
    assert kept == value or (math.isnan(kept) and math.isnan(value))


@given(some.floats(1e-290, 1e290), some.sampled_from(["", "ns", "B", "B/s", "×", "nats"]))
def test_every_positive_number_has_a_short_text(value, unit):
    assert 0 < len(with_unit(value, unit)) <= 16


@given(some.floats(-1e6, 1e6), some.floats(1e-9, 1e3))
def test_digits_tell_the_ends_of_an_interval_apart(point, half):
    digits = digits_for(point, point - half, point + half)
    assert 3 <= digits <= 6
    if abs(point) / half < 1e3:
        assert plain(point - half, digits) != plain(point + half, digits)


def test_durations():
    assert [seconds_text(item) for item in (0.85, 12.0, 200.0, 7500.0)] == [
        f"850{THIN}ms",
        f"12{THIN}s",
        "3 min 20 s",
        "2 h 5 min",
    ]
