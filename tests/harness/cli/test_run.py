import pytest

from harness.run.journal import Journal
from harness.run.session import RunResult

REFUSED = {
    "an unknown suite": (("run", "pairwse"), "'pairwse'", "did you mean 'pairwise'"),
    "an unknown experiment": (("run", "pairwise:acuracy"), "pairwise:acuracy", "'accuracy'"),
    "no selector": (("run", "pairwise:accuracy[n"), "pairwise:accuracy[n", "SUITE[:EXPERIMENT"),
    "a value the axis has not": (("run", "pairwise:accuracy[n=5]"), "5", "one of 4096, 65536"),
    "a bad budget": (("run", "--budget", "10"), "--budget", "10m"),
    "a bad profile": (("run", "--profile", "ful"), "--profile", "'full'"),
    "a bad device": (("run", "--device", "gpu"), "--device", "cuda:INDEX"),
    "no seeds": (("run", "--seeds", "0"), "--seeds", "1 or more"),
    "no jobs": (("run", "--jobs", "0"), "--jobs", "1 or more"),
    "an unknown run to go on with": (("run", "--resume", "nothing"), "'nothing'", "litmus run"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_request_that_cannot_be_carried_out_is_explained_and_leaves_nothing(litmus, project, name):
    words, found, expected = REFUSED[name]
    code, _, err = litmus(*words)
    assert code == 2
    assert found in err and expected in err
    assert "Traceback" not in err
    assert not (project / "results").exists()


def test_a_dry_run_lists_cells_and_skips_and_runs_nothing(litmus, project):
    code, out, _ = litmus("run", "--dry-run", "--device", "cuda")
    assert code == 2, "no experiment of the skeleton is for cuda"
    code, out, _ = litmus("run", "--dry-run", "--seeds", "2")
    assert code == 0
    assert "5 cells to run, 0 skipped" in out
    assert "demo/pairwise:accuracy[n=65536] seed 1 on cpu" in out
    card = project / "suites/demo/pairwise/card.yaml"
    card.write_text(card.read_text().replace("    timeout_s: 60\n    memory_gib: 2", "    profiles: {smoke: skip}"))
    out = litmus("run", "--dry-run", "--profile", "smoke")[1]
    assert "1 cells of demo/pairwise:throughput: profile smoke does not run this experiment" in out
    assert not (project / "results").exists()


def test_a_results_folder_that_cannot_be_written_is_explained(litmus, project):
    (project / "file").write_text("kept")
    code, _, err = litmus("run", "--profile", "smoke", "--out", str(project / "file" / "run"))
    assert code == 2
    assert "file/run" in err and "--out" in err
    assert (project / "file").read_text() == "kept"


def test_a_folder_in_use_by_another_run_is_refused_and_left_alone(litmus, project):
    folder = project / "results" / "busy"
    with Journal(folder, "litmus run something") as journal:
        before = sorted(path.name for path in folder.iterdir())
        code, _, err = litmus("run", "--profile", "smoke", "--out", str(folder))
        assert sorted(path.name for path in folder.iterdir()) == before
        assert journal.records == []
    assert code == 2
    assert "results/busy" in err and "expected" in err and "next" in err


def test_a_folder_with_a_finished_run_is_not_overwritten(litmus, stored_run):
    folder = stored_run("done", "supported")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, _, err = litmus("run", "--profile", "smoke", "--out", str(folder))
    assert code == 2 and "already holds a run" in err
    assert {name: (folder / name).read_bytes() for name in before} == before


def test_resume_takes_no_other_question(litmus, stored_run):
    folder = stored_run("done", "supported")
    for words in (("pairwise",), ("--profile", "smoke"), ("--seeds", "3"), ("--out", "elsewhere")):
        code, _, err = litmus("run", "--resume", str(folder), *words)
        assert code == 2 and "--resume" in err and "continues as it was asked for" in err


@pytest.fixture
def session(monkeypatch):
    """Stands in for the engine: gives the result that the test wants, and keeps what it was asked."""
    import harness.run.session as engine

    asked = []

    def install(result):
        def run(root, request, options, progress):
            asked.append((request, options))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(engine, "run", run)
        return asked

    return install


@pytest.mark.parametrize(
    ("counts", "canary", "interrupted", "code"),
    [
        ({"ok": 4}, None, False, 0),
        ({"ok": 4, "skipped": 2, "throttled": 1}, {"alarm": False}, False, 0),
        ({"ok": 3, "wrong": 1}, None, False, 4),
        ({"crashed": 1}, None, False, 4),
        ({"timeout": 1}, None, False, 4),
        ({"oom": 1}, None, False, 4),
        ({"ok": 4}, {"alarm": True, "median_log_ratio": 0.04}, False, 5),
        ({"wrong": 1}, {"alarm": True}, False, 4),
        ({"ok": 1}, None, True, 130),
        ({"wrong": 1}, None, True, 130),
    ],
)
def test_the_exit_code_says_how_the_run_went(litmus, stored_run, session, counts, canary, interrupted, code):
    folder = stored_run("now", "supported", canary=canary)
    session(RunResult(folder, counts, interrupted, []))
    ended, out, _ = litmus("run", "--profile", "smoke")
    assert ended == code
    assert "run:      results/test-machine/now" in out
    assert ("litmus run --resume" in out) is interrupted
    assert ("canary alarmed" in out) is (code == 5 or bool(canary and canary.get("alarm")))


def test_the_summary_has_the_verdict_words_and_the_way_to_the_pages(litmus, stored_run, session):
    from harness.records.store import read_verdicts

    folder = stored_run("now", "supported")
    session(RunResult(folder, {"ok": 4}, False, read_verdicts(folder)))
    out = litmus("run")[1]
    assert "1 supported, 1 not run" in out
    assert "litmus report --run results/test-machine/now" in out


def test_what_was_asked_reaches_the_engine(litmus, stored_run, session):
    asked = session(RunResult(stored_run("now", "supported"), {}, False, []))
    litmus(
        "run",
        "pair*",
        "--profile",
        "full",
        "--device",
        "cpu",
        "--seeds",
        "3",
        "--budget",
        "10m",
        "--jobs",
        "1",
        "--out",
        "x",
    )
    ((request, options),) = asked
    assert (request.selectors, request.profile, request.devices, request.seeds) == (("pair*",), "full", ("cpu",), 3)
    assert (options.budget_s, options.jobs, str(options.out)) == (600.0, 1, "x")
    assert options.command == "litmus run 'pair*' --profile full --device cpu --seeds 3 --budget 10m"


def test_resume_latest_finds_the_newest_run(litmus, stored_run, session):
    stored_run("old", "refuted", started_at=1.0)
    newest = stored_run("new", "supported", started_at=2.0)
    asked = session(RunResult(newest, {}, False, []))
    assert litmus("run", "--resume", "latest")[0] == 0
    assert asked[0][1].resume == newest


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(litmus, project, session):
    session(KeyboardInterrupt())
    code, out, _ = litmus("run")
    assert code == 130 and "litmus run --resume latest" in out
