"""Small git repositories with a toy suite, and one engine; clocks are invented, so no test depends on time."""

from __future__ import annotations

import os
import subprocess
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from harness.judge.comparison import Comparison, Outcome
from harness.run.ab.canary import Canary
from harness.run.ab.engines import new_engine
from harness.run.ab.session import AbOptions, compare_revisions
from harness.run.engine.local import LocalEngine

MARK = "LITMUS_TEST_MARK"
SUITE = '''
import ctypes, os, time
import numpy as np
from harness.declare.suite import Arm, Problem, SkipArm, Suite
from harness.run.measure.rounds import HostTimer
from reference.numbers import COST, FACTOR, VALUE

suite = Suite(__file__)
# An invented clock: a call takes as long as the table says.
HostTimer.sample = lambda self, bench, calls, start, state: round(calls * COST.get(bench.name, 1e5))


def double(x, out):
    np.multiply(x, FACTOR, out=out)


def other(x, out):
    np.multiply(x, 2.0, out=out)


@suite.speed("s")
def s(point, rng, device):
    arms = {"a": Arm(run=double, bytes_moved=1, flops=1), "b": Arm(run=other, bytes_moved=1, flops=1),
            "peer": Arm(run=other, bytes_moved=1, flops=1),
            "copy": Arm(run=lambda x, out: None, bytes_moved=1, flops=1, checked=False)}
    return Problem(inputs=lambda rng: (rng.standard_normal(64),), buffers=lambda x: (np.empty_like(x),),
                   truth=lambda x: 2.0 * x, arms=arms, input_bytes=512, tolerance=1e-3)


@suite.trial("t")
def t(arm, point, seed, device):
    return {"m": VALUE + 0.001 * seed, "curve": [1.0, VALUE]}
'''
NUMBERS = "COST, FACTOR, VALUE = {'a': 1e5, 'b': 1e5}, 2.0, 1.0\n"


def card(**changes: object) -> dict[str, object]:
    return {
        "paper": {"title": "A test", "year": 2024}, "version": 1, "summary": "Nothing real.",
        "experiments": {
            "s": {"kind": "speed", "arms": ["a", "b", "peer", "copy"], "axes": {"n": [1]}, "timeout_s": 5,
                  "fast_path": {"op": "toy", "peers": ["peer"]}, "memory_gib": 2},
            "t": {"kind": "trial", "arms": ["x"], "seeds": 3, "timeout_s": 5,
                  "metrics": {"m": {"better": "lower"}, "curve": {"better": "lower", "series": True}}},
        },
        "claims": [{"id": "c", "statement": "s", "experiment": "t", "supported_if": "> 0", "refuted_if": "< 0",
                    "estimate": {"mean": "m", "of": "x"}}],
        **changes,
    }


@dataclass
class Repository:
    """A git repository whose project lies at ``root``."""

    top: Path
    inside: str = "."
    said: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.top / self.inside

    def git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", str(self.top), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def write_suite(self, name: str = "x/y", code: str = SUITE, **changes: object) -> None:
        self.write(f"suites/{name}/suite.py", code)
        self.write(f"suites/{name}/card.yaml", yaml.safe_dump(card(**changes)))

    def change(self, old: str, new: str, name: str = "suites/x/y/suite.py") -> None:
        text = (self.root / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def commit(self) -> str:
        self.git("add", "--all")
        self.git("-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "--allow-empty", "-m", "m")
        return self.git("rev-parse", "HEAD")

    def worktrees(self) -> list[str]:
        lines = self.git("worktree", "list", "--porcelain").splitlines()
        return [line for line in lines if line.startswith("worktree ")]


def new_repository(top: Path, inside: str = ".") -> Repository:
    """With one commit: the toy suite ``x/y``."""
    top.mkdir(parents=True, exist_ok=True)
    repository = Repository(top, inside)
    repository.git("init", "-q")
    repository.write(".gitignore", ".litmus/\n__pycache__/\nignored.txt\n")
    repository.write("reference/__init__.py", "")
    repository.write("reference/numbers.py", NUMBERS)
    repository.write_suite()
    repository.commit()
    return repository


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return new_repository(tmp_path / "project")


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[..., Repository]:
    """make_repository(inside): the project in a folder of the repository."""
    return lambda inside: new_repository(tmp_path / "project", inside)


@pytest.fixture(scope="session")
def mark() -> Iterator[str]:
    """A value in the environment of every process that these tests start."""
    value = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, value)
        yield value


@pytest.fixture
def marked(mark: str) -> Callable[[], set[int]]:
    """marked(): the living processes that the tests started."""

    def look() -> set[int]:
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    inside = f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
                    zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
                except OSError:
                    continue
                if inside and not zombie:
                    found.add(int(entry.name))
        return found

    return look


@pytest.fixture
def nothing_left(marked: Callable[[], set[int]], engine: LocalEngine) -> Iterator[None]:
    """At the end of the test, no process is left that was not there."""
    engine.ready()
    before = marked()
    yield
    deadline = time.monotonic() + 5
    while marked() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not marked() - before


@pytest.fixture(scope="session")
def engine(mark: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalEngine]:
    with new_engine(tmp_path_factory.mktemp("ab"), slots=2) as engine:
        yield engine


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)

    def step(self, done: int, total: int, text: str) -> None:
        self.lines.append(f"[{done}/{total}] {text}")


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def no_canary(monkeypatch: pytest.MonkeyPatch) -> None:
    """The canary's clock is real: it has tests of its own."""
    monkeypatch.setattr(Canary, "sing", lambda self: None)
    monkeypatch.setattr(Canary, "alarm", lambda self: None)


@pytest.fixture
def compare(engine: LocalEngine, no_canary: None) -> Callable[..., Outcome]:
    """compare(repository, base, head, *selectors, **options): the outcome; ``repository.said`` what was told."""

    def run(repository: Repository, base: str, head: str, *selectors: str, **options: object) -> Outcome:
        told = Told()
        outcome = compare_revisions(repository.root, base, head, AbOptions(selectors, **options), told, engine)
        repository.said = told.lines
        assert len(repository.worktrees()) == 1
        return outcome

    return run


@pytest.fixture
def words() -> Callable[[Outcome], dict[str, tuple[str, str]]]:
    """words(outcome): (verdict, reason) by ``suite:experiment arm metric``."""

    def name(item: Comparison) -> str:
        return f"{item.suite}:{item.experiment} {item.arm} {item.metric}"

    return lambda outcome: {name(item): (item.verdict, item.reason) for item in outcome.comparisons}
