"""Runs of several machines side by side: what the table says, and which mixtures are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.cli import merge as command
from harness.errors import LitmusError
from harness.judge.side_by_side import estimate_text, side_by_side
from harness.records.store import Run, find_runs, read_verdicts, write_verdicts
from harness.report import site

OTHER = {"key": "other-64c-512g-fedcba", "cpu": "Other CPU", "cores": 64}
SUITE = "training/lowrank"


@pytest.fixture
def two(root, another_run):
    """two(**changes): the project's run and one of another machine, which differs by ``changes``."""

    def make(**changes) -> list[Run]:
        another_run(root, "20260103-000000-small", 1767400000.0, **{"machine": OTHER, **changes})
        return find_runs(root)

    return make


def changed(folder: Path, claim: str, verdict: str) -> None:
    write_verdicts(folder, [{**row, "verdict": verdict} if row["claim"] == claim else row
                            for row in read_verdicts(folder)])


def test_each_machine_has_a_column_and_its_own_verdict(two, root):
    runs = two()
    other = next(run for run in runs if run.info.machine["key"] == OTHER["key"])
    changed(other.folder, "memory", "inconclusive")
    table = side_by_side(runs)
    assert table.machines == tuple(sorted(["test-2c-8g-abcdef", OTHER["key"]]))
    assert len(table.shared) == len(table.rows) > 3
    (row,) = [row for row in table.differing if row.claim == "memory"]
    assert row.words[table.machines.index(OTHER["key"])] == "inconclusive"
    assert {row.claim for row in table.differing} == {"memory"}


def test_a_suite_of_one_machine_is_no_disagreement(two):
    runs = two(cards={})
    table = side_by_side(runs)
    assert table.machines == ("test-2c-8g-abcdef",)
    assert not table.shared and table.rows


def test_the_newest_run_of_a_machine_speaks_and_smoke_runs_last(root, another_run):
    another_run(root, "20260104-000000-small", 1767500000.0)
    another_run(root, "20260105-000000-smoke", 1767600000.0, profile="smoke")
    table = side_by_side(find_runs(root))
    assert {run.id for run in table.sources.values()} == {"20260104-000000-small"}


@pytest.mark.parametrize(("changes", "message"), [
    ({"profile": "full"}, f"{SUITE} has profile"),
    ({"cards": {SUITE: {"version": 3, "code": "0" * 16}}}, f"{SUITE} has card version"),
    ({"cards": {SUITE: {"version": 2, "code": "0" * 16}}}, f"{SUITE} has code"),
])
def test_what_was_run_in_another_way_is_refused(two, changes, message):
    with pytest.raises(LitmusError, match="cannot stand side by side") as refusal:
        side_by_side(two(**changes))
    assert message in str(refusal.value.value)
    assert OTHER["key"] in str(refusal.value.value)


def test_other_data_is_refused(two, monkeypatch):
    runs = two()
    load = Run.records

    def records(self, columns=None, kind=None):
        table = load(self, columns, kind)
        return table.assign(data=f"text={self.id}") if "data" in table else table

    monkeypatch.setattr(Run, "records", records)
    with pytest.raises(LitmusError, match="cannot stand") as refusal:
        side_by_side(runs)
    assert "other data" in str(refusal.value.value)


@pytest.mark.parametrize(("changes", "message"), [
    ({"finished_at": None}, "not finished"), ({"machine": {}}, "on which machine")])
def test_a_run_that_is_not_whole_is_refused(two, changes, message):
    with pytest.raises(LitmusError, match=message):
        side_by_side(two(**changes))


def test_other_libraries_are_named(two):
    table = side_by_side(two(software={"python": "3.11.2", "torch": "2.12.0"}))
    assert table.notes == ("torch: 2.12.0, 2.13.0",)


def test_the_page_links_each_verdict_to_its_own_run(two, root, tmp_path):
    table = side_by_side(two())
    out = tmp_path / "merged"
    site.build(root, table.runs, out, table)
    page = (out / "machines.html").read_text()
    assert OTHER["key"] in page and "test-2c-8g-abcdef" in page
    assert f'href="papers/{SUITE}.html#memory"' in page
    assert f'href="papers/{SUITE}@test-2c-8g-abcdef@20260102-030405-small.html#memory"' in page
    assert 'href="machines.html"' in (out / "index.html").read_text()
    site.build(root, find_runs(root), out)
    assert not (out / "machines.html").exists()
    assert "machines.html" not in (out / "index.html").read_text()


def test_folders_with_runs_in_them_are_taken(two, root, capsys):
    two()
    command.merge([root / "results"], as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert OTHER["key"] in said["machines"]
    assert all(row["same"] for row in said["claims"])
    with pytest.raises(LitmusError, match="no run here"):
        command.merge([root / "suites"], as_json=True)


def test_an_estimate_is_shown_for_one_part_only():
    estimate = {"point": 1.25, "low": None, "high": 1.5}
    assert estimate_text({"parts": [{"estimate": estimate}]}) == "1.25 […, 1.5]"
    assert estimate_text({"parts": [{"estimate": estimate}] * 2}) == ""
    assert estimate_text({"parts": [{"estimate": None}]}) == estimate_text(None) == ""
