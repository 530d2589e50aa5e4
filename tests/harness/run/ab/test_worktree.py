"""Two revisions side by side, and nothing left of them."""

import subprocess

import pytest

from harness.errors import LitmusError
from harness.run.ab.worktree import FOLDER, two_sides

NUMBERS = "reference/numbers.py"


def left(repository):
    return [path.name for path in (repository.root / FOLDER).iterdir() if path.name != "lock"]


def test_each_side_holds_its_own_files_and_goes_away(repository):
    base = repository.git("rev-parse", "HEAD")
    repository.write(NUMBERS, "NEW = 1\n")
    repository.commit()
    with two_sides(repository.root, base, "HEAD") as (one, two):
        assert "FACTOR" in (one.root / NUMBERS).read_text()
        assert (two.root / NUMBERS).read_text() == "NEW = 1\n"
        assert (one.role, two.role) == ("base", "head")
        assert base[:12] in one.label
        assert len(str(one.root)) == len(str(two.root)), "a longer name is a difference, too"
    assert not one.root.exists() and not two.root.exists()
    assert not left(repository)
    assert len(repository.worktrees()) == 1


def test_they_go_away_after_an_error(repository):
    with pytest.raises(RuntimeError), two_sides(repository.root, "HEAD", "HEAD"):
        raise RuntimeError
    assert not left(repository)
    assert len(repository.worktrees()) == 1


def test_leftovers_of_a_killed_run_are_removed(repository):
    place = repository.root / FOLDER / "base-000000000000"
    repository.git("worktree", "add", "--detach", str(place), "HEAD")
    (repository.root / FOLDER / "head-111111111111").mkdir()
    with two_sides(repository.root, "HEAD", "HEAD"):
        assert not place.exists()
        assert len(repository.worktrees()) == 3
    assert not left(repository)
    assert len(repository.worktrees()) == 1


def test_other_worktrees_stay(repository, tmp_path):
    repository.git("worktree", "add", "--detach", str(tmp_path / "mine"), "HEAD")
    with two_sides(repository.root, "HEAD", "HEAD"):
        pass
    assert len(repository.worktrees()) == 2
    assert (tmp_path / "mine" / NUMBERS).exists()


@pytest.mark.parametrize("name", [".", "WORKTREE"])
def test_the_working_tree_comes_with_its_changes(repository, name):
    repository.write(NUMBERS, "CHANGED = 1\n")
    repository.write("suites/new/one/suite.py", "NEW = 1\n")
    repository.write("ignored.txt", "no\n")
    repository.write("results/machine/run.json", "{}")
    repository.git("add", NUMBERS)
    (repository.root / "suites/x/y/card.yaml").unlink()
    before = repository.git("status", "--porcelain"), repository.git("rev-parse", "HEAD")
    with two_sides(repository.root, "HEAD", name) as (base, head):
        assert "FACTOR" in (base.root / NUMBERS).read_text()
        assert (head.root / NUMBERS).read_text() == "CHANGED = 1\n"
        assert (head.root / "suites/new/one/suite.py").exists()
        assert not (head.root / "suites/x/y/card.yaml").exists()
        assert not (head.root / "ignored.txt").exists()
        assert not (head.root / "results").exists()
        assert head.label == "working tree"
    assert (repository.git("status", "--porcelain"), repository.git("rev-parse", "HEAD")) == before


def test_a_clean_working_tree_is_its_commit(repository):
    with two_sides(repository.root, "HEAD", ".") as (base, head):
        assert base.root.name.split("-")[1] == head.root.name.split("-")[1]


def test_equal_changes_have_equal_names(repository):
    repository.write(NUMBERS, "CHANGED = 1\n")
    names = []
    for _ in range(2):
        with two_sides(repository.root, "HEAD", ".") as (_, head):
            names.append(head.root.name)
    assert names[0] == names[1]


def test_a_project_inside_a_repository(make_repository):
    repository = make_repository("deep/inside")
    repository.write(NUMBERS, "CHANGED = 1\n")
    with two_sides(repository.root, "HEAD", ".") as (base, head):
        assert "FACTOR" in (base.root / NUMBERS).read_text()
        assert (head.root / NUMBERS).read_text() == "CHANGED = 1\n"
    assert not left(repository)


@pytest.mark.parametrize("name", ["no-such-branch", "", "--help", "HEAD..HEAD", "HEAD:suites", "HEAD; true", "a b"])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_no_revision_is_refused(repository, name, place):
    names = ["HEAD", "HEAD"]
    names[place] = name
    with pytest.raises(LitmusError, match="no such revision") as refused, two_sides(repository.root, *names):
        pass
    assert refused.value.key == ("BASE", "HEAD")[place]
    assert refused.value.exit_code == 2


def test_a_project_without_git_is_refused(tmp_path):
    (tmp_path / "suites").mkdir()
    with pytest.raises(LitmusError, match="no git repository"), two_sides(tmp_path, "HEAD", "HEAD"):
        pass


def test_a_revision_without_suites_is_refused(repository):
    full = repository.git("rev-parse", "HEAD")
    repository.git("rm", "-rq", "suites")
    repository.commit()
    with pytest.raises(LitmusError, match="no suites"), two_sides(repository.root, full, "HEAD"):
        pass
    assert not left(repository)


def test_one_at_a_time(repository):
    with two_sides(repository.root, "HEAD", "HEAD") as (base, _):
        with pytest.raises(LitmusError, match="another litmus ab"), two_sides(repository.root, "HEAD", "HEAD"):
            pass
        assert base.root.exists()


def test_hooks_do_not_run(repository):
    hook = repository.root / ".git" / "hooks" / "post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\ntouch hooked\n")
    hook.chmod(0o755)
    with two_sides(repository.root, "HEAD", "HEAD") as (base, _):
        assert not (base.root / "hooked").exists()


def test_a_repository_that_is_broken_says_so(repository):
    (repository.root / ".git" / "HEAD").write_text("nonsense")
    with pytest.raises(LitmusError) as refused, two_sides(repository.root, "HEAD", "HEAD"):
        pass
    assert refused.value.value
    assert subprocess.run(["git", "-C", str(repository.top), "status"], capture_output=True, check=False).returncode
