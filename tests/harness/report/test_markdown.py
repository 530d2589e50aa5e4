from __future__ import annotations

from harness.records.store import find_runs
from harness.report import markdown


def test_the_table_has_a_row_per_paper_with_marks_and_run(root, runs):
    rows = [line for line in markdown.table(root, runs).splitlines() if line.startswith("|")][2:]
    assert len(rows) == 4
    assert rows[0] == (
        "| sums | [A faster sum](suites/sums/two_pass), 2020, [arXiv 2001.00001](https://arxiv.org/abs/2001.00001) | "
        "✓ out of cache speedup<br>◐ bandwidth bound<br>✗ same in cache | "
        "small, test-2c-8g-abcdef, 20260102-030405-small |"
    )
    assert "never run" in rows[3]


def test_totals_and_legend(root, runs):
    head = markdown.table(root, runs).splitlines()
    assert head[0] == "4 papers, 7 claims: 3 supported, 1 refuted, 1 inconclusive, 2 not run."
    assert head[2] == "✓ supported · ✗ refuted · ◐ inconclusive · – not run"


def test_equal_inputs_give_equal_text_whatever_the_code_is(root, runs):
    before = markdown.table(root, runs)
    (root / "suites/sums/two_pass/more.py").write_text("Y = 2\n")
    assert markdown.table(root, list(reversed(find_runs(root)))) == before


def test_markup_in_names_is_text(root, runs):
    made = markdown.report(root, runs)
    assert "<script" not in made and "&lt;script>" in made and "budget &lt;b>" in made
    path = root / "suites/training/never/card.yaml"
    path.write_text(path.read_text().replace("A paper nobody ran", "a | b *c* [d](e) `f`"))
    assert r"a \| b \*c\* \[d\](e) \`f\`" in markdown.table(root, runs)


def test_the_full_text_has_estimates_rules_and_reasons(root, runs):
    made = markdown.report(root, runs)
    assert "1.31× [1.29×, 1.34×], 95 % interval, n = 24; supported if `> 1.05`, refuted if `< 1.0`" in made
    assert "why: Two passes take 12 % less time in cache." in made
    assert "A paper nobody ran\n" not in made.split("## ", 1)[1]


def test_staleness_is_told_in_the_full_text(root, runs):
    (root / "suites/sums/two_pass/more.py").write_text("Y = 2\n")
    assert "Stale: code changed since this run." in markdown.report(root, runs)


def test_no_runs(root):
    assert "0 supported, 0 refuted, 0 inconclusive, 7 not run" in markdown.table(root, [])
    assert markdown.report(root, []).startswith("# Verdicts\n")
