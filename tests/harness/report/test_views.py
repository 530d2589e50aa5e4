from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from hypothesis import assume, given
from hypothesis import strategies as some

from harness.declare.catalog import Catalog
from harness.judge.tidy import tidy
from harness.report.experiments import arm_slots, sections
from harness.report.panels import running_axis, split
from harness.report.site import COLUMNS
from harness.report.speed_view import Limits, limits_for, speed_rows
from harness.report.ticks import linear_ticks, log_ticks
from harness.report.trial_view import curve_rows, mean_interval, trial_rows


@pytest.fixture()
def records(runs) -> pd.DataFrame:
    return runs[0].records(COLUMNS)


def of(records: pd.DataFrame, experiment: str) -> pd.DataFrame:
    return records.loc[(records["experiment"] == experiment).to_numpy()]


def card(root, name):
    return Catalog(root).get(name).card


def test_speed_rows_are_medians_paired_with_the_fastest_arm(root, records):
    own = of(records, "throughput")
    rows = speed_rows(tidy(own, "throughput", card(root, "two_pass").experiments["throughput"]), own)
    assert len(rows) == 4 * 7 * 2 - 1  # one arm is wrong at one point
    first = {row.arm: row for row in rows if row.point == {"n": 4096, "threads": 1}}
    assert first["copy"].relative == (1.0, 1.0, 1.0) and first["three_pass"].relative[1] > 1.2
    record = own[(own["arm"] == "two_pass")].iloc[0]
    times = np.asarray(record["samples_elapsed_ns"]) / np.asarray(record["samples_calls"])
    by_round = pd.Series(times).groupby([record["samples_process"], record["samples_round"]]).median()
    assert first["two_pass"].time_ns[1] == pytest.approx(by_round.median())
    assert first["two_pass"].n == 24
    assert first["two_pass"].bandwidth == pytest.approx(12 * 4096 / (first["two_pass"].time_ns[1] * 1e-9))


def test_panels_split_by_every_axis_but_the_running_one(root, records):
    own = of(records, "throughput")
    rows = speed_rows(tidy(own, "throughput", card(root, "two_pass").experiments["throughput"]), own)
    assert running_axis(rows, at_least=2) == "n"
    assert [panel.title for panel in split(rows, "n")] == ["threads = 1", "threads = all"]
    assert running_axis(rows, at_least=8) is None


def test_the_roofline_needs_ceilings_of_as_many_threads(runs):
    ceilings = runs[0].info.ceilings
    assert limits_for(ceilings, 1, "cpu") == limits_for(ceilings, None, "cpu")
    assert limits_for(ceilings, "all", "cpu").fastest_stream == pytest.approx(21e9 * 1.7)
    assert (
        limits_for(ceilings, 7, "cpu") is None
        and limits_for({}, 1, "cpu") is None
        and limits_for(ceilings, 1, "cuda:0") is None
    )


def test_the_roofline_is_the_slower_of_memory_and_arithmetic(root, records):
    own = of(records, "throughput")
    row = speed_rows(tidy(own, "throughput", card(root, "two_pass").experiments["throughput"]), own)[0]
    assert Limits({"copy": 1e9}, None).time_ns(row) == pytest.approx(row.bytes_moved)
    assert Limits({"copy": 1e9}, 1e6).time_ns(row) == pytest.approx(row.flops * 1000)
    assert Limits({}, None).time_ns(row) is None


def test_a_diverged_seed_is_counted_and_not_averaged(records):
    rows = {row.arm: row for row in trial_rows(of(records, "pretrain"), ["val_loss"])}
    assert (rows["adam"].failed, len(rows["adam"].values)) == (1, 4)
    assert math.isfinite(rows["adam"].mean) and rows["adam"].low < rows["adam"].mean < rows["adam"].high
    assert (rows["projected"].failed, len(rows["projected"].values)) == (0, 5)


def test_the_t_interval_of_a_mean():
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert (
        mean == 2.5
        and high - mean == pytest.approx(3.182446 * math.sqrt(5 / 3) / 2, rel=1e-6)
        and mean - low == pytest.approx(high - mean)
    )
    assert mean_interval([2.0]) == (2.0, -math.inf, math.inf)


def test_curves_are_thinned_bands_and_gaps_stay_gaps(records):
    rows = curve_rows(of(records, "pretrain"), ["curve"])
    assert {row.arm for row in rows} == {"projected", "adam"}
    assert all(len(row.step) <= 120 and row.step[0] == 1 and row.step[-1] == 300 for row in rows)
    assert all(low <= mid <= high for row in rows for low, mid, high in zip(row.low, row.middle, row.high, strict=True))
    ragged = pd.DataFrame(
        {
            "status": ["ok", "ok"],
            "point": ["{}", "{}"],
            "device": ["cpu", "cpu"],
            "arm": ["a", "a"],
            "metrics": ['{"c": [1.0, NaN, 3.0, 4.0]}', '{"c": [2.0, Infinity]}'],
        }
    )
    assert curve_rows(ragged, ["c"])[0].step == (1, 3, 4)


def test_ticks_are_round_and_few():
    assert log_ticks(1e-6, 1e-2) == pytest.approx([1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
    assert log_ticks(9.0, 60.0) == pytest.approx([10, 20, 50])
    assert len(log_ticks(1e-12, 1e12)) <= 8
    assert len(log_ticks(1.0, 1.3)) >= 2


def test_every_figure_is_one_that_plotly_takes(root, records, runs):
    made = [
        section
        for name in ("two_pass", "lowrank")
        for section in sections(
            card(root, name), records[(records["suite"].astype(str)).str.endswith(name)], runs[0].info
        )
    ]
    assert [section.name for section in made] == ["throughput", "pretrain", "ranks"]
    figures = [figure for section in made for figure in (*section.figures, *section.curves)]
    assert len(figures) == 2 + 1 + 1
    for view in (view for figure in figures for view in figure["views"]):
        go.Figure(data=view["data"], layout=view["layout"])
        json.dumps(view, allow_nan=False)
    names = [view["name"] for view in made[0].figures[0]["views"]]
    assert names == ["Time per input byte", "Time per call", "Bandwidth", "Against the fastest"]
    roles = {trace["meta"]["role"] for trace in made[0].figures[0]["views"][0]["data"]}
    assert roles == {"line", "band", "limit"}


def test_the_roofline_is_not_that_of_an_unproved_yardstick(root, records, runs):
    own = records[(records["suite"] == "sums/two_pass").to_numpy()].copy()
    own.loc[(own["arm"] == "copy").to_numpy(), "error"] = np.nan
    view = sections(card(root, "two_pass"), own, runs[0].info)[0].figures[0]["views"][1]
    limit = next(trace for trace in view["data"] if trace["meta"]["role"] == "limit")
    assert limit["y"][-1] == pytest.approx(12 * 2**24 / 21e9, rel=1e-5)


def test_arms_keep_their_colour_across_experiments(root):
    assert arm_slots(card(root, "lowrank"), "pretrain") == {"projected": 0, "adam": 1}
    assert arm_slots(card(root, "lowrank"), "ranks") == {"projected": 0}


def test_arms_of_one_experiment_never_share_a_colour(root):
    base = card(root, "lowrank")
    names = [f"arm{index}" for index in range(12)]
    first, second = (base.experiments["ranks"].model_copy(update={"arms": arms}) for arms in (names, ["arm0", "arm8"]))
    wide = base.model_copy(update={"experiments": {"first": first, "second": second}})
    assert arm_slots(wide, "second") == {"arm0": 0, "arm8": 1}
    assert len(set(arm_slots(wide, "first").values())) == 8


def test_the_arms_table_counts_statuses(root, records, runs):
    own = records[(records["suite"] == "sums/two_pass").to_numpy()]
    arms = {item.arm: item for item in sections(card(root, "two_pass"), own, runs[0].info)[0].arms}
    assert arms["online"].counts == {"ok": 13, "wrong": 1} and arms["copy"].counts == {"ok": 14}
    assert arms["two_pass"].worst_error == 2.5e-7 and arms["two_pass"].tolerance == 1e-6


@given(some.floats(-1e12, 1e12), some.floats(1e-6, 1e12))
def test_linear_ticks_are_inside_and_apart(low, width):
    assume(low + width > low + abs(low) * 1e-9)
    ticks = linear_ticks(low, low + width)
    assert 2 <= len(ticks) <= 9 and ticks == sorted(set(ticks))
    assert all(low - 1e-6 * width <= item <= low + width * (1 + 1e-6) for item in ticks)


def test_one_value_everywhere_is_said_once(root, records, runs):
    own = records[(records["suite"] == "training/lowrank").to_numpy()].copy()
    own["metrics"] = ['{"val_loss": 2.5, "state_bytes": 7.0, "curve": [1.0, 2.0]}'] * len(own)
    dots = sections(card(root, "lowrank"), own, runs[0].info)[0].dots
    assert [[row[0] for row in item.rows] for item in dots] == [["every arm"], ["every arm"]]
    assert all(not item.scale for item in dots)
