"""Own environments for both sides, from wheels that the tests write: nothing is downloaded."""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from harness.errors import LitmusError
from harness.run.ab import environments as module
from harness.run.ab.engines import TwoEngines, new_engine
from harness.run.ab.environments import Environment, differences, environments, wanted_by
from harness.run.ab.session import AbOptions, compare_revisions
from harness.run.ab.worktree import Side

SUITE = """
import toy
from harness.declare.suite import Suite

suite = Suite(__file__)


@suite.trial("t")
def t(arm, point, seed, device):
    return {"m": toy.VALUE + 0.001 * seed}


@suite.oracle
def sure():
    assert toy.VALUE > 0
"""
CARD = {
    "experiments": {"t": {"kind": "trial", "arms": ["x"], "seeds": 3, "timeout_s": 20,
                          "metrics": {"m": {"better": "lower"}}}},
}


@pytest.fixture
def toy_wheel(tmp_path):
    """toy_wheel(version): ``toy`` whose VALUE is the version; it brings this environment's libraries along."""
    libraries = Path(np.__file__).resolve().parents[1]

    def write(version: int) -> Path:
        path = tmp_path / f"toy-{version}-py3-none-any.whl"
        info = f"toy-{version}.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr("toy.py", f"VALUE = {version}.0\n")
            wheel.writestr("libraries.pth", f"{libraries}\n")
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy\nVersion: {version}\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
        return path

    return write


@pytest.fixture
def asking(repository, toy_wheel, monkeypatch):
    """asking(version): the repository's next commit asks for that version of ``toy``, and the harness for nothing."""
    monkeypatch.setattr(module, "needed_by_harness", list)

    def commit(version: int, **extras: list[str]) -> str:
        lines = [f'{name} = {json.dumps(value)}' for name, value in extras.items()]
        repository.write("pyproject.toml", "\n".join([
            "[project]", 'name = "p"', 'version = "1"', f'dependencies = ["toy @ {toy_wheel(version).as_uri()}"]',
            "[project.optional-dependencies]", *lines]) + "\n")
        repository.write_suite(code=SUITE, **CARD)
        return repository.commit()

    return commit


def test_each_side_has_its_own_library_and_the_change_is_found(repository, asking, words, no_canary, told):
    base, head = asking(1), asking(2)
    outcome = compare_revisions(repository.root, base, head, AbOptions(("y:t",), install=True), told)
    assert words(outcome) == {"x/y:t x m": ("worse", "beyond_zone")}
    assert outcome.comparisons[0].change == pytest.approx(1.0)
    assert outcome.notes == ("each side in its own environment: toy 1 -> 2",)
    assert sum("installing what" in line for line in told.lines) == 2
    assert len(repository.worktrees()) == 1
    again = compare_revisions(repository.root, base, base, AbOptions(("y:t",), everything=True, install=True), told)
    assert words(again) == {"x/y:t x m": ("same", "identical")}
    assert again.notes == ()
    assert sum("installing what" in line for line in told.lines) == 2, "the environment is kept"


def test_a_requirement_that_cannot_be_had_is_refused_and_leaves_nothing(repository, asking, told):
    asking(1)
    text = (repository.root / "pyproject.toml").read_text().replace("toy-1-", "gone-1-")
    repository.write("pyproject.toml", text)
    with pytest.raises(LitmusError, match="cannot install the requirements") as refused:
        compare_revisions(repository.root, "HEAD", ".", AbOptions(install=True), told)
    assert refused.value.where == "working tree"
    assert "--install" in (refused.value.next_step or "")
    assert len(repository.worktrees()) == 1


def test_a_peer_that_cannot_be_had_is_said_and_left_out(tmp_path, asking, repository, told):
    asking(1, peers=[f"nowhere @ {(tmp_path / 'nowhere-1-py3-none-any.whl').as_uri()}"])
    side = Side("base", "it", repository.root)
    one, two = environments((side, side), tmp_path / "ab", told.note)
    assert one == two
    assert one.versions["toy"] == "1"
    assert any("nowhere" in line and "skipped" in line for line in told.lines)


def test_a_half_made_environment_is_made_again_and_old_ones_go(tmp_path, asking, repository, told):
    asking(1)
    side = Side("base", "it", repository.root)
    place = tmp_path / "ab" / "env" / wanted_by(repository.root).key
    old = tmp_path / "ab" / "env" / "unstamped"
    for folder in (place, old):
        (folder / "bin").mkdir(parents=True)
    found, _ = environments((side, side), tmp_path / "ab", told.note)
    assert found.python.parent.parent == place
    assert found.versions["toy"] == "1"
    assert not old.exists()


@pytest.mark.parametrize(("text", "problem"), [
    ("[project", "cannot be read"),
    ("[project]\ndependencies = 3", "cannot be read"),
    ("[project]\n[project.optional-dependencies]\npeers = [1]", "cannot be read"),
    (None, "does not say"),
])
def test_requirements_that_cannot_be_read(tmp_path, text, problem):
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(LitmusError, match=problem) as refused:
        wanted_by(tmp_path)
    assert refused.value.where == tmp_path / "pyproject.toml"


def test_what_the_harness_needs_is_added_once(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "needed_by_harness", lambda: ["Num_Py>=2", "psutil>=6"])
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["num-py<3"]\n')
    (tmp_path / "constraints.txt").write_text("psutil==7\n")
    wanted = wanted_by(tmp_path)
    assert wanted.required == ("num-py<3", "psutil>=6")
    (tmp_path / "constraints.txt").write_text("psutil==7.1\n")
    assert wanted_by(tmp_path).key != wanted.key


def test_the_harness_lists_its_own_requirements_without_extras():
    needed = module.needed_by_harness()
    assert any(text.startswith("numpy") for text in needed)
    assert not any("bitsandbytes" in text for text in needed)


def test_differences_name_both_versions():
    base = Environment(Path("a"), {"torch": "2.12", "numpy": "2.4", "gone": "1"})
    head = Environment(Path("b"), {"torch": "2.13", "numpy": "2.4"})
    assert differences(base, head) == ["gone 1 -> absent", "torch 2.12 -> 2.13"]


def test_two_engines_send_a_job_to_its_own_side(tmp_path):
    python = Path(sys.executable)
    engines = {tmp_path / name: new_engine(tmp_path / "ab", 2, python=python) for name in ("base", "head")}
    with TwoEngines(engines) as both:
        assert both.slots == 2
        both.warm()
        both.ready()
