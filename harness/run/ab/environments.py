"""What each revision asks for, installed: virtual environments below ``.litmus/ab/env``, kept for the next time."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from harness.errors import LitmusError
from harness.run.ab.worktree import Side

HARNESS = "litmus-harness"
_FOLDER = "env"
_STAMP = "stamp.json"
_DIGITS = 12
_KEPT_S = 14 * 86400.0
_PEERS = "peers"
_WITHOUT = "leave --install out: both sides then use the environment of this command"
_NAME = re.compile(r"[A-Za-z0-9._-]+")
Note = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What a revision asks for: ``required`` must be had, ``peers`` may be missing; both as pip reads them."""

    required: tuple[str, ...]
    peers: tuple[str, ...]
    constraints: str

    @property
    def key(self) -> str:
        """Equal for revisions that one environment serves."""
        parts = [platform.python_implementation(), platform.python_version(), *self.required, "", *self.peers,
                 self.constraints]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:_DIGITS]


@dataclass(frozen=True)
class Environment:
    """An interpreter, and the distributions it finds with their versions."""

    python: Path
    versions: Mapping[str, str]


def environments(sides: tuple[Side, Side], folder: Path, note: Note) -> tuple[Environment, Environment]:
    """The environment of each side; one and the same where both ask for the same.

    A side's ``pyproject.toml`` says what is installed (its dependencies, and its extra ``peers`` as far as it can be
    had), its ``constraints.txt`` in which versions; what this harness needs beyond that is added. Made in
    ``folder / "env"`` and kept: unused ones go after two weeks. Raises LitmusError where a requirement cannot be
    installed.
    """
    found: dict[str, Environment] = {}
    keys = []
    for side in sides:
        wanted = wanted_by(side.root)
        keys.append(wanted.key)
        if wanted.key not in found:
            found[wanted.key] = _environment(folder / _FOLDER / wanted.key, wanted, side, note)
    _forget(folder / _FOLDER, keep=set(keys))
    return found[keys[0]], found[keys[1]]


def wanted_by(root: Path) -> Wanted:
    """Read ``pyproject.toml`` and ``constraints.txt`` of the project at ``root``. Raises LitmusError."""
    path = root / "pyproject.toml"
    try:
        project: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")).get("project", {})
    except FileNotFoundError as error:
        raise LitmusError("this revision does not say what it needs", where=path, expected="a pyproject.toml",
                          next_step=_WITHOUT) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise LitmusError("this revision's requirements cannot be read", where=path, value=str(error),
                          expected="TOML", next_step=_WITHOUT) from error
    own = tuple(_texts(path, "dependencies", project.get("dependencies", [])))
    extras = project.get("optional-dependencies", {})
    peers = _texts(path, _PEERS, extras.get(_PEERS, []) if isinstance(extras, dict) else extras)
    names = {_name(text) for text in own}
    added = tuple(text for text in needed_by_harness() if _name(text) not in names)
    constraints = root / "constraints.txt"
    limits = constraints.read_text(encoding="utf-8") if constraints.is_file() else ""
    return Wanted(own + added, tuple(peers), limits)


def needed_by_harness() -> list[str]:
    """The requirements of the harness that runs, as its distribution lists them; none where it is not installed."""
    try:
        return [text for text in metadata.requires(HARNESS) or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return []


def differences(base: Environment, head: Environment) -> list[str]:
    """``torch 2.12.0 -> 2.13.0``, one for each distribution of which the sides have different versions."""
    names = sorted(base.versions.keys() | head.versions.keys())
    pairs = [(name, base.versions.get(name, "absent"), head.versions.get(name, "absent")) for name in names]
    return [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]


def _texts(path: Path, key: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise LitmusError("this revision's requirements cannot be read", where=path, key=key, value=value,
                          expected="a list of requirements", next_step=_WITHOUT)
    return value


def _name(requirement: str) -> str:
    match = _NAME.match(requirement.strip())
    return re.sub(r"[-_.]+", "-", match.group().lower()) if match else requirement


def _environment(place: Path, wanted: Wanted, side: Side, note: Note) -> Environment:
    """The one at ``place``, made where it is not whole: its stamp is written last."""
    stamp, python = place / _STAMP, place / "bin" / "python"
    if not stamp.is_file() or not python.exists():
        note(f"installing what {side.label} asks for (kept for the next time)")
        begin_s = time.monotonic()
        _make(place, wanted, side, note)
        versions = json.loads(_run([python, "-c", _LIST], "list the installed distributions", side))
        stamp.write_text(json.dumps(versions, indent=1, sort_keys=True), encoding="utf-8")
        note(f"installed {len(versions)} distributions in {time.monotonic() - begin_s:.0f} s")
    stamp.touch()
    return Environment(python, json.loads(stamp.read_text(encoding="utf-8")))


_LIST = """
import json
from importlib import metadata
print(json.dumps({item.metadata["Name"].lower(): item.version for item in metadata.distributions()}))
"""


def _make(place: Path, wanted: Wanted, side: Side, note: Note) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    _run([sys.executable, "-m", "venv", place], "make a virtual environment", side)
    constraints = place / "constraints.txt"
    constraints.write_text(wanted.constraints, encoding="utf-8")
    python = place / "bin" / "python"
    pip: list[str | Path] = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
                             "-c", constraints]
    # By its exact version, ahead of the rest: an open requirement would take a CUDA build of several gigabytes.
    exact = [line.strip() for line in wanted.constraints.splitlines() if line.startswith("torch==")]
    for requirements in (exact, wanted.required):
        if requirements:
            _run([*pip, *requirements], "install the requirements", side)
    for peer in wanted.peers:
        try:
            _run([*pip, peer], "install a peer", side)
        except LitmusError as error:
            note(f"{peer} cannot be had, so its arms are skipped: {error.value}")


def _run(command: Sequence[str | Path], what: str, side: Side) -> str:
    """What ``command`` prints. Raises LitmusError with its last words."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise LitmusError(f"cannot {what} of a revision", where=side.label, value=said[-1],
                          expected="requirements that pip can install here",
                          next_step=_WITHOUT)
    return done.stdout


def _forget(folder: Path, keep: set[str]) -> None:
    """Remove environments that are broken or have not been used for long."""
    for place in folder.iterdir():
        stamp = place / _STAMP
        if place.name not in keep and (not stamp.is_file() or stamp.stat().st_mtime < time.time() - _KEPT_S):
            shutil.rmtree(place, ignore_errors=True)
