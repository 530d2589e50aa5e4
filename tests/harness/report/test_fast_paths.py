"""The fast paths of several runs: which run speaks, what the page and the Markdown say, what the figures hold."""

from __future__ import annotations

import json
import re

import pytest

from harness.records.store import find_runs
from harness.report import markdown, site
from harness.report.fast_paths import fast_paths
from harness.report.lines import lines

HOSTILE = "<img src=x onerror=alert(7)>"
GPU = {"key": "gpu-box", "devices": [{"id": "cpu", "name": "Test CPU 3000"}, {"id": "cuda:0", "name": "Test GPU 9"}]}


def ops_of(project):
    return fast_paths(lines(project.root, find_runs(project.root)))


def block_of(project):
    (op,) = ops_of(project)
    (block,) = op.blocks
    return block


def build(project):
    out = project.root / "report"
    site.build(project.root, find_runs(project.root), out)
    return out


def page_of(project):
    return (build(project) / "fast-paths.html").read_text(encoding="utf-8")


def pair(project, ours=1e6, peer=2e6, **more):
    return [project.record("ours", ours, **more), project.record("fast_peer", peer, **more)]


def test_experiments_of_one_op_stand_together(root, runs):
    (op,) = fast_paths(lines(root, runs))
    assert op.name == "sum" and [(block.line.suite, block.name) for block in op.blocks] == [
        ("sums/two_pass", "throughput")]
    block = op.blocks[0]
    assert (block.arms, block.peers, len(block.rows)) == (("two_pass", "copy"), ("three_pass", "online"), 14)
    assert block.tally("copy") == [("faster", 14)]
    last = block.rows[-1]
    assert [(item.arm, item.status) for item in last.peers] == [("three_pass", "ok"), ("online", "wrong")]


def test_the_newest_run_speaks_for_a_device(fast_project):
    fast_project.run("20260101-000000-small", pair(fast_project, 5e6), started_at=1.0)
    fast_project.run("20260202-000000-small", pair(fast_project, 1e6), started_at=2.0)
    block = block_of(fast_project)
    assert [source.run.id for source in block.sources] == ["20260202-000000-small"]
    assert len(block.rows) == 1 and block.rows[0].of("ours").speed.time_ns[1] < 2e6


def test_a_smoke_run_speaks_only_where_no_other_does(fast_project):
    fast_project.run("20260101-000000-small", pair(fast_project), started_at=1.0)
    fast_project.run("20260202-000000-smoke", pair(fast_project), started_at=2.0, profile="smoke")
    assert [source.run.id for source in block_of(fast_project).sources] == ["20260101-000000-small"]


def test_a_run_of_one_device_leaves_the_others_to_older_runs(fast_project):
    fast_project.run("20260101-000000-small", [*pair(fast_project), *pair(fast_project, device="cuda:0")], GPU,
                     started_at=1.0)
    fast_project.run("20260202-000000-small", pair(fast_project, device="cuda:0"), GPU, started_at=2.0)
    block = block_of(fast_project)
    assert {source.device: source.run.id for source in block.sources} == {
        "cuda:0": "20260202-000000-small", "cpu": "20260101-000000-small"}
    assert sorted(map(block.where, block.rows)) == ["Test CPU 3000", "Test GPU 9 (cuda:0)"]


def test_machines_stand_side_by_side_at_each_point(fast_project):
    points = [{"n": n, "threads": 1} for n in (2**10, 2**20)]
    for index, machine in enumerate((GPU, {"key": "other"})):
        records = [made for point in points for made in pair(fast_project, point=point)]
        fast_project.run("20260101-000000-small", records, machine, started_at=float(index))
    block = block_of(fast_project)
    assert [row.point["n"] for row in block.rows] == [2**10, 2**10, 2**20, 2**20]
    assert {block.where(row) for row in block.rows} == {"Test CPU 3000, gpu-box", "Test CPU 3000, other"}
    assert {figure["title"] for figure in block.figures} == {
        "device = Test CPU 3000, gpu-box", "device = Test CPU 3000, other"}


def test_what_has_no_result_anywhere_is_listed_with_its_reasons(fast_project):
    skipped = [fast_project.record(arm, device="cuda", status="skipped", reason="no device cuda on this machine")
               for arm in ("ours", "fast_peer")]
    gpu = [fast_project.record("gpu", status="skipped", reason="triton runs on a CUDA device",
                               point={"n": n, "threads": 1}) for n in (2**10, 2**20)]
    fast_project.run("20260101-000000-small", [*pair(fast_project), *gpu, *skipped])
    block = block_of(fast_project)
    assert "gpu" not in block.arms and {row.device for row in block.rows} == {"cpu"}
    assert {(item.name, item.endings) for item in block.absences} == {
        ("gpu", ("skipped: triton runs on a CUDA device",)), ("cuda", ("skipped: no device cuda on this machine",))}
    assert "triton runs on a CUDA device" in page_of(fast_project)


def test_an_experiment_without_records_and_a_card_without_the_line_are_left_out(fast_project):
    fast_project.run("20260101-000000-small", [])
    assert ops_of(fast_project) == []
    card = fast_project.folder / "card.yaml"
    fast_project.run("20260202-000000-small", pair(fast_project))
    assert len(ops_of(fast_project)) == 1
    out = build(fast_project)
    assert (out / "fast-paths.html").is_file() and "fast-paths.html#op-sum" in (out / "index.html").read_text()
    card.write_text(re.sub(r"    fast_path: .*\n", "", card.read_text()))
    assert ops_of(fast_project) == []
    build(fast_project)
    assert not (out / "fast-paths.html").exists()
    assert not [path for path in out.rglob("*.html") if "fast-paths" in path.read_text()]


def test_a_run_that_stopped_before_it_wrote_records_is_passed_over(fast_project):
    (fast_project.run("20260202-000000-small", [], started_at=2.0) / "records.parquet").unlink()
    fast_project.run("20260101-000000-small", pair(fast_project), started_at=1.0)
    assert [source.run.id for source in block_of(fast_project).sources] == ["20260101-000000-small"]


def test_the_page_says_ratio_word_and_share(fast_project):
    fast_project.run("20260101-000000-small", pair(fast_project))
    page = page_of(fast_project)
    row = block_of(fast_project).rows[0].of("ours")
    assert f'<data value="{row.best.ratio.point!r}">2.0' in page and "faster</span>" in page
    assert f'<data value="{100 * row.share.share!r}">' in page and "of memory" in page
    assert "0.93\u202f%</data>." in page and "4\u202fMiB of inputs, fits LLC" in page
    assert "No word on" not in page


def test_a_share_above_the_probe_is_shown_as_it_is_and_explained(fast_project):
    fast_project.run("20260101-000000-small", pair(fast_project, ours=1e5))
    page = page_of(fast_project)
    share = block_of(fast_project).rows[0].of("ours").share.share
    assert share > 3 and f'<data value="{100 * share!r}">' in page and 'style="width:100' in page
    assert "lower bound" in page


def test_a_run_without_a_quiet_canary_says_so(fast_project):
    fast_project.run("20260101-000000-small", pair(fast_project), canary={"floor": 0.5, "alarm": True})
    page = page_of(fast_project)
    assert "No word on Test CPU 3000" in page and "A/A canary alarmed" in page
    assert "1 inconclusive" in page and "1 faster" not in page


def test_a_stale_run_says_so(fast_project):
    fast_project.run("20260101-000000-small", pair(fast_project))
    assert "stale" not in page_of(fast_project)
    (fast_project.folder / "more.py").write_text("Y = 2\n")
    assert "stale: code changed since this run" in page_of(fast_project)


def test_hostile_names_and_reasons_are_text(fast_project):
    reason = "</script><script>alert(8)</script>"
    point = {"n": "<b>x</b>", "threads": 1}
    other = {"n": "<i>y</i>", "threads": 1}
    records = [fast_project.record(arm, time, point=place, input_bytes=size)
               for arm, time in ((HOSTILE, 1e6), ("fast_peer", 2e6)) for place, size in ((point, 100), (other, 200))]
    ours = fast_project.record("ours", status="wrong", reason=reason, point=point)
    fast_project.run("20260101-000000-small", [*records, ours, fast_project.record("ours", 1e6, point=other)],
                     {"devices": [{"id": "cpu", "name": "<u>CPU</u>"}]})
    page = page_of(fast_project)
    for text in (HOSTILE, reason, "<b>x</b>", "<i>y</i>", "<u>CPU</u>"):
        assert text not in page
    assert "&lt;/script&gt;&lt;script&gt;alert(8)" in page
    spec = json.loads(re.findall(r'class="spec">(.*?)</script>', page, re.DOTALL)[0])
    assert {trace["name"] for trace in spec[0]["data"]} >= {HOSTILE.replace("<", "&lt;")}
    assert "<" not in "".join(spec[0]["layout"]["xaxis"]["ticktext"])
    text = markdown.report(fast_project.root, find_runs(fast_project.root))
    assert "<img" not in text and "<script" not in text and "<u>" not in text


def test_figures_hold_ratios_with_their_intervals(root, runs):
    (op,) = fast_paths(lines(root, runs))
    figures = op.blocks[0].figures
    assert [figure["title"] for figure in figures] == ["threads = 1", "threads = all"]
    view = figures[0]["views"][0]
    assert [trace["name"] for trace in view["data"]] == ["two_pass", "copy"]
    for trace, arm in zip(view["data"], ("two_pass", "copy"), strict=True):
        rows = [row for row in op.blocks[0].rows if row.point["threads"] == 1]
        ratios = [row.of(arm).best.ratio for row in rows]
        assert trace["x"] == pytest.approx([row.point["n"] for row in rows], rel=1e-5)
        assert trace["y"] == pytest.approx([ratio.point for ratio in ratios], rel=1e-4)
        assert trace["error_y"]["array"] == pytest.approx([ratio.high - ratio.point for ratio in ratios], rel=1e-3)
        assert trace["error_y"]["arrayminus"] == pytest.approx([ratio.point - ratio.low for ratio in ratios], rel=1e-3)
    assert [shape["name"] for shape in view["layout"]["shapes"]] == ["equal", "cache", "cache"]
    assert "NaN" not in json.dumps(figures) and "Infinity" not in json.dumps(figures)


def test_words_on_an_axis_are_ordered_by_size_and_arms_stand_beside_each_other(fast_project):
    records = [fast_project.record(arm, time, point={"n": word, "threads": 1}, input_bytes=size)
               for word, size in (("large", 2**24), ("small", 2**10))
               for arm, time in (("ours", 1e6), ("gpu", 1e6), ("fast_peer", 2e6))]
    fast_project.run("20260101-000000-small", records)
    view = block_of(fast_project).figures[0]["views"][0]
    assert view["layout"]["xaxis"]["ticktext"] == ["small", "large"]
    ours, gpu = view["data"]
    assert ours["mode"] == "markers" and ours["x"][0] < 1 < gpu["x"][0] and len({*ours["x"], *gpu["x"]}) == 4


def test_one_point_or_no_peer_is_no_figure(fast_project):
    folder = fast_project.run("20260101-000000-small", pair(fast_project))
    assert block_of(fast_project).figures == ()
    page = page_of(fast_project)
    assert "plotly" not in page and folder.name in page
    alone = [fast_project.record("ours", 1e6, point={"n": n, "threads": 1}) for n in (2**10, 2**20)]
    fast_project.run("20270101-000000-small", alone, started_at=2e9)
    assert block_of(fast_project).figures == () and "no peer has a result here" in page_of(fast_project)


def test_the_markdown_has_the_same_numbers_in_short(fast_project):
    wrong = fast_project.record("gpu", status="wrong", reason="off | by one", point={"n": 2**20, "threads": 1})
    fine = fast_project.record("gpu", 1e6, point={"n": 2**10, "threads": 1})
    fast_project.run("20260101-000000-small", [*pair(fast_project), wrong, fine])
    text = markdown.report(fast_project.root, find_runs(fast_project.root))
    assert "## sum: Sums on every backend, sums" in text and "| point | device | best peer | ours | gpu |" in text
    row = next(line for line in text.splitlines() if line.startswith("| n = 2²⁰"))
    assert re.search(r"; 2\.0\d× \[1\.9\d×, 2\.0\d×\] faster; \d+\u202f% of memory \| wrong: off \\\| by one \|$", row)
    assert markdown.report(fast_project.root, []).count("Fast paths") == 0


def test_figures_and_times_of_the_page_stay_small(built):
    assert (built / "fast-paths.html").stat().st_size < 200_000
    for path in built.rglob("*.html"):
        assert 'fast-paths.html"' in path.read_text()
