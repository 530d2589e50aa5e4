"""Oracles that disagree, crash or skip, before a run; and verdicts that are told while it goes on."""

from __future__ import annotations

import pytest

from harness.plan.plan import Request
from harness.records.store import load_records
from harness.run.oracles import ask
from harness.run.progress import Silent
from harness.run.session import RunOptions, run

TRIAL = """
    @suite.trial("t")
    def t(arm, point, seed, device):
        suite.uses_data("toy", "d1")
        return {"m": 1.0 + seed}
"""
ORACLES = {
    "agrees": "assert 1 + 1 == 2",
    "disagrees": "assert 1 + 1 == 3, 'sums are off'",
    "raises": "raise KeyError('lost')",
    "dies": "os.kill(os.getpid(), signal.SIGSEGV)",
    "absent": "raise SkipArm('peer not installed')",
}


def suite_with(*names):
    return TRIAL + "".join(f"""
    @suite.oracle
    def {name}():
        {ORACLES[name]}
""" for name in names)


@pytest.mark.parametrize("name, text", [
    ("disagrees", "sums are off"), ("raises", "lost"), ("dies", "SIGSEGV"),
])
def test_an_oracle_that_disagrees_or_breaks_is_named(make_suite, engine, name, text):
    answers = ask(engine, make_suite(suite_with("agrees", name)).root, "x/y")
    assert answers.agreed == ["agrees"]
    assert name in answers.fault and text in answers.fault


def test_a_skipped_oracle_is_no_fault(make_suite, engine):
    answers = ask(engine, make_suite(suite_with("agrees", "absent")).root, "x/y")
    assert answers.fault is None
    assert answers.skipped == {"absent": "peer not installed"}


def test_a_suite_whose_oracle_disagrees_is_wrong_and_never_run(make_suite, tmp_path, engine):
    body = suite_with("disagrees").replace("return", "Path('/dev/null/never').touch(); return")
    project = make_suite(body, seeds=5)
    result = run(project.root, Request(), RunOptions(out=tmp_path / "out"), Silent(), engine)
    records = load_records(tmp_path / "out")
    assert set(records["status"]) == {"wrong"}
    assert records["reason"].str.contains("sums are off").all()
    assert [row["verdict"] for row in result.verdicts] == ["not run"]


class Told(Silent):
    def __init__(self):
        self.events = []

    def finished(self, cell, seconds):
        self.events.append("cell")

    def judged(self, verdict):
        self.events.append(verdict["verdict"])


def test_a_suite_is_judged_when_its_last_cell_is_done_and_again_at_the_end(make_suite, tmp_path, engine):
    project = make_suite(suite_with("agrees"), seeds=5)
    told = Told()
    run(project.root, Request(), RunOptions(out=tmp_path / "out"), told, engine)
    assert told.events == ["cell"] * 5 + ["supported"] * 2
    assert set(load_records(tmp_path / "out", ["data"])["data"]) == {"toy=d1"}
