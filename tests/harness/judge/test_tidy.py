import math

import pandas as pd
import pytest

from harness.errors import LitmusError
from harness.judge.tidy import tidy, where

CONSTANTS = {"llc": 100, "cores": 2}


def test_a_trial_has_a_row_per_seed_point_and_arm(make_card, rows, trial):
    card = make_card(trials={"axes": {"n": [4, 8], "mode": ["x"]}})
    records = [trial(arm, {"loss": seed + n, "acc": math.nan, "curve": [1.0, 2.0], "plain": 1}, seed=seed,
                     point={"n": n, "mode": "x"}) for arm in "ab" for seed in range(2) for n in (4, 8)]
    table, _ = rows(records, card)
    assert len(table) == 8
    row = table[(table["arm"] == "a") & (table["unit"] == 1) & (table["n"] == 8)].iloc[0]
    assert (row["loss"], row["seed"], row["mode"], row["device"], row["curve"]) == (9.0, 1, "x", "cpu", [1.0, 2.0])
    assert math.isnan(row["acc"]) and table["plain"].dtype == float


def test_a_speed_cell_has_a_row_per_process_and_round(make_card, rows, speed):
    card = make_card(timing={"kind": "speed"})
    record = speed("a", [1000, 2000, 3000, 4000], processes=2, bytes_moved=8e3, flops=4e3, error=1e-7, peak_bytes=77)
    table, _ = rows([record], card)
    assert table["unit"].tolist() == ["0/0", "0/1", "1/0", "1/1"]
    assert table["time"].tolist() == [1000, 2000, 3000, 4000]
    assert table["bandwidth"].iloc[0] == pytest.approx(8e9) and table["flop_rate"].iloc[1] == pytest.approx(2e9)
    assert set(table["error"]) == {1e-7} and set(table["peak_bytes"]) == {77.0}
    assert table["process"].tolist() == [0, 0, 1, 1]


def test_time_is_the_median_over_the_samples_of_a_round(make_card, frame, speed):
    record = speed("a", [1000, 1000], processes=1)
    record.samples.elapsed_ns[:] = [2000, 6000, 2000, 2000]
    card = make_card(timing={"kind": "speed"})
    assert tidy(frame([record]), "timing", card.experiments["timing"])["time"].tolist() == [2000, 1000]


def test_only_ok_records_and_only_this_experiment(make_card, rows, trial):
    records = [trial("a", {"loss": 1.0}), trial("b", {}, status="crashed", reason="boom"),
               trial("a", {"loss": 9.0}, experiment="other")]
    table, _ = rows(records, make_card(trials={}))
    assert table["loss"].tolist() == [1.0]


def test_an_experiment_without_records_has_the_columns(make_card, rows, speed):
    table, _ = rows([], make_card(timing={"kind": "speed", "axes": {"n": [1]}}), "timing")
    assert len(table) == 0 and {"n", "time", "unit"} <= set(table.columns)


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"n": 8}, [1]),
        ({"n": "2**3"}, [1]),
        ({"n": [4, "8"]}, [0, 1]),
        ({"n": ">= 8"}, [1, 2]),
        ({"n": "inside [5, 20]"}, [1, 2]),
        ({"n": "> llc / 10"}, [2]),
        ({"n": "all"}, [3]),
        ({"device": "cuda"}, [2, 3]),
        ({"device": "cuda:1"}, [3]),
        ({"n": ">= 4", "device": "cpu"}, [0, 1]),
        ({"n": ">= 1000*llc"}, []),
    ],
)
def test_where(conditions, kept):
    table = pd.DataFrame({"n": [4, 8, 16, "all"], "device": ["cpu", "cpu", "cuda:0", "cuda:1"]})
    assert where(table, conditions, CONSTANTS).index.tolist() == kept


def test_where_refuses_an_unknown_column_and_an_unknown_constant():
    table = pd.DataFrame({"n": [1]})
    with pytest.raises(LitmusError, match="no such column"):
        where(table, {"m": 1}, CONSTANTS)
    with pytest.raises(LitmusError, match="not arithmetic"):
        where(table, {"n": "> l3"}, CONSTANTS)


@pytest.mark.parametrize(
    "experiment",
    [
        {"trials": {"metrics": {"seed": {}}}},
        {"trials": {"metrics": {"n": {}}, "axes": {"n": [1]}}},
        {"timing": {"kind": "speed", "axes": {"time": [1]}}},
        {"trials": {"axes": {"process": [1]}}},
    ],
)
def test_no_axis_or_metric_takes_the_name_of_another_column(make_card, experiment):
    with pytest.raises(LitmusError, match="name"):
        make_card(**experiment)


@pytest.mark.parametrize("text", ["{", "[1]", "null", "[" * 100_000])
def test_text_that_is_no_json_object_is_refused(make_card, frame, trial, text):
    table = frame([trial("a", {"loss": 1.0})])
    card = make_card(trials={}).experiments["trials"]
    for column in ("metrics", "point"):
        with pytest.raises(LitmusError, match="damaged"):
            tidy(table.assign(**{column: text}), "trials", card)


def test_samples_of_unequal_length_are_refused(make_card, frame, speed):
    record = speed("a", [1000, 2000], processes=1)
    record.samples.calls.pop()
    card = make_card(timing={"kind": "speed"})
    with pytest.raises(LitmusError, match="damaged"):
        tidy(frame([record]), "timing", card.experiments["timing"])
