import pytest

from harness.declare.seeds import TUNING_OFFSET, seed_for
from harness.declare.suite import Suite
from harness.declare.tuned import load_tuned
from harness.errors import LitmusError


@pytest.fixture
def suite(tmp_path, card_text):
    folder = tmp_path / "suites" / "alpha" / "one"
    folder.mkdir(parents=True)
    (folder / "card.yaml").write_text(card_text)
    return Suite(str(folder / "suite.py"))


def test_functions_are_registered_under_the_cards_names(suite):
    @suite.trial("quality")
    def quality():
        """Never called."""

    @suite.oracle
    def proof():
        """Never called."""

    assert suite.name == "alpha/one"
    assert suite.trials == {"quality": quality}
    assert suite.oracles == {"proof": proof}


@pytest.mark.parametrize("name", ["qualty", "pace"])
def test_a_name_the_card_does_not_have_as_this_kind_is_refused(suite, name):
    with pytest.raises(LitmusError) as caught:
        suite.trial(name)
    assert caught.value.key == name and "quality" in caught.value.expected


def test_outside_a_run_an_artefact_is_built_each_time(suite):
    built = []
    for _ in range(2):
        assert suite.prepare("model", {"size": 3}, lambda config: built.append(config) or config["size"]) == 3
    assert built == [{"size": 3}] * 2


def test_a_suite_that_was_never_tuned_has_no_values(suite):
    assert suite.tuned.values("quality", "method") is None


@pytest.mark.parametrize("text", ["experiments: 3", "a: [", "unknown: {}", "experiments: {x: {command: c}}"])
def test_a_tuned_file_that_is_something_else_is_refused(tmp_path, text):
    path = tmp_path / "tuned.yaml"
    path.write_text(text)
    with pytest.raises(LitmusError) as caught:
        load_tuned(path)
    assert caught.value.where == path and "litmus tune" in caught.value.next_step


def test_seeds_depend_on_the_axis_and_its_parts_and_on_nothing_else():
    assert seed_for("data", 3) == seed_for("data", 3)
    drawn = {seed_for(axis, seed) for axis in ("data", "init") for seed in range(500)}
    assert len(drawn) == 1000
    assert all(0 <= seed < 2**63 for seed in drawn)
    assert seed_for("init", 12) != seed_for("init", 1, 2), "parts are kept apart"
    assert TUNING_OFFSET > 10_000, "tuning seeds cannot meet reported ones"
