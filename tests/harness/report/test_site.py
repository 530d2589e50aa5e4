from __future__ import annotations

import json
import re
import shutil

import pytest

from harness.declare.catalog import Catalog
from harness.errors import LitmusError
from harness.judge.verdict import judge_run
from harness.records.store import find_runs, read_verdicts, write_records, write_verdicts
from harness.report import site
from harness.report.lines import lines


def build(root, runs=None):
    out = root / "report"
    index = site.build(root, find_runs(root) if runs is None else runs, out)
    assert index == out / "index.html"
    return out


def text(path):
    return path.read_text(encoding="utf-8")


def test_the_index_has_every_paper_and_claim(root):
    index = text(build(root) / "index.html")
    for entry in Catalog(root):
        assert f'href="papers/{entry.name}.html"' in index
        for claim in entry.card.claim_ids:
            assert f'href="papers/{entry.name}.html#{claim}"' in index
    assert index.count('data-verdict="supported"') == 3 and index.count('data-verdict="not run"') == 2
    assert "small · test-2c-8g-abcdef · 20260102-030405-small" in index and "never run" in index


def test_names_from_cards_and_records_are_escaped(built):
    for path in built.rglob("*.html"):
        page = text(path)
        assert (
            "<script>alert" not in page
            and "<img src=x" not in page
            and "<b>bold</b>" not in page
            and "budget <b>" not in page
        )
    assert "&lt;script&gt;alert(1)" in text(built / "papers/training/hostile.html")
    assert "nothing &lt;really&gt; happened" in text(built / "failures.html")


def test_one_plotly_and_nothing_from_elsewhere(built):
    assert [path.name for path in built.rglob("*plotly*")] == ["plotly.min.js"]
    for path in built.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="([^"]+)"', text(path))
        assert loaded and all(item.startswith(("data:", "assets/", "../")) for item in loaded)
        for item in loaded:
            assert item.startswith("data:") or (path.parent / item).is_file()


def test_every_link_inside_the_site_leads_somewhere(root, another_run):
    another_run(root, "20251230-030405-small", 1767000000.0)
    out = build(root)
    for path in out.rglob("*.html"):
        page = text(path)
        for target in re.findall(r'<a [^>]*href="([^"]+)"', page):
            if target.startswith("https:"):
                continue
            file, _, anchor = target.partition("#")
            found = (path.parent / file).resolve() if file else path
            assert found.is_file(), (path, target)
            if anchor and "=" not in anchor:
                assert f'id="{anchor}"' in text(found), (path, target)


def test_exact_numbers_stay_in_the_markup(built):
    page = text(built / "papers/sums/two_pass.html")
    assert '<data value="1.3123456789">1.31×</data>' in page


def test_a_claim_card_says_what_was_asked_and_why_it_came_out(built):
    page = text(built / "papers/sums/two_pass.html")
    for part in (
        "1.28x (AVX512)",
        "Both points lie above 1.05 with their whole intervals.",
        "one vector up to 1 GiB",
        "The second core shares the memory controller",
        "where input_bytes &gt; llc",
        "n = 24 rounds",
        "c0ffee00c0ffee00",
        "litmus run --profile small",
        "with local changes",
    ):
        assert part in page
    assert page.count('class="strip decision"') == 5


def test_trials_show_dots_curves_and_tuning(built):
    page = text(built / "papers/training/lowrank.html")
    assert page.count('class="strip dots') == 4 and "4 seeds, 1 not finite" in page
    assert (
        "litmus tune galore:pretrain" in page
        and "lr = 0.01" in page
        and "the code has changed since the search" in page
    )
    assert len(re.findall(r'<script type="application/json"', page)) == 2


def test_failures_are_listed_with_reason_and_repro(built):
    page = text(built / "failures.html")
    assert "relative error 0.3 is above the tolerance 1e-06" in page and "Traceback (most recent call last)" in page
    assert len(re.findall(r"litmus repro [0-9a-f]{16}", page)) == 1
    assert "budget &lt;b&gt;" in page and page.index("relative error") < page.index("budget &lt;b&gt;")


def test_a_change_of_code_or_card_makes_a_paper_stale(root):
    assert all(result.stale == "" for line in lines(root, find_runs(root)) for result in line.results)
    (root / "suites/sums/two_pass/more.py").write_text("Y = 2\n")
    path = root / "suites/training/lowrank/card.yaml"
    path.write_text(path.read_text().replace("version: 2", "version: 3"))
    out = build(root)
    assert "code changed since this run" in text(out / "papers/sums/two_pass.html")
    assert "card version 2 then, 3 now" in text(out / "papers/training/lowrank.html")
    index = text(out / "index.html")
    assert index.count("stale-note") == 2 and ": supported, stale" in index
    assert 'class="stale' not in text(out / "papers/training/hostile.html")


def test_an_older_run_has_its_own_page(root, another_run):
    another_run(root, "20251230-030405-small", 1767000000.0)
    out = build(root)
    old = out / "papers/sums/two_pass@test-2c-8g-abcdef@20251230-030405-small.html"
    assert "This is an older run" in text(old)
    assert old.name in text(out / "papers/sums/two_pass.html")
    assert "20251230" not in text(out / "index.html").split('class="runs"')[0]


def test_no_runs_at_all(root):
    out = build(root, [])
    assert "Nothing has been run yet" in text(out / "index.html")
    assert "Not run yet" in text(out / "papers/sums/two_pass.html")
    assert "ended <i>ok</i>" in text(out / "failures.html")


def test_missing_data_leaves_gaps_and_no_error(root, another_run):
    shutil.rmtree(root / "results")
    bare = another_run(
        root,
        "20260303-000000-small",
        1772000000.0,
        ceilings={},
        canary=None,
        machine={},
        software={},
        commit=None,
        finished_at=None,
    )
    write_verdicts(bare, [])
    page = text(build(root) / "papers/sums/two_pass.html")
    assert "No stored run has judged this claim" in page and "roofline" not in page
    write_records(bare, [])
    assert "Environment" in text(build(root) / "papers/sums/two_pass.html")
    (bare / "records.parquet").unlink()
    (bare / "verdicts.json").unlink()
    assert "unfinished" in text(build(root) / "index.html")


def test_only_skipped_records_still_make_a_page(built):
    page = text(built / "papers/training/hostile.html")
    assert "No record of this experiment ended ok in this run: budget &lt;b&gt;" in page and "plots.js" not in page


def test_verdicts_without_bounds_are_drawn(root, runs):
    found = read_verdicts(runs[0].folder)
    found[0]["parts"][0]["estimate"].update(low=None, high=None)
    found[0]["parts"][1]["estimate"].update(point=None, low=None, high=None)
    write_verdicts(runs[0].folder, found)
    page = text(build(root) / "papers/sums/two_pass.html")
    assert '<data value="inf">∞</data>' in page and "nan" not in page.lower().replace("nanoseconds", "")


def test_a_suite_that_left_the_project_is_still_shown(root):
    shutil.rmtree(root / "suites/sums")
    out = build(root)
    assert "the suite is no longer in the project" in text(out / "papers/sums/two_pass.html")
    assert "out of cache speedup" in text(out / "index.html")


def test_what_the_judge_writes_is_what_the_pages_read(root, runs):
    judged = judge_run(runs[0].folder, root, lambda suite: pytest.fail(f"{suite} has no estimate of its own"))
    assert len(judged) == 6
    page = text(build(root) / "papers/sums/two_pass.html")
    speedup = next(item for item in judged if item.claim == "same_in_cache").parts[0].estimate
    assert speedup is not None and f'<data value="{speedup.point!r}">' in page


def test_the_ceilings_of_every_device_are_listed(root, another_run):
    devices = {"cuda:0": {"copy_bytes_per_s": 2.5e12, "flops_per_s": 5e13}}
    ceilings = {"threads": {"1": {"copy_bytes_per_s": 19e9}}, "devices": devices}
    another_run(root, "20260404-000000-small", 1775000000.0, ceilings=ceilings)
    page = text(build(root) / "papers/sums/two_pass.html")
    assert '<td>cuda:0</td><td class="n">–</td><td class="n"><data value="2500000000000.0">2.50\u202fTB/s' in page
    assert '<data value="19000000000.0">' in page


def test_the_noise_check_is_announced(root, another_run):
    another_run(
        root,
        "20260404-000000-small",
        1775000000.0,
        canary={"median_log_ratio": 0.1, "low": 0.09, "high": 0.11, "floor": 0.01, "alarm": True, "n": 24},
    )
    assert "The noise check alarmed" in text(build(root) / "papers/sums/two_pass.html")


def test_the_same_input_gives_the_same_bytes(root):
    first = {path.relative_to(root): path.read_bytes() for path in build(root).rglob("*") if path.is_file()}
    second = {path.relative_to(root): path.read_bytes() for path in build(root).rglob("*") if path.is_file()}
    assert first == second


def test_pages_stay_small(built):
    assert (built / "index.html").stat().st_size < 20_000  # 153 papers in less than 1 MB
    pages = [path.stat().st_size for path in built.rglob("papers/**/*.html")]
    assert max(pages) < 350_000  # 153 papers in less than 60 MB


def test_a_folder_with_other_files_is_refused(root):
    out = root / "mine"
    out.mkdir()
    (out / "index.html").write_text("my homepage")
    with pytest.raises(LitmusError, match="holds other files"):
        site.build(root, [], out)
    assert (out / "index.html").read_text() == "my homepage"
    with pytest.raises(LitmusError, match="is a file"):
        site.build(root, [], out / "index.html")


def test_an_unwritable_folder_is_a_clear_refusal(root):
    (root / "file").write_text("")
    with pytest.raises(LitmusError, match="cannot write the report"):
        site.build(root, [], root / "file" / "below")


def test_a_rebuilt_report_drops_pages_of_suites_that_are_gone(root):
    out = build(root)
    shutil.rmtree(root / "suites/training/never")
    build(root)
    assert not (out / "papers/training/never.html").exists()


def test_no_raw_samples_reach_a_page(built):
    page = text(built / "papers/sums/two_pass.html")
    specs = re.findall(r'<script type="application/json" class="spec">(.*?)</script>', page, re.DOTALL)
    longest = max(len(trace["x"]) for spec in specs for view in json.loads(spec) for trace in view["data"])
    assert longest <= 14  # seven sizes, there and back for a band
