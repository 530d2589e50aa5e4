import pytest

from harness.run.validate import PACE, Check


@pytest.fixture
def checks(monkeypatch):
    """Stands in for the checks of a suite: gives those that the test wants."""
    import harness.run.validate as contract

    def install(*found):
        monkeypatch.setattr(contract, "validate", lambda root, suite, progress: list(found))

    return install


@pytest.mark.parametrize(
    ("found", "words", "code"),
    [
        ([Check("card", True, "fine")], (), 0),
        ([Check("card", False, "bad")], (), 4),
        ([Check(PACE, False, "12 s")], (), 4),
        ([Check(PACE, False, "12 s")], ("--any-pace",), 0),
        ([Check("oracles", False, "x"), Check(PACE, False, "y")], ("--any-pace",), 4),
    ],
)
def test_a_failed_check_ends_with_4_and_pace_alone_may_be_forgiven(litmus, project, checks, found, words, code):
    checks(*found)
    ended, out, _ = litmus("validate", *words)
    assert ended == code
    assert ("all checks passed" in out) is (code == 0)
    assert all(check.name in out and check.detail in out for check in found)


def test_a_card_that_cannot_be_read_fails_alone_and_ends_with_2(litmus, project):
    (project / "suites/demo/pairwise/card.yaml").write_text("version: [")
    code, out, _ = litmus("validate")
    assert code == 2
    assert "not valid YAML" in out and "1 suites could not be read" in out
