"""The pages in a real browser, from disk, with every request watched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.records.store import find_runs
from harness.report import site

pytestmark = [pytest.mark.browser, pytest.mark.slow]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages not opened")
    chromium = os.environ.get("LITMUS_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine: THE REPORT WAS NOT OPENED IN A BROWSER")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


class Watched:
    """A page that remembers its errors and the requests that were not for files."""

    def __init__(self, browser: object, out: Path, **options: object) -> None:
        self.out = out
        self.errors: list[str] = []
        self.strays: list[str] = []
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **options)
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console", lambda line: self.errors.append(line.text) if line.type in ("error", "warning") else None
        )
        self.page.on("dialog", lambda dialog: self.errors.append(f"dialog: {dialog.message}"))

    def _route(self, route) -> None:
        if route.request.url.startswith(("file:", "data:")):
            route.continue_()
        else:
            self.strays.append(route.request.url)
            route.abort()

    def open(self, name: str):
        file, sign, state = name.partition("#")
        self.page.goto((self.out / file).as_uri() + sign + state)
        return self.page

    def shown(self) -> list[str]:
        return [item.inner_text() for item in self.page.locator(".paper:visible h3").all()]


@pytest.fixture()
def fast(browser, fast_project) -> Iterator[Watched]:
    """The fast paths of hostile names, wide tables and two devices."""
    names = ("ours", "gpu", "<img src=x onerror=alert(7)>", "slow_peer", "fast_peer")
    fast_project.run("20260101-000000-small", [
        fast_project.record(arm, 1e6 * (index + 1) * n ** (0.1 if index < 3 else 0.2), device,
                            point={"n": n, "threads": threads}, cache=cache)
        for device, cache in (("cpu", None), ("cuda:0", "cold")) for n in (2**10, 2**20, 2**24)
        for threads in (1, "all") for index, arm in enumerate(names)
    ])
    page = Watched(browser, site.build(fast_project.root, find_runs(fast_project.root), fast_project.root / "r").parent)
    yield page
    page.context.close()
    assert page.errors == []
    assert page.strays == []


@pytest.fixture()
def watched(browser, built) -> Iterator[Watched]:
    page = Watched(browser, built)
    yield page
    page.context.close()
    assert page.errors == []
    assert page.strays == []


def test_filters_narrow_the_index_and_the_hash_restores_them(watched):
    page = watched.open("index.html")
    assert len(watched.shown()) == 4
    page.get_by_role("button", name="training 3").click()
    assert len(watched.shown()) == 3
    page.get_by_role("button", name="supported").first.click()
    assert watched.shown() == ["Low-rank <training>"]
    assert "family=training" in page.url and "verdict=supported" in page.url
    page.reload()
    assert watched.shown() == ["Low-rank <training>"]
    assert page.get_by_role("button", name="training 3").get_attribute("aria-pressed") == "true"
    page.get_by_role("button", name="training 3").click()
    page.get_by_role("button", name="supported").first.click()
    assert len(watched.shown()) == 4 and "#" not in page.url


def test_search_takes_words_of_titles_claims_and_statements(watched):
    page = watched.open("index.html")
    page.keyboard.press("/")
    page.keyboard.type("passes beat")
    assert watched.shown() == ["A faster sum"] and page.locator("#found").inner_text() == "1 of 4 papers"
    assert page.locator(".family:visible").count() == 1
    page.locator("#q").fill("no such paper")
    assert watched.shown() == [] and page.locator("#nothing").is_visible()
    page.get_by_role("button", name="Show all").click()
    assert len(watched.shown()) == 4
    watched.open("failures.html")
    watched.open("index.html#q=2403.00002")
    assert watched.shown() == ["Low-rank <training>"] and page.locator("#q").input_value() == "2403.00002"


def test_the_keyboard_reaches_a_claim(watched):
    page = watched.open("index.html")
    claim = page.locator(".claim").first
    claim.focus()
    assert claim.locator(".tip").is_visible()
    page.keyboard.press("Enter")
    page.wait_for_url("**/papers/sums/two_pass.html#out_of_cache_speedup")
    assert page.locator("article#out_of_cache_speedup").is_visible()


def drawn(page, selector: str) -> list[dict[str, int]]:
    page.locator(selector).first.scroll_into_view_if_needed()
    page.wait_for_selector(f"{selector} svg.main-svg .scatterlayer path.js-line")
    return page.eval_on_selector_all(
        f"{selector} .plot",
        """nodes => nodes.map(node => ({lines: node.querySelectorAll('.scatterlayer path.js-line').length,
            width: Math.round(node.querySelector('.scatterlayer').getBoundingClientRect().width)}))""",
    )


def test_speed_plots_are_drawn_and_switch_views(watched):
    page = watched.open("papers/sums/two_pass.html")
    found = drawn(page, "#experiment-throughput")
    assert len(found) == 2
    assert all(item["lines"] == 5 and item["width"] > 100 for item in found)  # four arms and the roofline
    page.get_by_role("button", name="Bandwidth").click()
    assert page.locator(".plot").first.get_attribute("data-view") == "Bandwidth"
    figure = page.locator("#experiment-throughput .plot").first
    assert "memory, measured: 18\u202fGB/s – 21\u202fGB/s" in figure.text_content()
    assert set(figure.locator(".annotation").all_text_contents()) == {"two_pass", "three_pass", "online", "copy"}


def test_curves_and_dots_are_drawn(watched):
    page = watched.open("papers/training/lowrank.html")
    assert drawn(page, "#experiment-pretrain")[0]["lines"] == 2
    assert drawn(page, "#experiment-ranks")[0]["lines"] == 1
    row = page.locator(".dots-row .strip").first
    assert row.bounding_box()["width"] > 200 and row.locator("circle").count() == 5


def test_hostile_names_do_nothing(watched):
    for name in ("index.html", "papers/training/hostile.html", "failures.html"):
        page = watched.open(name)
        assert page.locator("main img").count() == 0
    assert watched.open("papers/training/hostile.html").locator("h1").inner_text() == "<script>alert(1)</script>"


def test_the_fast_paths_are_reached_from_the_index_and_drawn(watched):
    page = watched.open("index.html")
    page.get_by_role("link", name="Fast paths").first.click()
    page.wait_for_url("**/fast-paths.html")
    found = drawn(page, "#op-sum")
    assert len(found) == 2 and all(item["lines"] == 2 and item["width"] > 100 for item in found)
    bars = page.locator("#op-sum .plot").first.locator(".errorbar path.yerror")
    assert bars.count() == 14 and bars.first.bounding_box()["height"] > 0
    page.get_by_text("Limits, errors, memory and first calls").click()
    assert page.get_by_role("columnheader", name="tolerance").is_visible()
    assert page.get_by_text("relative error 0.3 is above the tolerance 1e-06").first.is_visible()
    page.get_by_text("Against each peer").click()
    assert page.get_by_role("cell", name="faster").count() > 28
    page.get_by_role("link", name="run 20260102-030405-small").click()
    page.wait_for_url("**/papers/sums/two_pass.html#experiment-throughput")


@pytest.mark.parametrize("width", [390, 1200])
def test_wide_tables_scroll_inside_and_words_stand_beside_colours(fast, width):
    fast.page.set_viewport_size({"width": width, "height": 800})
    page = fast.open("fast-paths.html")
    assert page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for node in page.locator("summary").all():
        node.click()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if width == 390:
        table = page.locator(".scroll").first
        assert table.evaluate("node => node.scrollWidth > node.clientWidth")
        first = page.locator(".fast-table th[scope=row]").first
        before = first.bounding_box()["x"]
        table.evaluate("node => node.scrollBy({left: 200, behavior: 'instant'})")
        assert abs(first.bounding_box()["x"] - before) < 1  # the point stays in view
    assert page.locator("#op-sum .plot-panel").count() == 4  # two devices, each with one thread and with all
    page.locator("#op-sum .plot").last.scroll_into_view_if_needed()
    page.wait_for_selector("#op-sum .plot-panel:last-child path.js-line")
    for mark in page.locator(".compared").all():
        assert mark.inner_text().strip("▲▼=◐ ") in ("faster", "slower", "same", "inconclusive", "over")


def test_failures_filter_by_status(watched):
    page = watched.open("failures.html")
    assert page.locator(".failure:visible").count() == 2
    page.get_by_role("button", name="wrong").click()
    assert page.locator(".failure:visible").count() == 1
    page.get_by_text("stderr, last lines").click()
    assert page.get_by_text("nothing <really> happened").is_visible()


def test_a_stale_paper_is_marked(watched, root):
    (root / "suites/sums/two_pass/more.py").write_text("Y = 2\n")
    watched.out = site.build(root, find_runs(root), root / "report").parent
    page = watched.open("index.html")
    assert page.locator(".stale-note:visible").inner_text().startswith("stale: code changed")
    page = watched.open("papers/sums/two_pass.html")
    assert page.locator(".stale-banner").is_visible() and page.locator(".badge.stale").count() == 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_both_schemes_and_a_phone(browser, root, another_run, scheme, width):
    another_run(root, "20251230-030405-small", 1767000000.0)
    out = site.build(root, find_runs(root), root / "report").parent
    watched = Watched(browser, out, color_scheme=scheme)
    watched.page.set_viewport_size({"width": width, "height": 800})
    try:
        papers = ("papers/sums/two_pass.html", "papers/training/lowrank.html")
        for name in ("index.html", *papers, "fast-paths.html", "failures.html"):
            page = watched.open(name)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
            assert contrast(page, "body") >= 7 and contrast(page, "p.muted, .lead") >= 4.5
        page = watched.open("papers/sums/two_pass.html")
        drawn(page, "#experiment-throughput")
        assert page.locator("#experiment-throughput .legend").is_visible() == (width == 400)
        page.get_by_role("button", name="Scheme: auto").click()
        assert page.evaluate("document.documentElement.dataset.scheme") == "light"
    finally:
        watched.context.close()
    assert watched.errors == [] and watched.strays == []


def contrast(page, selector: str) -> float:
    """The WCAG ratio of a text's colour to the page's background."""
    ink, ground = page.evaluate(
        "s => [getComputedStyle(document.querySelector(s)).color, getComputedStyle(document.body).backgroundColor]",
        selector,
    )

    def luminance(colour: str) -> float:
        parts = [int(item) / 255 for item in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [item / 12.92 if item <= 0.04045 else ((item + 0.055) / 1.055) ** 2.4 for item in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(ink), luminance(ground)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_a_dark_page_prints_on_white(browser, built):
    watched = Watched(browser, built, color_scheme="dark")
    try:
        page = watched.open("papers/sums/two_pass.html")
        page.emulate_media(media="print", color_scheme="dark")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert contrast(page, "h1") > 15 and not page.locator("header.top").is_visible()
        assert len(drawn(page, "#experiment-throughput")) == 2
        line = page.locator("#experiment-throughput path.js-line").first
        assert line.evaluate("node => getComputedStyle(node).stroke") == "rgb(20, 103, 179)"  # the light scheme's blue
    finally:
        watched.context.close()
    assert watched.errors == [] and watched.strays == []
