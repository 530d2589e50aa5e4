"""A results folder from a stranger's pull request: it can neither run code nor end in a traceback nor break a page."""

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.cli.app import main
from harness.errors import LitmusError
from harness.records import limits
from harness.records.record import Record, Samples
from harness.records.store import Run, RunInfo, find_runs, write_records, write_run_info, write_verdicts
from harness.records.table import schema

HERE = Path(__file__).resolve().parents[2]
SUITE = "demo/tiny"
CARD = """
paper: {title: A small experiment, year: 2020}
version: 1
summary: Nothing is run here.
experiments:
  pace: {kind: speed, arms: [ours, peer], fast_path: {op: tiny, peers: [peer]}, axes: {n: [1]}}
  fit:
    kind: trial
    arms: [a, b]
    seeds: 3
    metrics: {loss: {better: lower}, curve: {better: lower, series: true}}
claims:
  - id: fits
    statement: It fits.
    experiment: fit
    estimate: {difference: loss, of: a, minus: b}
    supported_if: "< 0"
    refuted_if: "> 0"
"""
EVIL = "<script>alert(1)</script><img src=x onerror=alert(1)>|`]( \n\x1b[31m\u202e"
COMMANDS = (
    ("compare", "good", "{run}"), ("compare", "{run}", "good"), ("compare", "good", "{run}", "--format", "markdown"),
    ("compare", "good", "{run}", "--format", "junit"), ("report", "--run", "{run}"), ("report",),
    ("report", "--run", "{run}", "--markdown"), ("verdicts", "--run", "{run}"),
    ("verdicts", "--run", "{run}", "--json"), ("ls", "--run", "{run}"),
)  # fmt: skip


def record(**changes):
    values = {
        "cell": "c", "suite": SUITE, "experiment": "fit", "kind": "trial", "arm": "a", "point": {}, "seed": 0,
        "device": "cpu", "profile": "small", "status": "ok", "card_version": 1, "code": "k",
        "metrics": {"loss": 1.0, "curve": [2.0, 1.0]},
    }  # fmt: skip
    return Record(**{**values, **changes})


def records():
    samples = Samples([0, 0, 1, 1], [0, 1, 0, 1], [0] * 4, [10] * 4, [1000, 1010, 1020, 1030])
    yield from (record(cell=f"t{seed}", seed=seed, arm=arm) for seed in range(3) for arm in "ab")
    yield from (
        record(cell="s", experiment="pace", kind="speed", point={"n": 1}, arm=arm, samples=samples, error=1e-7)
        for arm in ("ours", "peer")
    )
    yield record(cell="x", seed=3, status="crashed", reason="signal 11", stderr_tail="words", metrics={})


def info(name, **changes):
    values = {
        "machine": {"key": "box-1", "cpu": "a cpu", "cores": 2, "caches": {"l1": 1, "l2": 2, "llc": 4}},
        "ceilings": {"threads": {"1": {"copy_bytes_per_s": 1e9, "flops_per_s": 1e9}}},
        "canary": {"floor": 0.01, "alarm": False}, "cards": {SUITE: {"version": 1, "code": "k"}}, "counts": {"ok": 8},
    }  # fmt: skip
    return RunInfo(**{"run": name, "started_at": 1.0, "profile": "small", "litmus": "0.1", **values, **changes})


def verdict(**changes):
    estimate = {"point": 0.1, "low": 0.0, "high": 0.2, "level": 0.95, "n": 3, "unit": "seed", "method": "t"}
    part = {
        "id": "fits", "experiment": "fit", "point": {}, "estimate": estimate,
        "refute_interval": {"low": 0.0, "high": 0.2, "level": 0.95}, "supported_if": "< 0", "refuted_if": "> 0",
        "verdict": "inconclusive", "reason": "why", "cells": ["t0"],
    }  # fmt: skip
    values = {"suite": SUITE, "claim": "fits", "verdict": "inconclusive", "reason": "why", "scale": {}, "note": None}
    return {**values, "parts": [part], **changes}


def write_run(root, name, **changes):
    folder = root / "results" / "box-1" / name
    write_run_info(folder, info(name, **changes))
    write_records(folder, records())
    write_verdicts(folder, [verdict()])
    return folder


@pytest.fixture
def root(tmp_path, monkeypatch):
    folder = tmp_path / "suites" / "demo" / "tiny"
    folder.mkdir(parents=True)
    (folder / "card.yaml").write_text(CARD)
    (folder / "suite.py").write_text("raise SystemExit('no suite is ever loaded here')\n")
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, "good", started_at=0.5)
    return tmp_path


@pytest.fixture
def bad(root):
    return write_run(root, "bad")


@pytest.fixture
def every_command(root, capsys, monkeypatch):
    """Run each command on a run; gives {words: (code, out, err)}. A traceback fails here, as an exception."""

    def call(folder, commands=COMMANDS):
        found = {}
        for words in commands:
            monkeypatch.setattr(sys, "argv", ["litmus", *(word.format(run=folder) for word in words)])
            with pytest.raises(SystemExit) as ended:
                main()
            out, err = capsys.readouterr()
            code = ended.value.code or 0
            assert isinstance(code, int), (words, code)
            assert "Traceback" not in err and "\x1b[31m" not in out + err, words
            found[words] = (code, out, err)
        return found

    return call


def refused(found, message):
    """All commands that name the run refuse it, each with the message."""
    named = {words: value for words, value in found.items() if "{run}" in words}
    assert all(code == 2 and message in err for code, _, err in named.values()), named


def edited(folder, name, change):
    """Rewrite a JSON file of the run with ``change`` applied to its data, whatever that makes of it."""
    path = folder / name
    data = json.loads(path.read_text())
    path.write_text(json.dumps(change(data)))


def rewritten(folder, **columns):
    """Rewrite the records with columns replaced by other Arrow arrays or functions of them."""
    table = pq.read_table(folder / "records.parquet")
    for name, new in columns.items():
        place = table.schema.get_field_index(name)
        column = new(table.column(name)) if callable(new) else new
        table = table.set_column(place, pa.field(name, column.type), column)
    pq.write_table(table, folder / "records.parquet")


def texts(count, *first, filler="x"):
    values = [*first, *[filler] * (count - len(first))]
    return pa.array(values, pa.string()).cast(pa.dictionary(pa.int32(), pa.string()))


COUNT = len(list(records()))

# the run's JSON


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("started_at", 1e300), ("started_at", float("nan")), ("started_at", -5), ("started_at", "now"),
        ("profile", "x" * 10**6), ("litmus", ["0"]), ("machine", {"caches": [1]}), ("machine", {"caches": {"l1": "x"}}),
        ("machine", {"devices": [{"id": 3}]}), ("machine", {"simd": 3}), ("machine", {"cores": 10**30}),
        ("ceilings", {"threads": []}), ("ceilings", {"threads": {"1": {"copy_bytes_per_s": "fast"}}}),
        ("ceilings", {"devices": {"cuda:0": 3}}), ("canary", {"floor": "x"}), ("canary", []),
        ("cards", {"../../../etc/x": {"version": 1, "code": "k"}}), ("cards", {"a/b/c": {"version": 1, "code": "k"}}),
        ("cards", {SUITE: {"version": "1.5", "code": "k"}}), ("cards", {"<b>/x": {"version": 1, "code": "k"}}),
        ("counts", {"ok": "many"}), ("software", {"torch": {}}), ("schema_version", 99), ("hacked", 1),
        ("volatile", json.loads("[" * 100 + "]" * 100)),
    ],
)  # fmt: skip
def test_a_run_json_of_another_shape_is_refused_by_its_key(bad, every_command, key, value):
    edited(bad, "run.json", lambda data: {**data, key: value if key != "volatile" else {"x": value}})
    found = every_command(bad)
    refused(found, "nested too deeply" if key == "volatile" else key)
    assert found[("report",)][0] == 0, "the other runs are reported all the same"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: "text", lambda rows: [3], lambda rows: [{**rows[0], "parts": [{}]}],
        lambda rows: [{**rows[0], "parts": [{**rows[0]["parts"][0], "estimate": {"point": "<b>"}}]}],
        lambda rows: [{**rows[0], "parts": [{**rows[0]["parts"][0], "point": {"n": {"deep": 1}}}]}],
        lambda rows: [{**rows[0], "parts": [{**rows[0]["parts"][0], "point": {"n": 10**400}}]}],
        lambda rows: [{**rows[0], "suite": "../../x"}], lambda rows: [{**rows[0], "claim": "x" * 10**6}],
        lambda rows: [{**rows[0], "scale": []}], lambda rows: [{**rows[0], "note": {"a": 1}}],
    ],
)  # fmt: skip
def test_verdicts_of_another_shape_are_refused(bad, every_command, change):
    edited(bad, "verdicts.json", lambda data: {**data, "verdicts": change(data["verdicts"])})
    readers = [words for words in COMMANDS if words[0] != "compare" and "{run}" in words]
    refused(every_command(bad, readers), "verdicts.json is not valid")


def test_files_too_large_or_too_deep_are_refused(bad, every_command):
    (bad / "run.json").write_text('{"volatile": ' + '{"a":' * 900 + "1" + "}" * 901)
    refused(every_command(bad), "nested too deeply")
    (bad / "run.json").write_text('{"volatile": ' + "[" * 200_000)
    refused(every_command(bad), "not valid JSON")
    (bad / "run.json").write_text('{"command": "' + "x" * 9 * 2**20 + '"}')
    refused(every_command(bad), "too large")


# links and special files


@pytest.mark.parametrize("name", ["run.json", "verdicts.json", "records.parquet"])
@pytest.mark.parametrize("relative", [True, False])
def test_links_out_of_the_folder_are_refused(bad, root, every_command, name, relative):
    secret = root / "secret"
    shutil.move(bad / name, secret)
    (bad / name).symlink_to(Path("../../../secret") if relative else secret)
    found = every_command(bad)
    reads = {"run.json": ("ls", "compare", "report", "verdicts"), "verdicts.json": ("ls", "verdicts"),
             "records.parquet": ("compare",)}[name]  # fmt: skip
    named = [value for words, value in found.items() if words[0] in reads and "{run}" in words]
    assert named and all(code == 2 and "a link leads out of the folder" in err for code, _, err in named)


def test_loops_and_pipes_neither_hang_nor_crash(bad, every_command):
    (bad / "records.parquet").unlink()
    (bad / "records.parquet").symlink_to("records.parquet")
    assert every_command(bad, COMMANDS[:1])[COMMANDS[0]][0] == 2
    (bad / "records.parquet").unlink()
    os.mkfifo(bad / "records.parquet")
    code, _, err = every_command(bad, COMMANDS[:1])[COMMANDS[0]]
    assert code == 2 and "not a regular file" in err
    (bad / "run.json").unlink()
    os.mkfifo(bad / "run.json")
    assert every_command(bad, COMMANDS[:1])[COMMANDS[0]][0] == 2
    assert [run.id for run in find_runs(Path.cwd())] == ["good"]


# the records


def test_pickles_and_extension_types_are_never_loaded(bad, every_command, tmp_path):
    proof = tmp_path / "code-ran"
    payload = b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    field = pa.field("metrics", pa.string(), metadata={
        b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload,
    })  # fmt: skip
    table = pq.read_table(bad / "records.parquet")
    place = table.schema.get_field_index("metrics")
    table = table.set_column(place, field, table.column("metrics"))
    hostile = {**table.schema.metadata, b"pandas": payload, b"ARROW:schema": payload, b"x" * 1000: b"y" * 10**6}
    pq.write_table(table.replace_schema_metadata(hostile), bad / "records.parquet")
    assert every_command(bad, COMMANDS[:1])[COMMANDS[0]][0] in (0, 2)
    (bad / "records.parquet").write_bytes(payload)
    assert every_command(bad, COMMANDS[:1])[COMMANDS[0]][0] == 2
    assert not proof.exists()


@pytest.mark.parametrize(
    "pandas",
    [b"{", b"[]", b'{"index_columns": ["cell", {"kind": "range"}], "columns": 3}',
     json.dumps({"index_columns": ["cell"], "column_indexes": [], "columns": [
         {"name": "cell", "field_name": "cell", "pandas_type": "datetimetz", "numpy_type": "datetime64[ns]",
          "metadata": {"timezone": "x"}}]}).encode()],
)  # fmt: skip
def test_metadata_for_pandas_says_nothing(bad, pandas):
    table = pq.read_table(bad / "records.parquet")
    pq.write_table(
        table.replace_schema_metadata({**table.schema.metadata, b"pandas": pandas}), bad / "records.parquet"
    )
    assert len(Run(bad).records()) == COUNT


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"arm": texts(COUNT, "y" * 10**6, filler="a")}, "hold what no run writes"),
        ({"suite": texts(COUNT, "../../x", filler=SUITE)}, "hold what no run writes"),
        ({"suite": texts(COUNT, EVIL, filler=SUITE)}, "hold what no run writes"),
        ({"status": texts(COUNT, "<b>", filler="ok")}, "hold what no run writes"),
        ({"kind": texts(COUNT, "other", filler="trial")}, "hold what no run writes"),
        ({"cell": texts(COUNT, None, filler="c")}, "hold what no run writes"),
        ({"point": texts(COUNT, "[1]", filler="{}")}, "what is no point"),
        ({"point": texts(COUNT, '{"n": {"a": 1}}', filler="{}")}, "what is no point"),
        ({"point": texts(COUNT, "[" * 10**5, filler="{}")}, "what is no point"),
        ({"point": texts(COUNT, '{"n": ' + "9" * 5000 + "}", filler="{}")}, "what is no point"),
        ({"seed": pa.array([None] * COUNT, pa.int64())}, "hold what no run writes"),
        ({"seed": pa.array(["0"] * COUNT)}, "another type"),
        ({"metrics": pa.array([b"{}"] * COUNT)}, "another type"),
        ({"metrics": pa.array(["{}"] * COUNT, pa.large_string())}, "another type"),
        ({"samples_calls": pa.array([[0]] * COUNT, pa.list_(pa.int64()))}, "hold what no run writes"),
        ({"samples_calls": pa.array([[None]] * COUNT, pa.list_(pa.int64()))}, "hold what no run writes"),
        ({"samples_calls": pa.array([None] * COUNT, pa.list_(pa.int64()))}, "hold what no run writes"),
        ({"samples_elapsed_ns": pa.array([[-5] * 4] * COUNT, pa.list_(pa.int64()))}, "hold what no run writes"),
        ({"samples_calls": pa.array([[1]] * COUNT, pa.list_(pa.int64()))}, "a record is damaged"),
        ({"metrics": pa.array(["[1]"] * COUNT)}, "a record is damaged"),
        ({"metrics": pa.array(['{"a": 1},{"b": 2}', *["{}"] * (COUNT - 1)])}, "a record is damaged"),
    ],
)  # fmt: skip
def test_columns_that_no_run_writes_are_refused(bad, every_command, columns, message):
    rewritten(bad, **columns)
    found = every_command(bad)
    compared = [value for words, value in found.items() if words[0] == "compare"]
    assert all(code == 2 and message in err for code, _, err in compared), compared


def test_a_column_given_twice_or_not_at_all_is_refused(bad):
    table = pq.read_table(bad / "records.parquet")
    pq.write_table(table.append_column("seed", table.column("seed")), bad / "records.parquet")
    with pytest.raises(LitmusError, match="have twice the column 'seed'"):
        Run(bad).records()
    pq.write_table(table.drop_columns(["seed"]), bad / "records.parquet")
    with pytest.raises(LitmusError, match="lack the column 'seed'"):
        Run(bad).records()


def test_values_that_are_no_numbers_are_undefined_not_a_traceback(bad, every_command):
    odd = ['{"loss": "<b>", "curve": [1, "x"]}', '{"loss": [1], "curve": "x"}', '{"loss": {"a": 1}, "curve": {}}',
           '{"loss": ' + "9" * 400 + ', "curve": [1e999, NaN]}', '{"loss": NaN}', '{"loss": Infinity, "curve": []}',
           *["{}"] * (COUNT - 6)]  # fmt: skip
    rewritten(bad, metrics=pa.array(odd), started_at=pa.array([float("nan"), float("inf")] * 4 + [0.0]))
    found = every_command(bad)
    assert all(code in (0, 1, 3, 4) for code, _, _ in found.values()), found


def small_limits(monkeypatch, **values):
    for name, value in values.items():
        monkeypatch.setattr(limits, name, value)


def test_what_swells_when_read_is_refused_before_it_is_read(bad, monkeypatch):
    """A few kilobytes in the file: runs of equal indices and numbers that would fill memory."""
    rows = [record(cell="c", metrics={"loss": 1.0}, samples=Samples([0] * 20_000, *[[1] * 20_000] * 4))] * 50
    write_records(bad, rows)
    assert (bad / "records.parquet").stat().st_size < 200_000
    small_limits(monkeypatch, MOST_VALUES=900_000)
    with pytest.raises(LitmusError, match="too large") as caught:
        Run(bad).records(["samples_calls"])
    assert caught.value.key == "samples_calls"
    assert len(Run(bad).records(["arm"])) == 50, "only what is read counts"
    small_limits(monkeypatch, MOST_VALUES=2 * 10**8, MOST_ROWS=40)
    with pytest.raises(LitmusError, match="too large"):
        Run(bad).records(["arm"])


def test_one_long_text_repeated_is_not_written_out(bad, monkeypatch):
    write_records(bad, [record(metrics={"x" * 10**6: 1.0})] * 100)
    assert (bad / "records.parquet").stat().st_size < 200_000
    small_limits(monkeypatch, MOST_TEXT_BYTES=10**7)
    with pytest.raises(LitmusError, match="too large"):
        Run(bad).records(["metrics"])
    small_limits(monkeypatch, MOST_TEXT_BYTES=2**30, LONGEST_RESULT=10**5)
    with pytest.raises(LitmusError, match="no run writes"):
        Run(bad).records(["metrics"])


def test_a_file_that_lies_about_its_size_meets_the_memory_limit(bad):
    """In a fresh process, since allocators keep what they once had."""
    write_records(bad, [record(samples=Samples([0] * 500_000, *[[1] * 500_000] * 4))] * 60)
    code = """
import sys
from harness.errors import LitmusError
from harness.records import limits
from harness.records.store import Run
from pathlib import Path
limits._MEMORY_BYTES = 2**27
try:
    Run(Path(sys.argv[1])).records(["samples_calls", "samples_round"])
except LitmusError as refusal:
    print(refusal.problem)
"""
    done = subprocess.run([sys.executable, "-c", code, bad], capture_output=True, text=True, check=True, cwd=HERE)
    assert "need too much memory" in done.stdout, done


def test_random_damage_to_a_file_is_refused_or_read(bad):
    data = (bad / "records.parquet").read_bytes()
    choose = random.Random(0)
    for _ in range(150):
        hurt = bytearray(data)
        for _ in range(choose.choice((1, 3, 30))):
            hurt[choose.randrange(len(hurt))] = choose.randrange(256)
        (bad / "records.parquet").write_bytes(bytes(hurt[: choose.choice((len(hurt), choose.randrange(len(hurt))))]))
        try:
            Run(bad).records(schema().names)
        except LitmusError as refusal:
            assert str(refusal)


# names


class Page(HTMLParser):
    """The tags of a page, to see whether a name became one."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


@pytest.fixture
def hostile_names(root):
    evil = EVIL.replace("\n", " ").replace("/", "")
    folder = root / "results" / "box-1" / f"bad{evil}"
    write_run_info(folder, info("x", command=EVIL, profile=EVIL[:80], software={EVIL: EVIL}, commit=EVIL))
    hurt = [
        record(**{**asdict(item), "samples": item.samples, "other_samples": item.other_samples, "reason": EVIL,
                  "stderr_tail": EVIL, "repro": EVIL, "device": EVIL, "code": EVIL})
        for item in records()
    ]  # fmt: skip
    hurt += [record(arm=EVIL, experiment=EVIL, point={EVIL: EVIL}, cell=EVIL, metrics={EVIL: 1.0})]
    hurt += [record(suite="demo/gone", arm=EVIL, experiment=EVIL, status="crashed", reason=EVIL)]
    write_records(folder, hurt)
    row = verdict(reason=EVIL, note=EVIL, scale={EVIL: EVIL})
    row["parts"][0].update(reason=EVIL, supported_if=EVIL, point={EVIL: EVIL}, cells=[EVIL])
    write_verdicts(folder, [row, {**row, "claim": EVIL}, {**row, "suite": "demo/gone"}])
    return folder


def test_names_never_become_markup(hostile_names, root, every_command):
    found = every_command(hostile_names)
    pages = list((root / "report").rglob("*.html"))
    assert len(pages) > 3
    for path in pages:
        page = Page()
        page.feed(path.read_text())
        assert all(name[:2] != "on" for _, attributes in page.tags for name in attributes), path
        scripts = [attributes for tag, attributes in page.tags if tag == "script"]
        assert all(item.get("src", ".js").endswith(".js") for item in scripts), path
        assert all("src" in item or item.get("type") == "application/json" for item in scripts), path
        assert not any(tag == "img" for tag, _ in page.tags), path
    text = found[COMMANDS[2]][1]
    assert "<script" not in text and "<img" not in text and "\u202e" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows and all(line.replace("\\|", "").count("|") == 10 for line in rows)


def test_the_report_stays_in_its_folder(hostile_names, root, every_command):
    before = {path for path in root.rglob("*") if "report" not in path.parts}
    every_command(hostile_names, [("report",)])
    assert {path for path in root.rglob("*") if "report" not in path.parts} == before


def test_other_schema_versions(bad, every_command):
    table = pq.read_table(bad / "records.parquet")
    for version in (b"99", b"x", b"9" * 5000, b""):
        pq.write_table(
            table.replace_schema_metadata({b"litmus.schema_version": version}), bad / "records.parquet"
        )
        assert every_command(bad, COMMANDS[:1])[COMMANDS[0]][0] == 2
    assert np.all([run.id in ("good", "bad") for run in find_runs(Path.cwd())])
