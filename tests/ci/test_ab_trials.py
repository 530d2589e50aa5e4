"""ci/ab_trials.py: its plants still have their places, and it counts what it says."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trials():
    spec = importlib.util.spec_from_file_location("ci_ab_trials", ROOT / "ci" / "ab_trials.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["slower", "worse"])
def test_a_plant_has_its_place_and_stays_python(trials, name):
    plant = trials.more_work(5.0) if name == "slower" else trials.wrong_constant()
    text = (ROOT / plant.file).read_text()
    assert text.count(plant.old) == 1
    ast.parse(text.replace(plant.old, plant.new))


def an_outcome(*items, **changes):
    found = [{"label": "k", "arm": "two_pass", "gates": True, "verdict": verdict, "change": change}
             for verdict, change in items]
    return {"comparisons": found, "exit_code": 0, "canary_failed": False, "seconds": 1.0, **changes}


@pytest.mark.parametrize(("items", "code"), [
    ([("same", 0.0)] * 10, 0),
    ([("same", 0.0)] * 9 + [("slower", 0.02)], 1),
    ([("same", 0.0)] * 9 + [("faster", -0.02)], 1),
    ([("incomparable", None)] * 3, 1),
])
def test_false_alarms_are_counted(trials, monkeypatch, capsys, items, code):
    monkeypatch.setattr(trials, "compare", lambda *words: an_outcome(*items))
    assert trials.main(["equal", "2"]) == code
    assert "changes said of equal code" in capsys.readouterr().out


@pytest.mark.parametrize(("verdict", "code"), [("slower", 0), ("same", 1), ("faster", 1)])
def test_a_planted_slowdown_is_committed_in_a_clone(trials, monkeypatch, tmp_path, verdict, code):
    """The checkout is one file; the comparison is invented."""
    plant = trials.more_work(5.0)
    for name in (plant.file, ".gitignore"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"def kernel(name):\n    if name:\n{plant.old} 1)\n")
    for words in (["init", "-q"], ["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t", "commit", "-qm", "m"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    seen = []

    def compare(root, base, head, *selectors):
        shown = subprocess.run(["git", "-C", str(root), "diff", base, head], capture_output=True, text=True, check=True)
        seen.append((shown.stdout, selectors))
        return an_outcome((verdict, 0.05))

    monkeypatch.setattr(trials, "CHECKOUT", tmp_path)
    monkeypatch.setattr(trials, "compare", compare)
    assert trials.main(["slower", "5", "2"]) == code
    assert len(seen) == 2
    assert "+        again = round(5.0 / 100 * rows)" in seen[0][0]
    assert seen[0][1] == ("two_pass_softmax:rows",)


def test_what_is_asked_for(trials):
    assert [trials.needed_rate(percent) for percent in (1.0, 3.0, 4.0, 5.0, 9.0)] == [0.0, 0.5, 0.5, 0.95, 0.95]


@pytest.mark.parametrize("words", [[], ["equal"], ["slower", "5"], ["nothing", "1"], ["equal", "0"], ["equal", "x"]])
def test_anything_else_gets_the_usage(trials, capsys, words):
    assert trials.main(words) == 2
    assert "ci/ab_trials.py equal 20" in capsys.readouterr().out


def test_a_refusal_is_shown(trials, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(trials, "CHECKOUT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(trials.subprocess, "run", lambda *words, **more: subprocess.CompletedProcess(
        words, 2, stdout="", stderr="litmus: no such revision\n"))
    assert trials.main(["equal", "1"]) == 2
    assert "no such revision" in capfd.readouterr().err


def test_outcomes_are_read_as_json(trials, monkeypatch, tmp_path):
    monkeypatch.setattr(trials.subprocess, "run", lambda *words, **more: subprocess.CompletedProcess(
        words, 1, stdout=json.dumps(an_outcome(("worse", None))), stderr=""))
    assert trials.changed(trials.compare(tmp_path, "HEAD", "HEAD")) == ["k: worse"]
