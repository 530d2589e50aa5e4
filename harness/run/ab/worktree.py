"""Two revisions of the project side by side: git worktrees below ``.litmus/ab``, gone when they are done with."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness.errors import LitmusError
from harness.records.store import RESULTS

FOLDER = Path(".litmus") / "ab"
WORKING_TREE = (".", "WORKTREE")
_PARTS = ("suites", "reference")
_DIGITS = 12
# A hook of git, which may have called us, points these elsewhere.
_OTHER_REPOSITORY = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")
# Equal contents get an equal commit, whenever and by whom.
_NOBODY = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "litmus"), ("EMAIL", "litmus@localhost"), ("DATE", "2000-01-01T00:00:00Z"))
}


@dataclass(frozen=True)
class Side:
    """One of the two: ``role`` is ``base`` or ``head``, ``label`` names it to the user, ``root`` holds ``suites/``."""

    role: str
    label: str
    root: Path


@contextmanager
def two_sides(root: Path, base: str, head: str) -> Iterator[tuple[Side, Side]]:
    """Both revisions in worktrees of their own, removed at the end, whatever happens.

    ``.`` is the working tree with its changes, as it is now: later edits do not reach it. Neither the index nor any
    branch is touched. Leftovers of a run that was killed are removed first. Raises LitmusError where ``root`` is in no
    git repository, a revision does not exist, or another ``litmus ab`` is at work here.
    """
    top = _top(root)
    commits = [_commit(root, top, name, role) for role, name in (("BASE", base), ("HEAD", head))]
    folder = root / FOLDER
    with _alone(folder):
        _sweep(top, folder)
        try:
            sides = [_add(root, top, folder, role, name, commit)
                     for role, name, commit in zip(("base", "head"), (base, head), commits, strict=True)]
            yield sides[0], sides[1]
        finally:
            _sweep(top, folder)


def _top(root: Path) -> Path:
    try:
        return Path(_git(root, "rev-parse", "--show-toplevel"))
    except LitmusError as error:
        raise LitmusError("the project is in no git repository, so it has no revisions", where=root,
                          value=error.value, expected="a git checkout",
                          next_step="clone the project with git, or compare stored runs: litmus compare") from error


def _commit(root: Path, top: Path, name: str, role: str) -> str:
    if name in WORKING_TREE:
        return _snapshot(root, top)
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    except LitmusError as error:
        raise LitmusError("no such revision", where="the command line", key=role, value=name,
                          expected="a branch, tag or commit, or '.' for the working tree",
                          next_step="see: git log --oneline --all") from error


def _snapshot(root: Path, top: Path) -> str:
    """The working tree as a commit that no branch has, new files included; ignored files and results are left out."""
    inside = root.resolve().relative_to(top.resolve())
    ours = [(inside / name).as_posix() for name in (RESULTS, FOLDER.parts[0])]
    # What is ignored anyway may not be named: git takes that for a wish to add it.
    keep_out = [f":(exclude,top){name}" for name in ours if not _is_ignored(top, name)]
    with tempfile.TemporaryDirectory(prefix="litmus-") as place:
        index = Path(place) / "index"
        known = Path(_git(top, "rev-parse", "--git-path", "index"))
        if (top / known).is_file():
            shutil.copy2(top / known, index)  # its age tells git which files to look into
        setting = {**_NOBODY, "GIT_INDEX_FILE": str(index)}
        _git(top, "add", "--all", "--", ".", *keep_out, setting=setting)
        tree = _git(top, "write-tree", setting=setting)
        head = _git(top, "rev-parse", "--verify", "HEAD")
        if tree == _git(top, "rev-parse", f"{head}^{{tree}}"):
            return head
        return _git(top, "commit-tree", tree, "-p", head, "-m", "The working tree", setting=setting)


def _is_ignored(top: Path, name: str) -> bool:
    try:
        return bool(_git(top, "check-ignore", "--", name))
    except LitmusError:
        return False


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time: two would disturb each other's timing and remove each other's worktrees."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LitmusError("another litmus ab is at work in this project", where=folder,
                              expected="one at a time: two would disturb each other's timing",
                              next_step="wait until it has ended") from error
        yield


def _add(root: Path, top: Path, folder: Path, role: str, name: str, commit: str) -> Side:
    """Both sides' paths are equally long, so that not even the length of a file name differs between them."""
    place = folder.resolve() / f"{role}-{commit[:_DIGITS]}"
    _git(top, "worktree", "add", "--detach", "--force", str(place), commit)
    side = place / root.resolve().relative_to(top.resolve())
    if not (side / "suites").is_dir():
        raise LitmusError("this revision has no suites", where="the command line", key=role.upper(), value=name,
                          expected="a revision with a folder suites/", next_step="name a later one")
    _make_whole(side)
    (side / ".litmus").mkdir(exist_ok=True)
    (root / ".litmus" / "cache").mkdir(exist_ok=True)
    if not (side / ".litmus" / "cache").exists():
        (side / ".litmus" / "cache").symlink_to((root / ".litmus" / "cache").resolve())
    return Side(role, "working tree" if name in WORKING_TREE else f"{name} ({commit[:_DIGITS]})", side)


def _make_whole(side: Path) -> None:
    """What the side lacks is not taken from elsewhere, and files that are equal are as old whenever they are written.

    The name of the worktree holds the commit, so machine code that is kept by path, age and size stays right.
    """
    for name in _PARTS:
        (side / name).mkdir(exist_ok=True)
        (side / name / "__init__.py").touch()
        for path in (side / name).rglob("*.py"):
            os.utime(path, (0, 0))


def _sweep(top: Path, folder: Path) -> None:
    """Remove what is below ``folder``, and what git remembers of it."""
    listed = _git(top, "worktree", "list", "--porcelain").splitlines()
    known = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    for place in {*folder.resolve().glob("base-*"), *folder.resolve().glob("head-*")}:
        shutil.rmtree(place, ignore_errors=True)
    for place in known:
        if place.parent == folder.resolve():
            _git(top, "worktree", "remove", "--force", "--force", str(place))


def _git(place: Path, *words: str, setting: Mapping[str, str] | None = None) -> str:
    """What git prints. Raises LitmusError with its last words. A session of its own keeps Ctrl-C from tearing it."""
    command = ["git", "-C", str(place), "-c", "core.hooksPath=/dev/null", *words]
    inherited = {key: value for key, value in os.environ.items() if key not in _OTHER_REPOSITORY}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True,
                              env={**inherited, **(setting or {})})
    except OSError as error:
        raise LitmusError("git cannot be run", value=error.strerror, expected="git on the path",
                          next_step="install git") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise LitmusError("git refuses", where=f"git {' '.join(words[:2])}", value=said,
                          next_step="repair what it names, and try again")
    return done.stdout.strip()
