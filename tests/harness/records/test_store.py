import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.errors import LitmusError
from harness.records.record import STATUSES, Record, Samples
from harness.records.store import (
    COLUMNS,
    DEFAULT_COLUMNS,
    Run,
    RunInfo,
    find_runs,
    load_records,
    newest_verdicts,
    read_run_info,
    read_verdicts,
    refused_runs,
    resolve_run,
    write_records,
    write_run_info,
    write_verdicts,
)
from harness.records.table import OTHER_SAMPLE_COLUMNS, schema


def record(**changes):
    values = {
        "cell": "c0", "suite": "fam/slug", "experiment": "e", "kind": "trial", "arm": "a", "point": {"n": 4}, "seed": 0,
        "device": "cpu", "profile": "small", "status": "ok", "card_version": 1, "code": "k", **changes,
    }
    return Record(**values)


def info(run="r", started_at=1.0, **changes):
    return RunInfo(run=run, started_at=started_at, profile="small", litmus="0.1", **changes)


def make_run(root, name, started_at=1.0, machine="box", verdicts=None):
    folder = root / "results" / machine / name
    write_run_info(folder, info(name, started_at))
    if verdicts is not None:
        write_verdicts(folder, verdicts)
    return folder


def verdict(suite="fam/slug", claim="c", word="supported"):
    return {"suite": suite, "claim": claim, "verdict": word, "reason": "why", "scale": {}, "note": None, "parts": []}


def test_every_field_survives_the_round_trip(tmp_path):
    samples = Samples([0, 0], [0, 1], [0, 1], [3, 4], [100, 2**40])
    others = Samples([1, 1], [2, 3], [1, 0], [5, 6], [7, 8])
    full = record(
        kind="speed", reason="r", started_at=1.5, elapsed_ns=7, prepare_ns=8, first_call_ns=9, peak_bytes=10,
        metrics={"loss": 0.1, "curve": [1.0, 2.0]}, tuned={"lr": 0.01}, samples=samples, input_bytes=11,
        bytes_moved=1.5, flops=2.5, error=1e-9, tolerance=1e-6, data="d", stderr_tail="tail", repro="litmus repro c0",
        attempt=2, workspace_bytes=12.0, returned_bytes=13, cache="cold", other_samples=others,
        how={"timer": "t", "processes": [{"dropped_rounds": 1}]}, worker={"name": "w", "lost": [{"name": "v"}]},
    )
    assert Record.from_json(full.to_json()) == full
    write_records(tmp_path, [full])
    row = load_records(tmp_path, COLUMNS).iloc[0]
    for name in COLUMNS:
        timings, _, column = name.rpartition("samples_")
        expected = getattr(others if timings else samples, column) if "samples_" in name else getattr(full, name)
        found = row[name]
        if name in ("point", "metrics", "tuned", "how", "worker"):
            found = json.loads(found)
        elif "samples_" in name:
            found = list(found)
        assert found == expected, name


def test_non_finite_metrics_survive(tmp_path):
    write_records(tmp_path, [record(metrics={"a": math.nan, "b": math.inf, "c": [-math.inf, 1.0]}, error=math.inf)])
    row = load_records(tmp_path).iloc[0]
    metrics = json.loads(row["metrics"])
    assert math.isnan(metrics["a"]) and metrics["b"] == math.inf and metrics["c"][0] == -math.inf
    assert row["error"] == math.inf


def test_absent_values_stay_absent(tmp_path):
    write_records(tmp_path, [record(), record(reason="because", data="x", error=0.5)])
    table = load_records(tmp_path)
    assert table["reason"].isna().tolist() == [True, False]
    assert table["data"].isna().tolist() == [True, False]
    assert table["error"].isna().tolist() == [True, False]


def test_an_empty_run_has_an_empty_table(tmp_path):
    write_records(tmp_path, [])
    table = load_records(tmp_path)
    assert list(table.columns) == list(DEFAULT_COLUMNS) and len(table) == 0


def test_many_row_groups_make_one_table_of_categoricals_without_python_objects(tmp_path):
    write_records(tmp_path, (record(cell=f"c{i // 2}", arm="ab"[i % 2], point={"n": i}) for i in range(45_000)))
    table = load_records(tmp_path)
    assert len(table) == 45_000 and table["cell"].iloc[44_999] == "c22499"
    assert all(isinstance(table[name].dtype, pd.CategoricalDtype) for name in ("suite", "point", "cell"))
    assert not any(dtype.kind == "O" and isinstance(dtype, np.dtype) for dtype in table.dtypes)


def test_columns_are_chosen_and_unknown_ones_refused(tmp_path):
    write_records(tmp_path, [record()])
    assert list(load_records(tmp_path, ["arm", "cell"]).columns) == ["arm", "cell"]
    with pytest.raises(LitmusError, match="status"):
        load_records(tmp_path, ["statsu"])


def test_a_failed_write_leaves_the_old_records(tmp_path):
    write_records(tmp_path, [record()])

    def broken():
        yield record()
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError):
        write_records(tmp_path, broken())
    assert len(load_records(tmp_path)) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["records.parquet"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LitmusError, match="cannot write"):
        write_records(tmp_path / "file" / "sub", [record()])


def _other_parquet(path, **changes):
    table = pa.table({"a": [1]})
    if changes:
        table = schema().empty_table()
        if "drop" in changes:
            table = table.drop_columns([changes["drop"]])
        if "retype" in changes:
            index = table.schema.get_field_index(changes["retype"])
            table = table.set_column(index, changes["retype"], pa.array([], pa.float32()))
        table = table.replace_schema_metadata({b"litmus.schema_version": changes.get("version", b"1")})
    pq.write_table(table, path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no records here"),
        (lambda path: path.write_bytes(b"not parquet at all, but long enough"), "not a parquet file"),
        (lambda path: path.write_bytes(b""), "not a parquet file"),
        (_other_parquet, "not one of Litmus"),
        (lambda path: _other_parquet(path, version=b"99"), "newer schema"),
        (lambda path: _other_parquet(path, version=b"x"), "not one of Litmus"),
        (lambda path: _other_parquet(path, drop="arm"), "lack the column 'arm'"),
        (lambda path: _other_parquet(path, retype="seed"), "another type"),
    ],
)
def test_other_files_are_refused_by_name_with_the_next_step(tmp_path, make, message):
    make(tmp_path / "records.parquet")
    with pytest.raises(LitmusError, match=message) as caught:
        load_records(tmp_path)
    assert caught.value.where == tmp_path / "records.parquet"
    assert caught.value.expected and caught.value.next_step


NEW = ["workspace_bytes", "returned_bytes", "cache", "how", "worker", *OTHER_SAMPLE_COLUMNS]


def _as_version_1(path):
    table = pq.read_table(path).drop_columns(NEW)
    pq.write_table(table.replace_schema_metadata({b"litmus.schema_version": b"1"}), path)


def test_records_of_an_older_version_are_read_as_what_was_true_then(tmp_path):
    path = write_records(tmp_path, [record(arm="a", samples=Samples([0], [0], [0], [1], [9])), record(arm="b")])
    _as_version_1(path)
    table = load_records(tmp_path, COLUMNS)
    assert list(table.columns) == list(COLUMNS)
    assert table["arm"].tolist() == ["a", "b"]
    assert [list(times) for times in table["samples_elapsed_ns"]] == [[9], []]
    assert table["returned_bytes"].tolist() == [0, 0]
    assert table["how"].tolist() == ["{}", "{}"]
    assert table["cache"].isna().all() and table["workspace_bytes"].isna().all()
    assert [list(times) for times in table["other_samples_elapsed_ns"]] == [[], []]
    assert list(load_records(tmp_path, ["how", "arm"]).columns) == ["how", "arm"]


def test_a_new_column_may_be_absent_from_an_older_version_only(tmp_path):
    _other_parquet(tmp_path / "records.parquet", drop="returned_bytes", version=b"1")
    assert len(load_records(tmp_path, ["returned_bytes"])) == 0
    _other_parquet(tmp_path / "records.parquet", drop="returned_bytes", version=b"2")
    with pytest.raises(LitmusError, match="lack the column 'returned_bytes'"):
        load_records(tmp_path)


def test_a_journal_line_of_an_older_version_is_read(tmp_path):
    line = json.loads(record(cell="c7").to_json())
    for name in ("workspace_bytes", "returned_bytes", "cache", "other_samples", "how"):
        del line[name]
    assert Record.from_json(json.dumps(line)) == record(cell="c7")


def test_the_committed_runs_load():
    runs = find_runs(Path(__file__).resolve().parents[3])
    assert runs
    for run in runs:
        assert set(run.records(["status"])["status"]) <= set(STATUSES)


def test_a_torn_parquet_file_is_refused(tmp_path):
    write_records(tmp_path, [record(cell=f"c{i}") for i in range(1000)])
    path = tmp_path / "records.parquet"
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(bytes(data))
    with pytest.raises(LitmusError):
        load_records(path)


def test_run_info_round_trip_and_name_from_the_folder(tmp_path):
    machine = {"cores": 2, "memory_bytes": 8, "caches": {"llc": 32}}
    wrote = info("liar", cards={"fam/slug": {"version": 1, "code": "k"}}, machine=machine, canary={"floor": math.nan})
    write_run_info(tmp_path / "truth", wrote)
    found = read_run_info(tmp_path / "truth")
    assert found.run == "truth"
    assert found.cards["fam/slug"]["version"] == 1
    assert found.constants() == {"llc": 32, "cores": 2, "memory": 8}
    assert found.canary == {"floor": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no JSON object"),
        ('{"schema_version": 99}', "newer schema"),
        ('{"schema_version": 1, "hacked": 1}', "not valid"),
        (" " * (9 * 2**20), "too large"),
    ],
)
def test_a_bad_run_json_is_refused(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(LitmusError, match=message) as caught:
        read_run_info(tmp_path)
    assert caught.value.where == tmp_path / "run.json"


def test_runs_are_found_newest_first_and_bad_ones_are_told_apart(tmp_path):
    make_run(tmp_path, "old", 1.0)
    make_run(tmp_path, "new", 2.0, machine="other")
    bad = tmp_path / "results" / "box" / "bad"
    bad.mkdir()
    (bad / "run.json").write_text("{")
    (tmp_path / "results" / "asv").mkdir()
    assert [(run.machine, run.id) for run in find_runs(tmp_path)] == [("other", "new"), ("box", "old")]
    assert [refusal.where for refusal in refused_runs(tmp_path)] == [bad / "run.json"]
    assert find_runs(tmp_path / "nothing") == []


def test_links_that_lead_out_of_results_are_not_followed(tmp_path):
    outside = make_run(tmp_path / "outside", "secret")
    inside = make_run(tmp_path, "mine")
    box = tmp_path / "results" / "box"
    (box / "link").symlink_to(outside, target_is_directory=True)
    (tmp_path / "results" / "link").symlink_to(outside.parent, target_is_directory=True)
    (box / "file").mkdir()
    (box / "file" / "run.json").symlink_to(outside / "run.json")
    (box / "loop").symlink_to(box / "loop")
    assert [run.folder for run in find_runs(tmp_path)] == [inside]


def test_a_run_is_resolved_by_path_id_machine_and_latest(tmp_path):
    old, new = make_run(tmp_path, "old", 1.0), make_run(tmp_path, "new", 2.0)
    twin = make_run(tmp_path, "old", 3.0, machine="other")
    assert resolve_run(tmp_path, str(new)).folder == new
    assert resolve_run(tmp_path, "new").folder == new
    assert resolve_run(tmp_path, "box/old").folder == old
    assert resolve_run(tmp_path, "latest").folder == twin
    with pytest.raises(LitmusError, match="more than one"):
        resolve_run(tmp_path, "old")
    with pytest.raises(LitmusError, match="did you mean 'new'"):
        resolve_run(tmp_path, "newt")
    with pytest.raises(LitmusError, match="no such run"):
        resolve_run(tmp_path / "empty", "latest")


def test_verdicts_round_trip_as_strict_json(tmp_path):
    row = verdict()
    estimate = {"point": math.nan, "low": -math.inf, "high": math.inf, "level": 0.95, "n": 0, "unit": "", "method": ""}
    row["parts"] = [
        {
            "id": "c", "experiment": "e", "point": {}, "estimate": estimate, "refute_interval": None,
            "supported_if": "> 1", "refuted_if": "< 1", "verdict": "supported", "reason": "why", "cells": [],
        }
    ]  # fmt: skip
    write_verdicts(tmp_path, [row])

    def refuse(text):
        raise AssertionError(text)

    json.loads((tmp_path / "verdicts.json").read_text(), parse_constant=refuse)
    found = read_verdicts(tmp_path)[0]["parts"][0]["estimate"]
    assert found == {**estimate, "point": None, "low": None, "high": None}
    assert read_verdicts(tmp_path / "elsewhere") == []


GREAT = '[{"suite": "s", "claim": "c", "verdict": "great", "reason": "r", "parts": []}]'


@pytest.mark.parametrize("rows", ["{}", '[{"suite": 1}]', GREAT])
def test_bad_verdicts_are_refused(tmp_path, rows):
    (tmp_path / "verdicts.json").write_text(f'{{"verdicts": {rows}}}')
    with pytest.raises(LitmusError, match=r"verdicts\.json is not valid"):
        read_verdicts(tmp_path)


def test_the_newest_verdicts_are_taken_per_suite(tmp_path):
    make_run(tmp_path, "old", 1.0, verdicts=[verdict("f/a", word="refuted"), verdict("f/b", word="refuted")])
    make_run(tmp_path, "new", 2.0, verdicts=[verdict("f/a")])
    make_run(tmp_path, "unjudged", 3.0)
    found = newest_verdicts(tmp_path)
    assert {key: row["verdict"] for key, row in found.items()} == {("f/a", "c"): "supported", ("f/b", "c"): "refuted"}
    only_old = newest_verdicts(tmp_path, [Run(tmp_path / "results" / "box" / "old")])
    assert only_old["f/a", "c"]["verdict"] == "refuted"


def test_a_smoke_run_speaks_only_where_nothing_else_does(tmp_path):
    make_run(tmp_path, "small", 1.0, verdicts=[verdict("f/a")])
    smoke = make_run(tmp_path, "smoke", 2.0, verdicts=[verdict("f/a", word="not run"), verdict("f/b", word="not run")])
    write_run_info(smoke, info("smoke", 2.0).model_copy(update={"profile": "smoke"}))
    found = newest_verdicts(tmp_path)
    assert found["f/a", "c"]["verdict"] == "supported"
    assert found["f/b", "c"]["verdict"] == "not run"
