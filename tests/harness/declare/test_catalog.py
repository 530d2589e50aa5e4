import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.declare.catalog import Catalog, Selector, find_root
from harness.errors import LitmusError


@pytest.fixture
def catalog(tmp_path, card_text):
    for name in ("alpha/one", "alpha/two", "beta/three"):
        folder = tmp_path / "suites" / name
        folder.mkdir(parents=True)
        (folder / "card.yaml").write_text(card_text)
    return Catalog(tmp_path)


def names(catalog, *selectors):
    return [entry.name for entry, _ in catalog.select(selectors)]


def test_everything_by_default_in_order(catalog):
    assert names(catalog) == ["alpha/one", "alpha/two", "beta/three"]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("alpha/*", ["alpha/one", "alpha/two"]),
        ("three", ["beta/three"]),
        ("*:pace", ["alpha/one", "alpha/two", "beta/three"]),
        ("alpha/one:quality[n=2**4,mode=fast]", ["alpha/one"]),
        ("t*", ["alpha/two", "beta/three"]),
    ],
)
def test_selectors_take_names_and_patterns(catalog, selector, expected):
    assert names(catalog, selector) == expected


def test_two_selectors_on_one_suite_stay_together(catalog):
    ((entry, selectors),) = catalog.select(["one:pace", "alpha/one:quality"])
    assert entry.name == "alpha/one"
    assert [selector.experiment for selector in selectors] == ["pace", "quality"]


@pytest.mark.parametrize(
    ("selector", "problem", "hint"),
    [
        ("thre", "no such suite", "'three'"),
        ("alpha/on", "no such suite", "'alpha/one'"),
        ("one:qualty", "no such experiment", "'quality'"),
        ("one:quality[m=1]", "no such axis", "known: mode, n"),
        ("one:quality[n]", "not a selector", "axis=value"),
        ("one:quality[n=]", "not a selector", "axis=value"),
        ("one:quality[n=2**]", "not a selector", "word or a number"),
        ("one:", "not a selector", "SUITE[:EXPERIMENT"),
        ("", "not a selector", "SUITE"),
        ("a b", "not a selector", "SUITE"),
        ("one[n=1]", "not a selector", "SUITE"),
        ("../../etc", "no such suite", "known"),
        ("one:pace[threads=1", "not a selector", "SUITE"),
    ],
)
def test_a_selector_that_takes_nothing_is_explained(catalog, selector, problem, hint):
    with pytest.raises(LitmusError) as caught:
        catalog.select([selector])
    refusal = caught.value
    assert refusal.problem == problem
    assert refusal.value == selector
    assert hint in refusal.expected
    assert refusal.where and refusal.key and refusal.next_step


def test_one_suite_by_name_and_not_by_a_pattern_for_many(catalog):
    assert catalog.get("two").name == "alpha/two"
    with pytest.raises(LitmusError, match="more than one suite"):
        catalog.get("alpha/*")


@given(st.text(max_size=40))
def test_any_text_is_a_selector_or_a_refusal(text):
    try:
        selector = Selector.parse(text)
    except LitmusError as refusal:
        assert refusal.value == text
        return
    assert selector.suite


def test_the_root_is_found_upwards_or_by_the_environment(catalog, monkeypatch, tmp_path):
    monkeypatch.delenv("LITMUS_ROOT", raising=False)
    assert find_root(tmp_path / "suites" / "alpha") == tmp_path
    monkeypatch.setenv("LITMUS_ROOT", str(tmp_path))
    assert find_root() == tmp_path
