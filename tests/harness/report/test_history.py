"""The history page: what its figures and table hold, and how it looks in a real browser from disk."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.records.record import Record, Samples
from harness.records.store import RunInfo, find_runs, write_records, write_run_info
from harness.report import site

SUITE = "sums/stepped"
HOSTILE = "<img src=x onerror=alert(7)>"
CARD = f"""
paper: {{title: "Sums <over> time", year: 2022}}
version: 1
summary: One kernel beside a peer, and its accuracy.
experiments:
  timing:
    kind: speed
    arms: [ours, peer, "{HOSTILE}"]
    axes: {{n: [2**10, 2**20]}}
    fast_path: {{op: sum, peers: [peer]}}
  accuracy:
    kind: trial
    arms: [ours]
    seeds: 3
    metrics: {{loss: {{unit: nats, better: lower}}}}
claims:
  - id: nothing
    statement: Nothing is claimed.
    experiment: timing
    estimate: {{ratio: time, of: ours, to: peer}}
    supported_if: "> 1.1"
    refuted_if: "< 1.0"
"""


def timed(arm: str, time_ns: float, run: int, n: int) -> Record:
    draw = random.Random(f"{arm} {run} {n}")
    each = [(process, turn) for process in range(3) for turn in range(6)]
    level = draw.gauss(1, 0.01)
    samples = Samples([process for process, _ in each], [turn for _, turn in each], [0] * 18, [1] * 18,
                      [round(time_ns * level * draw.gauss(1, 0.02)) for _ in each])
    return Record(cell=f"cell{n}", suite=SUITE, experiment="timing", kind="speed", arm=arm, point={"n": n}, seed=0,
                  device="cpu", profile="small", status="ok", card_version=1, code="k", samples=samples, error=1e-7,
                  tolerance=1e-6)


def trial(loss: float, seed: int) -> Record:
    return Record(cell=f"trial{seed}", suite=SUITE, experiment="accuracy", kind="trial", arm="ours", point={},
                  seed=seed, device="cpu", profile="small", status="ok", card_version=1, code="k",
                  metrics={"loss": loss})


def make_runs(root: Path, count: int, machine: str = "test-2c", key: str = "") -> None:
    """A step of our arm at the fifth run, at n = 2**20 only; the machine slows down at the eighth; loss has a step."""
    for run in range(count):
        slow = 1.3 if run >= 7 else 1.0
        records = [timed(arm, base * n * slow * (1.5 if arm == "ours" and run >= 4 and n == 2**20 else 1.0), run, n)
                   for n in (2**10, 2**20) for arm, base in (("ours", 1.0), ("peer", 1.3), (HOSTILE, 2.0))]
        draw = random.Random(run)
        records += [trial(2.0 + 0.2 * (run >= 6) + draw.gauss(0, 0.004), seed) for seed in range(3)]
        name = f"2026{run + 1:02d}02-030405-small"
        folder = root / "results" / machine / name
        folder.mkdir(parents=True)
        info = {"run": name, "started_at": 1.767e9 + 86400.0 * run, "profile": "small", "litmus": "0",
                "commit": f"{random.Random(run).getrandbits(160):040x}", "dirty": run == 2,
                "machine": {"key": key or machine, "cpu": "Test CPU 3000"},
                "cards": {SUITE: {"version": 1, "code": "k"}},
                "software": {"torch": "2.9" if run < 4 else "<b>2.10</b>"}}
        write_run_info(folder, RunInfo(**info))
        write_records(folder, records)


def make_project(root: Path) -> Path:
    (root / "suites" / SUITE).mkdir(parents=True)
    (root / "suites" / SUITE / "card.yaml").write_text(CARD)
    (root / "suites" / SUITE / "suite.py").write_text("X = 1\n")
    return root


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_project(tmp_path_factory.mktemp("past"))
    make_runs(root, 12)
    make_runs(root, 3, "other", "z<i>other</i>")
    return site.build(root, find_runs(root), root / "report").parent


@pytest.fixture(scope="module")
def text(pages: Path) -> str:
    return (pages / "history" / f"{SUITE}.html").read_text()


def specs(text: str) -> list[list[dict]]:
    return [json.loads(found) for found in re.findall(r'class="spec">(.*?)</script>', text, re.DOTALL)]


def test_the_page_is_linked_from_the_index_and_the_paper(pages):
    assert f'href="history/{SUITE}.html"' in (pages / "index.html").read_text()
    paper = (pages / "papers" / f"{SUITE}.html").read_text()
    assert f'href="../../history/{SUITE}.html"' in paper and "History over 15 runs" in paper


@pytest.mark.parametrize("machines", [("a",), ("a", "b")])
def test_one_run_of_a_machine_has_no_history(tmp_path, machines):
    root = make_project(tmp_path)
    for machine in machines:
        make_runs(root, 1, machine)
    out = site.build(root, find_runs(root), root / "report").parent
    assert not (out / "history").exists()
    assert "history/" not in (out / "index.html").read_text()
    make_runs(root, 2, "c")
    site.build(root, find_runs(root), out)
    assert (out / "history" / f"{SUITE}.html").is_file()
    shutil.rmtree(root / "results" / "c")
    site.build(root, find_runs(root), out)
    assert not (out / "history").exists()  # a page of before does not stay


def test_figures_hold_values_intervals_and_marks(text):
    small, large, *_ = sorted(specs(text)[:2], key=lambda views: views[0]["layout"]["yaxis"]["range"][0])
    assert [view["name"] for view in large] == ["Time per call", "Time over the peers'", "Error"]
    assert specs(text)[0] == large  # the point with our own change comes first
    view = large[0]
    ours = next(trace for trace in view["data"] if trace["name"] == "ours")
    assert ours["x"] == [float(index) for index in range(1, 13)] and view["layout"]["yaxis"]["type"] == "log"
    assert ours["y"][5] / ours["y"][2] == pytest.approx(1.5, rel=0.1)
    assert all(bound > 0 for bound in ours["error_y"]["array"]) and len(ours["error_y"]["arrayminus"]) == 12
    assert "run 20260302-030405-small" in ours["text"][2]
    assert "3 processes" in ours["text"][2] and "+, 2025-12-31" in ours["text"][2]
    marks = {shape["name"]: (shape["x0"], shape["label"]["text"]) for shape in view["layout"]["shapes"]}
    assert marks["change-worse"][0] == 4.5 and marks["change-worse"][1].startswith("worse 1.")
    assert marks["change-machine"][0] == 7.5 and marks["change-machine"][1].startswith("machine 1.")
    ratio = large[1]["layout"]["shapes"]
    assert [(shape["name"], shape["x0"]) for shape in ratio] == [("change-worse", 4.5)]
    assert [shape["name"] for shape in small[1]["layout"]["shapes"]] == []


def test_accuracy_has_its_own_figure_and_the_table_is_worst_first(text):
    loss = next(view for views in specs(text) for view in views if view["name"] == "loss")
    assert loss["layout"]["yaxis"]["type"] == "linear" and loss["layout"]["shapes"][0]["x0"] == 6.5
    table = text[text.index('<table class="changes">'):text.index("</table>")]
    found = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)) for row in found]
    assert "worse" in rows[1] and "ours, Time" in rows[1] and "1.48×" in rows[1]
    assert any("loss" in row and "+0.2" in row for row in rows) and any("a peer changed" in row for row in rows)
    assert "the machine changed" in rows[-1]
    assert "torch 2.9 → &lt;b&gt;2.10&lt;/b&gt;" in text


def test_a_cut_breaks_the_line_and_is_marked(tmp_path):
    root = make_project(tmp_path)
    make_runs(root, 8)
    for run in find_runs(root)[:4]:
        records = [trial(9.0, seed) for seed in range(2)]
        write_records(run.folder, records)
    out = site.build(root, find_runs(root), root / "report").parent
    found = specs((out / "history" / f"{SUITE}.html").read_text())
    loss = next(view for views in found for view in views if view["name"] == "loss")
    (trace,) = loss["data"]
    assert trace["x"][4] == 4.5 and trace["y"][4] is None and len(trace["x"]) == 9
    assert [(shape["name"], shape["x0"]) for shape in loss["layout"]["shapes"]] == [("cut", 4.5)]


def test_runs_without_anything_in_common_say_so(tmp_path):
    root = make_project(tmp_path)
    make_runs(root, 2)
    for run in find_runs(root):
        write_records(run.folder, [])
    out = site.build(root, find_runs(root), root / "report").parent
    assert "Nothing to compare" in (out / "history" / f"{SUITE}.html").read_text()


def test_names_are_escaped(text):
    assert HOSTILE not in text and "<i>other" not in text and "<b>2.10" not in text
    assert "z&lt;i&gt;other&lt;/i&gt;, profile small" in text
    names = {trace["name"] for views in specs(text) for view in views for trace in view["data"]}
    assert "&lt;img src=x onerror=alert(7)>" in names
    assert not any(re.search(r"<(?!br>)", hover) for views in specs(text) for view in views
                   for trace in view["data"] for hover in trace["text"])


# in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: page not opened")
    chromium = os.environ.get("LITMUS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: THE HISTORY WAS NOT OPENED IN A BROWSER")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_opens_offline_in_both_schemes_and_on_a_phone(browser, pages, scheme, width):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    faults: list[str] = []

    def route(handler) -> None:
        if handler.request.url.startswith(("file:", "data:")):
            handler.continue_()
        else:
            faults.append(handler.request.url)
            handler.abort()

    context.route("**/*", route)
    page = context.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if line.type in ("error", "warning") else None)
    page.on("dialog", lambda dialog: faults.append(dialog.message))
    try:
        page.goto((pages / "index.html").as_uri())
        page.get_by_role("link", name="history").click()
        page.wait_for_url(f"**/history/{SUITE}.html")
        first = "#part-1-timing .plot-panel:first-child"
        page.wait_for_selector(f"{first} path.js-line")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator(f"{first} .shape-label").first.text_content().startswith("worse 1.")
        assert page.locator(f"{first} .errorbar path.yerror").count() == 36
        ink = page.locator(f"{first} .shapelayer path").first.evaluate("node => getComputedStyle(node).stroke")
        red = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--refuted')")
        assert ink == f"rgb({', '.join(map(str, bytes.fromhex(red.strip()[1:])))})"
        page.get_by_role("button", name="Time over the peers'").first.click()
        assert page.locator(f"{first} .plot").get_attribute("data-view") == "Time over the peers'"
        assert page.locator("main img").count() == 0
        if shots := os.environ.get("LITMUS_SCREENSHOTS"):
            for name in page.locator(".plot").all():
                name.scroll_into_view_if_needed()
                page.wait_for_timeout(100)
            page.screenshot(path=f"{shots}/history-{scheme}-{width}.png", full_page=True)
    finally:
        context.close()
    assert faults == []
