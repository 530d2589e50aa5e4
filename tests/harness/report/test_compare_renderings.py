from dataclasses import replace
from io import StringIO
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.judge.comparison import Comparison, Outcome
from harness.report import compare_junit, compare_markdown, compare_text, compare_words


def item(verdict="same", reason="inside_zone", **changes):
    values = {
        "suite": "demo/tiny", "experiment": "pace", "arm": "ours", "metric": "time", "point": {"n": 4},
        "change": 0.0, "low": -0.005, "high": 0.005, "n": 8, "unit": "process", "threshold": 0.01,
    }  # fmt: skip
    return Comparison(**{**values, "verdict": verdict, "reason": reason, **changes})


SLOW = item("slower", "beyond_zone", change=0.05, low=0.04, high=0.06)
WORSE = item("worse", "beyond_zone", metric="loss", change=0.2, low=0.1, high=0.3, unit="seed", relative=False)
FAST = item("faster", "beyond_zone", arm="quick", change=-0.1, low=-0.12, high=-0.08)
MAYBE = item("inconclusive", "straddles_zone", arm="maybe", change=0.01, low=-0.01, high=0.03)
APART = item("incomparable", "card_version", arm="old", change=None, low=None, high=None, n=0, detail="1 and 2")
LOST = item("incomparable", "head_status", arm="lost", metric="all", change=None, low=None, high=None, n=0)
ALL = (item(), FAST, APART, MAYBE, SLOW, WORSE, replace(SLOW, arm="peer", gates=False))


def outcome(*comparisons, **changes):
    return Outcome("box/a", "box/b", comparisons, **changes)


def text(found):
    page = StringIO()
    Console(file=page, width=200, markup=False).print(compare_text.render(found))
    return page.getvalue()


def test_the_worst_is_first_and_what_does_not_gate_comes_after():
    order = [found.arm for found in compare_words.worst_first([*ALL, LOST])]
    assert order == ["lost", "ours", "ours", "peer", "quick", "maybe", "old", "ours"]
    assert compare_words.worst_first(ALL)[0] is WORSE, "0.2 is twenty zones, 0.05 five"


@pytest.mark.parametrize(
    ("found", "headline"),
    [
        (outcome(*ALL), "Regression: 1 slower, 1 worse of 5 gating comparisons; 1 inconclusive."),
        (outcome(item()), "No regression in 1 gating comparison."),
        (outcome(LOST, SLOW), "The head no longer finishes 1 of what the base finished."),
        (outcome(APART), "Nothing could be compared."),
        (outcome(), "Nothing could be compared."),
        (outcome(SLOW, canary_failed=True), "Undecided: equal code did not take equal time on this machine meanwhile."),
        (outcome(replace(SLOW, gates=False)), "Nothing here gates; what was compared is below."),
    ],
)
def test_the_headline_says_what_the_exit_code_says(found, headline):
    assert compare_words.headline(found) == headline


def test_the_counts_name_reasons():
    assert compare_words.counts(ALL) == (
        "2 slower, 1 worse, 1 faster, 1 same, 1 inconclusive (1 straddles_zone), 1 incomparable (1 card_version)"
    )
    assert compare_words.counts([]) == "nothing to compare"


def test_numbers_carry_their_unit_and_unbounded_ends():
    assert compare_words.change_text(SLOW) == "+5 %"
    assert compare_words.interval_text(FAST) == "−12 % … −8 %"
    assert compare_words.interval_text(replace(WORSE, low=None)) == "−∞ … +0.3"
    assert compare_words.zone_text(WORSE) == "±0.01" and compare_words.zone_text(SLOW) == "±1 %"
    assert compare_words.basis_text(SLOW) == "8 processes" and compare_words.basis_text(APART) == "–"
    assert compare_words.change_text(replace(WORSE, change=float("inf"))) == "+∞"


def test_the_terminal_shows_changes_and_counts_the_rest():
    shown = text(outcome(*ALL, alarms=("suspect",)))
    assert "alarm: suspect" in shown and "slower (not gating)" in shown and "maybe" in shown
    assert "old" not in shown and "1 same" in shown
    assert "3 more rows" in rows_at_most(outcome(*ALL), 2)


def rows_at_most(found, most):
    page = StringIO()
    Console(file=page, width=200, markup=False).print(compare_text.render(found, most_rows=most))
    return page.getvalue()


def test_markdown_has_the_headline_alarms_changes_and_folds():
    found = compare_markdown.render(outcome(*ALL, alarms=("equal code moved",)))
    head, rest = found.split("<details>", 1)
    assert head.startswith("### ❌ Regression") and "> [!WARNING]\n> equal code moved" in head
    rows = [line for line in head.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| **worse** ") and rows[2].startswith("| **slower** ") and len(rows) == 5
    assert "±1 %" in rows[2] and "+4 % … +6 % at 95 %" in rows[2] and "8 processes" in rows[2]
    assert "3 that did not change, or could not be told" in rest and rest.count("<details>") == 1
    assert "- `card_version`: the card's version differs" in rest
    assert compare_markdown.render(outcome(item())).startswith("### ✅ No regression")


NASTY = "|`*_<script>&[x](y)\n\r\t| \\| @someone https://evil #1 -->\x1b[31m\u202e\x00"


@given(st.text(max_size=300) | st.just(NASTY) | st.just("x" * 10**6))
def test_no_name_breaks_out_of_a_rendering(name):
    found = outcome(item("slower", "beyond_zone", arm=name, metric=name, experiment=name, detail=name,
                         point={name: name}, device=name), alarms=(name,))  # fmt: skip
    found = replace(found, base=name, head=name)
    markdown = compare_markdown.render(found)
    assert len(markdown) < 10_000
    (row,) = (line for line in markdown.splitlines() if line.startswith("| **slower"))
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 10
    allowed = markdown.replace("<!-- -->", "").replace("<details>", "").replace("</details>", "")
    assert "<" not in allowed.replace("<summary>", "").replace("</summary>", "")
    suite = ElementTree.fromstring(compare_junit.render(found))
    assert len(suite.findall("testcase")) == 1
    assert all(char.isprintable() or char in "\n" for char in text(found).replace("\x1b", ""))


def test_junit_has_a_case_for_each_gating_comparison():
    suite = ElementTree.fromstring(compare_junit.render(outcome(*ALL, LOST)))
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("7", "3", "2")
    kinds = [[child.tag for child in case] for case in suite.findall("testcase")]
    assert kinds == [["failure"], ["failure"], ["failure"], [], ["skipped"], ["skipped"], []]
    failure = suite.findall("testcase/failure")[2]
    assert failure.get("type") == "beyond_zone" and "+5 % [+4 % … +6 %], 8 processes" in failure.get("message")
    assert "card_version" in suite.findall("testcase/skipped")[1].get("message")


def test_junit_reports_a_tripped_canary_as_an_error():
    suite = ElementTree.fromstring(compare_junit.render(outcome(item(), canary_failed=True, alarms=("noise",))))
    assert suite.get("errors") == "1" and suite.find("testcase/error").get("message") == "noise"
    assert "noise" in suite.find("system-out").text
