"""Runs of three commits as asv reads them: through its own classes, and through asv publish."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pytest

from harness.adapters.asv_files import export
from harness.cli.asv_export import asv_export
from harness.errors import LitmusError
from harness.records.record import Record, Samples
from harness.records.store import Run, RunInfo, find_runs, write_records, write_run_info

MACHINE = {"key": "box-2c-8g-abc123", "cpu": "Some CPU", "cores": 2, "memory_bytes": 8 * 2**30,
           "system": "Linux-x86_64"}
TIME, ERROR, METRIC = "litmus.x.y.t.time", "litmus.x.y.t.error", "litmus.x.y.u.m"
SPEED = {"experiment": "t", "kind": "speed", "error": 1e-9, "tolerance": 1e-6, "peak_bytes": 4096}


def samples(ns, processes=3, rounds=8):
    """Every round holds two samples of 10 calls that are 1 ns beside ``ns``; rounds and processes differ by 1 %."""
    rows = [(p, r, i, 10, round(10 * (ns * (1 + 0.01 * ((p + r) % 3 - 1)) + 2 * i - 1)))
            for p in range(processes) for r in range(rounds) for i in (0, 1)]
    return Samples(*map(list, zip(*rows, strict=True)))


def a_record(**changes):
    values = {"cell": "c", "suite": "x/y", "arm": "right", "point": {"n": 8, "threads": 1}, "seed": 0, "device": "cpu",
              "profile": "small", "status": "ok", "card_version": 3, "code": "k", "started_at": 5.0, **SPEED, **changes}
    if values["kind"] == "trial":
        values = {**values, "error": None, "tolerance": None, "peak_bytes": 0}
    return Record(**values)


def speed_records(ns):
    return [
        a_record(samples=samples(ns)),
        a_record(point={"n": 64, "threads": 1}, samples=samples(8 * ns)),
        a_record(arm="wrong", status="wrong", reason="error 1 exceeds the tolerance", error=1.0),
        a_record(arm="absent", status="skipped", reason="peer is not installed", error=None),
    ]


def trial_records(mean):
    return [a_record(experiment="u", kind="trial", arm="a", point={}, seed=seed, metrics={"m": mean + seed - 1})
            for seed in range(3)]


@pytest.fixture
def commits(project):
    """Three commits of the project, oldest first."""
    git = ["git", "-C", str(project), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    made = []
    for number in range(3):
        (project / "number.txt").write_text(str(number))
        subprocess.run([*git, "add", "number.txt"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"number {number}", f"--date=2024-01-0{number + 1}T00:00:00Z"],
                       check=True)
        done = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
        made.append(done.stdout.strip())
    return made


@pytest.fixture
def write_run(project):
    """write_run(name, commit, records): a stored run; ``changes`` go into run.json."""

    def write(name, commit, records, **changes):
        values = {"run": name, "started_at": 1.0, "profile": "small", "litmus": "0.1", "commit": commit,
                  "machine": MACHINE, "software": {"python": "3.11.9"}, **changes}
        folder = project / "results" / MACHINE["key"] / name
        write_run_info(folder, RunInfo(**values))
        write_records(folder, records)
        return Run(folder)

    return write


@pytest.fixture
def history(project, commits, write_run):
    """The export of one run for each of three commits; the last is twice as slow."""
    runs = [write_run(f"r{i}", commit, [*speed_records(ns), *trial_records(2.0 + i)], started_at=float(i + 1))
            for i, (commit, ns) in enumerate(zip(commits, (1000, 1010, 2000), strict=True))]
    return project, commits, export(project, runs, project / "out")


def loaded(project):
    asv_results = pytest.importorskip("asv.results")
    return {item.commit_hash: item for item in asv_results.iter_results(str(project / "out"))}


def settings(results, key):
    params = results.get_result_params(key)
    return dict(zip(itertools.product(*params), zip(
        results.get_result_value(key, params), results.get_result_stats(key, params), strict=True), strict=True))


def test_asv_loads_what_was_exported(history):
    project, commits, done = history
    assert (len(done.files), len(done.runs), done.left_out) == (3, 3, [])
    results = loaded(project)
    assert results.keys() == set(commits)
    first = results[commits[0]]
    assert first.params["machine"] == MACHINE["key"] and first.params["device"] == "cpu"
    assert first.date % 1000 == 0 and first.date > 0
    found = settings(first, TIME)
    assert len(found) == 2 * 1 * 3
    value, stats = found["8", "1", "'right'"]
    assert value == pytest.approx(1000e-9, rel=1e-9)
    assert stats["ci_99_a"] < value < stats["ci_99_b"] < 1.05e-6
    assert stats["q_25"] <= value <= stats["q_75"]
    assert (stats["number"], stats["repeat"]) == (10, 24)


def test_a_wrong_arm_is_a_failure_and_a_skipped_one_a_skip(history):
    project, commits, _ = history
    found = settings(loaded(project)[commits[0]], TIME)
    assert found["8", "1", "'wrong'"][0] is None
    assert math.isnan(found["8", "1", "'absent'"][0])
    assert math.isnan(found["64", "1", "'absent'"][0]), "nobody asked for it"


def test_errors_bytes_and_metrics_that_are_better_lower_are_tracked(history):
    project, commits, _ = history
    last = loaded(project)[commits[2]]
    assert settings(last, ERROR)["8", "1", "'right'"][0] == 1e-9
    assert settings(last, "litmus.x.y.t.peak_bytes")["64", "1", "'right'"][0] == 4096
    value, stats = settings(last, METRIC)[("'a'",)]
    assert value == 4.0
    half = 9.92484 / math.sqrt(3)  # t_(0.995, 2) s / sqrt(3), s = 1
    assert (stats["ci_99_a"], stats["ci_99_b"]) == pytest.approx((4 - half, 4 + half), rel=1e-5)


def test_the_index_has_every_benchmark_once(history):
    project, _, _ = history
    index = json.loads((project / "out" / "benchmarks.json").read_text())
    assert index.pop("version") == 2
    assert set(index) == {TIME, ERROR, "litmus.x.y.t.peak_bytes", METRIC}
    assert index[TIME]["param_names"] == ["n", "threads", "arm"]
    assert index[TIME]["params"] == [["8", "64"], ["1"], ["'right'", "'wrong'", "'absent'"]]
    assert (index[TIME]["unit"], index[TIME]["type"], index[METRIC]["type"]) == ("seconds", "time", "track")


def test_asv_publishes_a_history_of_three_runs_with_its_regression(history):
    project, commits, _ = history
    pytest.importorskip("asv")
    config = {"version": 1, "project": "p", "repo": ".", "branches": ["HEAD"], "dvcs": "git", "results_dir": "out",
              "html_dir": "html", "benchmark_dir": "suites", "regressions_thresholds": {".*": 0.1}}
    (project / "asv.conf.json").write_text(json.dumps(config))
    done = subprocess.run([sys.executable, "-m", "asv", "publish"], cwd=project, capture_output=True, text=True,
                          check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    index = json.loads((project / "html" / "index.json").read_text())
    assert set(index["revision_to_hash"].values()) == set(commits)
    assert TIME in index["benchmarks"] and MACHINE["key"] in index["machines"]
    (graph,) = (path for path in (project / "html" / "graphs").rglob(f"{TIME}.json") if "summary" not in path.parts)
    points = json.loads(graph.read_text())
    assert len(points) == 3
    times = [next(number for number in values if number is not None) for _, values in points]
    assert times == pytest.approx([1000e-9, 1010e-9, 2000e-9], rel=1e-6)


def test_only_runs_of_a_known_commit_are_taken_and_the_others_named(project, commits, write_run):
    runs = [
        write_run("ok", commits[0], speed_records(10)),
        write_run("dirty", commits[1], speed_records(10), dirty=True),
        write_run("none", None, speed_records(10)),
        write_run("odd", "--output=x", speed_records(10)),
        write_run("elsewhere", "0" * 40, speed_records(10)),
    ]
    done = export(project, runs, project / "out")
    assert done.runs == ["ok"]
    assert dict(done.left_out) == {
        "dirty": "files differed from its commit",
        "none": "it names no commit",
        "odd": "it names no commit",
        "elsewhere": "its commit 00000000 is not in this repository",
    }


def test_of_two_runs_of_one_commit_the_newer_value_counts(project, commits, write_run):
    newer = write_run("b", commits[0], speed_records(500)[:1], started_at=2.0)
    older = write_run("a", commits[0], speed_records(1000), started_at=1.0)
    export(project, [newer, older], project / "out")
    found = settings(loaded(project)[commits[0]], TIME)
    assert found["8", "1", "'right'"][0] == pytest.approx(500e-9)
    assert found["64", "1", "'right'"][0] == pytest.approx(8000e-9), "only the older run has it"


def test_a_new_card_version_begins_a_new_history(project, commits, write_run):
    later = [a_record(card_version=4, point={"size": 8}, samples=samples(1000))]
    runs = [write_run("a", commits[0], speed_records(1000), started_at=1.0),
            write_run("b", commits[1], later, started_at=2.0)]
    export(project, runs, project / "out")
    index = json.loads((project / "out" / "benchmarks.json").read_text())
    assert (index[TIME]["version"], index[TIME]["param_names"]) == ("4", ["size", "arm"])
    results = loaded(project)
    assert TIME not in results[commits[0]].get_result_keys(index)
    assert TIME in results[commits[1]].get_result_keys(index)


def test_what_asv_measured_stays(project, commits, write_run):
    out = project / "out"
    out.mkdir()
    (out / "benchmarks.json").write_text(json.dumps({"speed.Suite.track_time": {"name": "n"}, "version": 2}))
    export(project, [write_run("a", commits[0], speed_records(10))], out)
    assert {"speed.Suite.track_time", TIME} < set(json.loads((out / "benchmarks.json").read_text()))


def test_one_process_of_few_rounds_has_no_interval(project, commits, write_run):
    record = a_record(samples=samples(1000, processes=1, rounds=2))
    export(project, [write_run("a", commits[0], [record])], project / "out")
    _, stats = settings(loaded(project)[commits[0]], TIME)["8", "1", "'right'"]
    assert "ci_99_a" not in stats and stats["repeat"] == 2
    assert np.isfinite(stats["q_25"])


def test_the_command_names_what_it_leaves_out(project, commits, write_run, capsys):
    write_run("good", commits[0], speed_records(10))
    write_run("changed", commits[0], speed_records(10), dirty=True)
    assert len(find_runs(project)) == 2
    asv_export(None, project / "out")
    assert capsys.readouterr().out.splitlines() == [
        "left out: changed: files differed from its commit",
        f"asv: 1 runs in 1 files below {project / 'out'}",
    ]
    with pytest.raises(LitmusError, match="none of these runs"):
        asv_export(["changed"], project / "out")
