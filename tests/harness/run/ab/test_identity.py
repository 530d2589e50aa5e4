"""Which cells are compared, and what is said without measuring."""

import pytest
import yaml

from harness.errors import LitmusError
from harness.plan.machine import this_machine
from harness.plan.plan import Request
from harness.run.ab.identity import arms_of_ours, match
from harness.run.ab.worktree import two_sides


@pytest.fixture
def matched(repository):
    """matched(*selectors, everything=False): first commit against the working tree; cells as (experiment, seed)."""
    base = repository.git("rev-parse", "HEAD")

    def run(*selectors, everything=False, profile="small"):
        with two_sides(repository.root, base, ".") as sides:
            found = match(*sides, Request(selectors, profile), this_machine(), everything)
            cells = [(pair.head.suite, pair.head.experiment, pair.head.seed) for pair in found.pairs]
            said = [(item.suite, item.experiment, item.arm, item.reason, item.gates) for item in found.settled]
        return cells, said, found

    return run


ALL_CELLS = [("x/y", "s", 0), ("x/y", "t", 0), ("x/y", "t", 1), ("x/y", "t", 2)]


def test_equal_cells_are_left_out_unless_all_are_wanted(matched):
    cells, said, found = matched()
    assert (cells, said, found.unchanged) == ([], [], 4)
    cells, said, found = matched(everything=True)
    assert (cells, said, found.unchanged) == (ALL_CELLS, [], 0)


def test_a_change_in_what_a_suite_imports_counts_and_a_comment_does_not(matched, repository):
    repository.write_suite("x/other", "from harness.declare.suite import Suite\nsuite = Suite(__file__)\n")
    repository.change("2.0", "2.5", "reference/numbers.py")
    cells, _, _ = matched("y")
    assert cells == ALL_CELLS
    repository.change("2.5, 1.0", "2.0, 1.0  # as before", "reference/numbers.py")
    assert matched("y")[0] == []


def test_limits_are_no_change(matched, repository):
    repository.change("timeout_s: 5", "timeout_s: 9", "suites/x/y/card.yaml")
    assert matched()[0] == []


def test_suites_points_and_arms_of_one_side(matched, repository):
    repository.write_suite("x/new")
    card = yaml.safe_load((repository.root / "suites/x/y/card.yaml").read_text())
    card["experiments"]["s"]["axes"]["n"] = [1, 2]
    card["experiments"]["t"]["arms"] = ["x", "z"]
    repository.write("suites/x/y/card.yaml", yaml.safe_dump(card))
    cells, said, _ = matched()
    assert ("x/y", "t", 0) in cells, "its arms changed"
    assert sorted(said) == sorted([
        ("x/new", "s", "*", "only_head", False), ("x/new", "t", "*", "only_head", False),
        ("x/y", "s", "*", "only_head", False), ("x/y", "t", "z", "only_head", False),
    ])


def test_more_seeds_are_no_new_question(matched, repository):
    repository.change("seeds: 3", "seeds: 5", "suites/x/y/card.yaml")
    assert matched(everything=True)[:2] == (ALL_CELLS, [])


def test_a_removed_suite(matched, repository):
    repository.git("rm", "-rq", "suites/x/y")
    repository.write_suite("x/new")
    said = {(suite, reason) for suite, _, _, reason, _ in matched()[1]}
    assert said == {("x/y", "only_base"), ("x/new", "only_head")}


def test_another_card_version_is_not_compared(matched, repository):
    repository.write_suite(version=2)
    repository.change("2.0", "2.5", "reference/numbers.py")
    cells, said, _ = matched()
    assert (cells, said) == ([], [("x/y", "*", "*", "card_version", False)])


def test_a_card_that_only_the_head_cannot_read_is_a_regression(matched, repository):
    repository.change("version: 1", "version: none", "suites/x/y/card.yaml")
    assert matched()[:2] == ([], [("x/y", "*", "*", "head_status", True)])


def test_a_card_that_the_base_cannot_read(repository):
    good = (repository.root / "suites/x/y/card.yaml").read_text()
    repository.change("version: 1", "version: none", "suites/x/y/card.yaml")
    repository.commit()
    repository.write("suites/x/y/card.yaml", good)
    repository.write_suite("x/new")
    with two_sides(repository.root, "HEAD", ".") as sides:
        found = match(*sides, Request(), this_machine(), False)
    assert [(item.suite, item.reason, item.gates) for item in found.settled if item.suite == "x/y"] == [
        ("x/y", "no_load", False)]
    assert {item.suite for item in found.settled} == {"x/y", "x/new"}


def test_selectors(matched, repository):
    assert matched("y:t", everything=True)[0] == ALL_CELLS[1:]
    assert matched("x/*:s[n=1]", everything=True)[0] == ALL_CELLS[:1]
    repository.write_suite("x/new")
    assert [item[:2] for item in matched("new")[1]] == [("x/new", "s"), ("x/new", "t")]


@pytest.mark.parametrize("selector", ["nothing", "y:nothing", "y:s[k=1]", "y:s[n=7]", "y:["])
def test_a_selector_that_takes_nothing_is_refused(matched, selector):
    with pytest.raises(LitmusError) as refused:
        matched(selector)
    assert refused.value.exit_code == 2
    assert refused.value.next_step


def test_peers_are_not_ours(matched):
    found = matched(everything=True)[2]
    assert arms_of_ours(found.pairs[0], found.cards["x/y"]) == ["a", "b", "copy"]
