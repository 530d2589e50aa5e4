"""``litmus ab`` as it is typed: formats, exit codes, refusals, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import harness
from harness.cli.ab import PlainSteps
from harness.judge.comparison import Comparison, Outcome
from harness.run.lanes import Cancelled

SUITE = """
import time
import numpy as np
from harness.declare.suite import Arm, Problem, Suite

suite = Suite(__file__)


def run(x, out):
    open(suite.folder.parents[3] / "began", "w").close()
    time.sleep(60)


@suite.speed("s")
def s(point, rng, device):
    return Problem(inputs=lambda rng: (rng.standard_normal(64),), buffers=lambda x: (np.empty_like(x),),
                   truth=lambda x: x, arms={"a": Arm(run=run, bytes_moved=1, flops=1)}, input_bytes=512,
                   tolerance=1e-3)
"""
CARD = """
paper: {title: A test, year: 2024}
version: 1
summary: Nothing real.
experiments: {s: {kind: speed, arms: [a]}}
claims: [{id: c, statement: s, experiment: s, estimate: {mean: time, of: a}, supported_if: "> 0", refuted_if: "< 0"}]
"""


@pytest.fixture
def repository(project):
    """The project of one suite as a git repository."""
    for words in (["init", "-q"], ["add", "--all"],
                  ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-C", str(project), *words], check=True, capture_output=True)
    return project


def an_outcome(verdict="slower", reason="beyond_zone", **changes):
    item = Comparison("x/y", "s", "a", "time", verdict, reason, change=0.05, low=0.04, high=0.06, threshold=0.01)
    return Outcome("main", "HEAD", (item,), **changes)


@pytest.fixture
def outcome(monkeypatch):
    """outcome(value): what the comparison comes to; gives what it was asked."""
    asked = []

    def plan(value):
        def compare(root, base, head, options, progress):
            asked.append((root, base, head, options))
            if isinstance(value, BaseException):
                raise value
            progress.note("two cells")
            progress.step(1, 2, "one done")
            return value

        monkeypatch.setattr("harness.run.ab.session.compare_revisions", compare)
        return asked

    return plan


def test_what_is_asked_for(repository, litmus, outcome):
    asked = outcome(an_outcome("same", "inside_zone"))
    code, out, err = litmus("ab", "main", ".", "pairwise", "--all", "--profile", "small", "--budget", "90s")
    assert code == 0
    root, base, head, options = asked[0]
    assert (root, base, head) == (repository, "main", ".")
    assert (options.selectors, options.everything, options.profile, options.budget_s) == (("pairwise",), True, "small",
                                                                                         90.0)
    assert "two cells" in err and "[1/2] one done" in err
    assert "two cells" not in out


def test_by_default_only_changes_at_smoke_for_three_minutes(repository, litmus, outcome):
    asked = outcome(an_outcome("same", "inside_zone"))
    litmus("ab", "main", "HEAD")
    options = asked[0][3]
    assert (options.selectors, options.everything, options.profile, options.budget_s) == ((), False, "smoke", 180.0)


@pytest.mark.parametrize(("value", "code"), [
    (an_outcome("same", "inside_zone"), 0), (an_outcome(), 1), (Outcome("a", "b", ()), 3),
    (an_outcome("incomparable", "head_status"), 4), (an_outcome(canary_failed=True), 5), (Cancelled(), 130),
    (KeyboardInterrupt(), 130),
])
def test_exit_codes(repository, litmus, outcome, value, code):
    outcome(value)
    assert litmus("ab", "main", "HEAD")[0] == code


def test_json_is_all_that_is_on_standard_output(repository, litmus, outcome):
    outcome(an_outcome())
    code, out, _ = litmus("ab", "main", "HEAD", "--format", "json")
    data = json.loads(out)
    assert (data["exit_code"], code, data["comparisons"][0]["verdict"]) == (1, 1, "slower")


def test_a_file_beside_the_table(repository, litmus, outcome):
    outcome(an_outcome())
    code, out, _ = litmus("ab", "main", "HEAD", "--format", "markdown", "--out", "found.md")
    assert code == 1
    assert "slower" in out
    assert "slower" in (repository / "found.md").read_text()


@pytest.mark.parametrize(("words", "said"), [
    (["no-such-branch", "HEAD"], "no such revision"), (["HEAD", "HEAD", "--format", "xml"], "no such format"),
    (["HEAD", "HEAD", "--profile", "tiny"], "no such profile"), (["HEAD", "HEAD", "--budget", "3"], "budget"),
    (["HEAD", "HEAD", "no_such_suite"], "no such suite"), (["HEAD"], "Missing argument"),
])
def test_refusals_end_with_2(repository, litmus, words, said):
    code, _, err = litmus("ab", *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err


def test_a_project_without_git(project, litmus):
    code, _, err = litmus("ab", "HEAD", "HEAD")
    assert code == 2
    assert "no git repository" in err


def test_ctrl_c_leaves_nothing(repository):
    """While an arm hangs on both sides."""
    folder = repository / "suites" / "demo" / "hangs"
    folder.mkdir()
    (folder / "suite.py").write_text(SUITE)
    (folder / "card.yaml").write_text(CARD)
    environment = {**os.environ, "PYTHONPATH": str(Path(harness.__file__).parents[1]), "LITMUS_TEST_MARK": "ab-ctrl-c"}
    without_canary = "import harness.run.ab.canary as c; c.PAIRS = 0; from harness.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", without_canary, "ab", ".", ".", "hangs", "--all"], cwd=repository, env=environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )
    deadline = time.monotonic() + 60
    while not (repository / ".litmus" / "ab" / "began").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=30)
    assert process.returncode == 130, text
    assert "interrupted" in text and "Traceback" not in text
    listed = subprocess.run(["git", "-C", str(repository), "worktree", "list"], capture_output=True, text=True,
                            check=True).stdout
    assert len(listed.splitlines()) == 1
    assert not list((repository / ".litmus" / "ab").glob("base-*"))
    assert not list((repository / ".litmus" / "ab").glob("head-*"))
    assert not _marked("ab-ctrl-c")


def _marked(value):
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if f"LITMUS_TEST_MARK={value}".encode() in (entry / "environ").read_bytes():
                    found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found


def test_steps_are_about_one_a_second(capsys):
    now = [0.0]
    steps = PlainSteps(clock=lambda: now[0])
    for done in range(1, 31):
        now[0] += 0.1
        steps.step(done, 30, "cell")
    lines = capsys.readouterr().err.splitlines()
    assert 3 <= len(lines) <= 5
    assert lines[-1] == "[30/30] cell"
