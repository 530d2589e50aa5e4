"""``litmus history`` from stored runs: the table, JSON, and what it says where there is nothing to compare."""

import json
import random

import pytest

from harness.records.record import Record, Samples
from harness.records.store import RunInfo, write_records, write_run_info

SUITE = "demo/pairwise"
EXPERIMENT = "throughput"


def timed(arm, time_ns, seed, **changes):
    draw = random.Random(f"{seed} {arm}")
    each = [(process, turn) for process in range(3) for turn in range(6)]
    samples = Samples([process for process, _ in each], [turn for _, turn in each], [0] * 18, [1] * 18,
                      [round(time_ns * draw.gauss(1, 0.01)) for _ in each])
    base = {"cell": "c1", "suite": SUITE, "experiment": EXPERIMENT, "kind": "speed", "arm": arm, "point": {"n": 4096},
            "seed": 0, "device": "cpu", "profile": "small", "status": "ok", "card_version": 1, "code": "k",
            "samples": samples, "error": 1e-7, "tolerance": 1e-6}
    return Record(**{**base, **changes})


@pytest.fixture
def days(project):
    """Store one run a day with the given times in ms; 'slow' arms get a step at the run numbered ``at``."""

    def make(count, at=None, machine="test-machine", suite=SUITE, arm="pairwise", **changes):
        for number in range(count):
            name = f"run{number:02d}"
            folder = project / "results" / machine / name
            folder.mkdir(parents=True)
            info = {"run": name, "started_at": 1e9 + 86400.0 * number, "profile": "small", "litmus": "0",
                    "commit": f"{number + 1:040x}", "machine": {"key": machine},
                    "cards": {suite: {"version": 1, "code": "k"}}}
            write_run_info(folder, RunInfo(**info))
            slow = 1.5 if at is not None and number >= at else 1.0
            write_records(folder, [timed(arm, 2e6 * slow, number, suite=suite, **changes),
                                   timed("still", 1e6, number, suite=suite, **changes)])

    return make


def test_the_table_shows_the_series_and_where_it_changed(litmus, days):
    days(8, at=4)
    code, out, err = litmus("history", "pairwise")
    assert code == 0 and err == ""
    assert "demo/pairwise on test-machine, profile small: 8 runs" in out
    row = next(line for line in out.splitlines() if " pairwise " in line and " time " in line)
    blocks = next(word for word in row.split() if set(word) <= set("▁▂▃▄▅▆▇█"))
    assert len(blocks) == 8 and set(blocks[:4]) <= {"▁"} and set(blocks[4:]) <= {"▇", "█"}
    assert "1 change point, worst first" in out and "worse" in out
    assert "between run03 (0000000000, 2001-09-12 01:46 UTC) and run04" in out
    assert "→" in out and "1.5" in out


def test_nothing_changed(litmus, days):
    days(8)
    assert "no change points" in litmus("history", SUITE)[1]


def test_json_holds_every_value_and_change(litmus, days):
    days(8, at=4)
    code, out, _ = litmus("history", SUITE, "--metric", "time", "--experiment", EXPERIMENT, "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["suite"] == SUITE and found["runs"] == 8
    slow, still = found["series"]
    assert [item["arm"] for item in (slow, still)] == ["pairwise", "still"]
    assert [value["run"] for value in slow["values"]] == [f"run{number:02d}" for number in range(8)]
    assert all(value["low"] <= value["center"] <= value["high"] for value in slow["values"])
    (change,) = slow["changes"]
    assert (change["before"]["run"], change["after"]["run"], change["word"]) == ("run03", "run04", "worse")
    assert change["change"] == pytest.approx(0.5, abs=0.03) and still["changes"] == []


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_runs_end_with_three(litmus, days, count):
    days(count)
    code, out, err = litmus("history", SUITE)
    assert code == 3 and out == "" and "at least two runs" in err and f"{count} run" in err
    assert "litmus run demo/pairwise" in err


def test_one_run_on_each_of_two_machines_is_no_history(litmus, days):
    days(1)
    days(1, machine="other")
    assert litmus("history", SUITE)[0] == 3


def test_runs_without_a_common_place_end_with_three(litmus, days):
    days(2, status="crashed", reason="r", samples=Samples())
    code, _, err = litmus("history", SUITE)
    assert code == 3 and "no two runs measured the same thing" in err


def test_machines_are_told_apart_and_chosen(litmus, days):
    days(4)
    days(4, machine="other")
    both = litmus("history", SUITE)[1]
    assert "on test-machine" in both and "on other" in both
    one = litmus("history", SUITE, "--machine", "other")[1]
    assert "on test-machine" not in one and "on other" in one
    code, _, err = litmus("history", SUITE, "--machine", "othr")
    assert code == 2 and "did you mean 'other'" in err


@pytest.mark.parametrize(("words", "hint"), [
    (("pairwize",), "did you mean"),
    ((SUITE, "--metric", "tim"), "did you mean 'time'"),
    ((SUITE, "--experiment", "througput"), f"did you mean '{EXPERIMENT}'"),
    ((SUITE, "--format", "jason"), "did you mean 'json'"),
])
def test_mistakes_say_what_was_meant(litmus, days, words, hint):
    days(3)
    code, out, err = litmus("history", *words)
    assert code == 2 and out == "" and hint in err


def test_a_suite_that_is_gone_still_has_its_history(litmus, days):
    days(6, suite="old/gone", at=3)
    code, out, _ = litmus("history", "old/gone")
    assert code == 0 and "old/gone on test-machine" in out


def test_a_run_without_records_is_left_aside(litmus, days, project):
    days(4)
    (project / "results/test-machine/run02/records.parquet").unlink()
    assert "3 runs" in litmus("history", SUITE)[1]
