import sys

import pytest

from harness.cli.app import main
from harness.cli.skeleton import skeleton
from harness.records.store import RunInfo, write_run_info, write_verdicts

SUITE = "demo/pairwise"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with one suite, the skeleton that ``litmus new`` writes."""
    for path, text in skeleton("demo", "pairwise").items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    for package in ("suites", "reference", "reference/methods", "reference/methods/demo"):
        (tmp_path / package / "__init__.py").write_text("")
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def litmus(capsys, monkeypatch):
    """Run a command as the console script does; gives (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["litmus", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return call


def a_part(verdict, **changes):
    part = {
        "id": "lower_error",
        "experiment": "accuracy",
        "point": {"n": 4096},
        "verdict": verdict,
        "reason": "because",
        "estimate": {
            "point": 0.125,
            "low": 0.1,
            "high": 0.15,
            "level": 0.95,
            "n": 8,
            "unit": "seed",
            "method": "bootstrap",
        },
        "refute_interval": {"low": 0.09, "high": 0.16, "level": 0.95},
        "supported_if": "< 0.25",
        "refuted_if": "> 0.5",
        "cells": ["00aa", "00bb"],
    }
    return {**part, **changes}


@pytest.fixture
def stored_run(project):
    """Write a run with verdict words for the two claims; gives its folder."""

    def store(name, lower_error, no_slower="not run", started_at=1000.0, **info):
        folder = project / "results" / "test-machine" / name
        write_run_info(folder, RunInfo(run=name, started_at=started_at, profile="small", litmus="0.1.0", **info))
        rows = [
            {
                "suite": SUITE,
                "claim": "lower_error",
                "verdict": lower_error,
                "reason": "the whole interval",
                "scale": {},
                "note": "a note",
                "parts": [a_part("supported"), a_part(lower_error, point={"n": 65536}, cells=["00cc"])],
            },
            {
                "suite": SUITE,
                "claim": "no_slower",
                "verdict": no_slower,
                "reason": "no cell ran",
                "scale": {},
                "note": None,
                "parts": [a_part(no_slower, id="no_slower", estimate=None, refute_interval=None, cells=[])],
            },
        ]
        write_verdicts(folder, rows)
        return folder

    return store
