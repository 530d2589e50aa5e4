import dataclasses
import json

import pytest
import yaml

from harness.declare.suite import Estimate
from harness.errors import LitmusError
from harness.judge.verdict import judge_run
from harness.records.store import RunInfo, newest_verdicts, read_verdicts, write_records, write_run_info

CARD = {
    "paper": {"title": "T", "year": 2020}, "version": 1, "summary": "s",
    "experiments": {"trials": {"kind": "trial", "arms": ["a", "b"], "seeds": 5, "metrics": {"loss": {}}}},
    "claims": [
        {"id": "lower", "statement": "s", "experiment": "trials", "scale": {"toy": "5 seeds"}, "note": "as expected",
         "estimate": {"difference": "loss", "of": "a", "minus": "b"}, "supported_if": "< 0", "refuted_if": "> 0"},
    ],
}
OWN = {"id": "own", "statement": "s", "experiment": "trials", "estimate": {"custom": "mine"}, "supported_if": "> 1",
       "refuted_if": "< 1"}
NOISE = [0.0, 0.01, -0.01, 0.02, -0.02]


@pytest.fixture
def project(tmp_path, trial):
    """Write a project with cards by suite and one run over ``records``; returns (root, folder)."""

    def make(cards, records=None, **info):
        for name, card in cards.items():
            (tmp_path / "suites" / name).mkdir(parents=True)
            (tmp_path / "suites" / name / "card.yaml").write_text(yaml.safe_dump(card))
        folder = tmp_path / "results" / "box" / "run"
        write_records(folder, records if records is not None else losses(trial, "fam/slug"))
        states = {"fam/slug": {"version": 1, "code": "k"}}
        write_run_info(folder, RunInfo(run="run", started_at=1.0, profile="small", litmus="0", cards=states, **info))
        return tmp_path, folder

    return make


def losses(trial, suite, a=0.5, **changes):
    values = [(arm, seed, a + NOISE[seed] if arm == "a" else 1.0) for seed in range(5) for arm in "ab"]
    return [trial(arm, {"loss": loss}, seed=seed, suite=suite, **changes) for arm, seed, loss in values]


def no_suite(suite):
    raise AssertionError("no claim needs a function of the suite")


def test_a_run_is_judged_and_its_verdicts_are_written(project):
    root, folder = project({"fam/slug": CARD})
    verdicts = judge_run(folder, root, no_suite)
    assert [(item.suite, item.claim, item.verdict) for item in verdicts] == [("fam/slug", "lower", "supported")]
    row = read_verdicts(folder)[0]
    assert row == json.loads(json.dumps(verdicts[0].to_dict()))
    assert (row["scale"], row["note"]) == ({"toy": "5 seeds"}, "as expected")
    part = row["parts"][0]
    assert set(part) == {"id", "experiment", "point", "estimate", "refute_interval", "supported_if", "refuted_if",
                         "verdict", "reason", "cells"}
    assert set(part["estimate"]) == {"point", "low", "high", "level", "n", "unit", "method"} and len(part["cells"]) == 5
    assert newest_verdicts(root)["fam/slug", "lower"] == row


def test_suites_without_records_and_records_without_a_card_have_no_verdicts(project, trial):
    records = losses(trial, "fam/slug") + losses(trial, "litmus/canary") + losses(trial, "fam/gone")
    root, folder = project({"fam/slug": CARD, "fam/idle": CARD}, records)
    assert {item.suite for item in judge_run(folder, root, no_suite)} == {"fam/slug"}


def test_a_suite_whose_cells_were_all_left_out_still_has_verdicts(project):
    root, folder = project({"fam/slug": CARD}, [])
    assert [item.verdict for item in judge_run(folder, root, no_suite)] == ["not run"]


def test_a_card_of_another_version(project):
    root, folder = project({"fam/slug": {**CARD, "version": 2}})
    found = judge_run(folder, root, no_suite)[0]
    assert (found.verdict, found.reason) == ("not run", "records are of card version 1, the card is version 2")


def test_records_of_older_code_in_a_resumed_run_do_not_count(project, trial):
    old = [dataclasses.replace(record, cell=record.cell + "old")
           for record in losses(trial, "fam/slug", a=9.0, code="older", started_at=5.0)]
    root, folder = project({"fam/slug": CARD}, old + losses(trial, "fam/slug"))
    found = judge_run(folder, root, no_suite)[0]
    assert (found.verdict, found.parts[0].estimate.n) == ("supported", 5)


def test_the_suites_own_estimates_are_asked_for_by_suite(project):
    root, folder = project({"fam/slug": {**CARD, "claims": [OWN]}})
    asked = []

    def custom_of(suite):
        asked.append(suite)
        return {"mine": lambda records, level: Estimate(2, 2, 2, 5)}.__getitem__

    assert judge_run(folder, root, custom_of)[0].verdict == "supported"
    assert set(asked) == {"fam/slug"}


def test_a_suite_that_cannot_be_imported_loses_only_its_own_estimates(project):
    root, folder = project({"fam/slug": {**CARD, "claims": [OWN, *CARD["claims"]]}})

    def custom_of(suite):
        raise ImportError("no module named 'peer'")

    own, lower = judge_run(folder, root, custom_of)
    assert own.reason == "estimate 'mine' failed: ImportError: no module named 'peer'"
    assert lower.verdict == "supported"


def test_the_canary_and_the_machine_come_from_the_run(project, speed, trial):
    card = {**CARD, "experiments": {"timing": {"kind": "speed", "arms": ["a", "b"]}}, "claims": [
        {"id": "fast", "statement": "s", "experiment": "timing", "where": {"input_bytes": ">= llc"},
         "estimate": {"ratio": "time", "of": "a", "to": "b"}, "supported_if": "> 1.05", "refuted_if": "< 1"}]}
    records = [speed(arm, [time + index for index in range(24)], suite="fam/slug", input_bytes=64)
               for arm, time in (("a", 2e6), ("b", 1e6))]
    machine = {"caches": {"llc": 64}, "cores": 2, "memory_bytes": 1}
    root, folder = project({"fam/slug": card}, records, machine=machine, canary={"floor": 0.01, "alarm": False})
    assert judge_run(folder, root, no_suite)[0].verdict == "supported"
    info = RunInfo(run="run", started_at=1, profile="small", litmus="0", machine={"caches": {"llc": 65}})
    write_run_info(folder, info)
    assert judge_run(folder, root, no_suite)[0].reason == "no cell has input_bytes >= llc (65 bytes)"


def test_a_folder_without_records_is_refused(project):
    root, folder = project({"fam/slug": CARD})
    (folder / "records.parquet").unlink()
    with pytest.raises(LitmusError, match="no records here"):
        judge_run(folder, root, no_suite)
