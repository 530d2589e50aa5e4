"""The report as a folder of pages that open from disk, offline: an index, papers by run, fast paths, failures."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from harness import __version__
from harness.errors import LitmusError
from harness.judge.history import History
from harness.judge.side_by_side import SideBySide, estimate_text
from harness.records.allowance import SLACK_BYTES, SLACK_SHARE
from harness.records.store import Run
from harness.records.table import DEFAULT_COLUMNS, SAMPLE_COLUMNS
from harness.report import numbers, words
from harness.report.failures import Failure, failures
from harness.report.fast_paths import fast_paths
from harness.report.history import has_history, parts
from harness.report.lines import Line, Result, date_text, lines
from harness.report.paper import PaperPage, paper_page

if TYPE_CHECKING:
    import pandas as pd

GENERATOR = "litmus-harness"
MARKER = ".litmus-report"
ASSETS = ("site.css", "site.js", "filter.js", "plots.js")
COLUMNS = (*DEFAULT_COLUMNS, *SAMPLE_COLUMNS, "stderr_tail")


def build(root: Path, runs: Sequence[Run], out: Path, table: SideBySide | None = None) -> Path:
    """Write the site for ``runs`` into ``out``, with a page for a ``table`` of them, and return the path of its index.

    Every suite of the project has a page; its newest judged run speaks for it, older runs have pages of their own.
    Raises LitmusError where ``out`` holds something that Litmus did not write, or cannot be written.
    """
    _refuse_foreign(out)
    found = lines(root, runs)
    try:
        _clear(out)
        writer = _Writer(out)
        ops = fast_paths(found)
        writer.templates.globals.update(ops=[op.name for op in ops], machines_page=table is not None)
        if ops:
            writer.page("fast-paths.html", "fast-paths.html.j2", found=ops)
        if table is not None:
            links = {(line.suite, str(result.run.info.machine["key"])): paper_path(line.suite, result, line)
                     for line in found for result in line.results
                     if table.sources.get((line.suite, str(result.run.info.machine["key"]))) is result.run}
            writer.page("machines.html", "machines.html.j2", table=table, links=links)
        past = History({line.suite: line.card for line in found if line.card})
        failed = _write_papers(root, found, writer, past)
        for line in filter(has_history, found):
            own = parts(line, past.series(line.suite))
            writer.page(history_path(line.suite), "history.html.j2", line=line, sections=own)
        writer.page("failures.html", "failures.html.j2", groups=failed, total=sum(item.count for item in failed),
                    statuses=_status_counts(failed))
        writer.page("index.html", "index.html.j2", **_index(found, runs), failed=failed)
    except OSError as error:
        raise LitmusError("cannot write the report", where=out, value=error.strerror, key="out",
                          expected="a folder that can be written", next_step="choose another --out") from error
    return out / "index.html"


def paper_path(suite: str, result: Result | None, line: Line) -> str:
    """Where the page of a suite in a run is, below the site's folder."""
    if result is None or result is line.newest:
        return f"papers/{suite}.html"
    return f"papers/{suite}@{result.run.machine}@{result.run.id}.html"


def history_path(suite: str) -> str:
    """Where the history of a suite is, below the site's folder."""
    return f"history/{suite}.html"


class _Writer:
    """Renders templates into the folder; ``up`` leads from a page back to the site's root."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.templates = jinja2.Environment(
            loader=jinja2.PackageLoader("harness.report", "templates"), autoescape=True,
            undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        )
        self.templates.filters.update(
            num=numbers.data, unit=numbers.with_unit, axis=numbers.axis_value, point=numbers.point_text,
            estimate=estimate_text, date=date_text, duration=numbers.seconds_text,
        )
        self.templates.globals.update(
            generator=GENERATOR, version=__version__, marks=words.MARKS, verdicts=words.VERDICTS, paper_path=paper_path,
            history_path=history_path, has_history=has_history, digits=numbers.digits_for,
            slack=(SLACK_BYTES, SLACK_SHARE))
        _copy_assets(out / "assets")

    def page(self, name: str, template: str, **context: Any) -> None:
        """Render ``template`` to the file ``name`` below the folder."""
        path = self.out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * name.count("/")
        path.write_text(self.templates.get_template(template).render(up=up, **context), encoding="utf-8")


def _write_papers(root: Path, found: Sequence[Line], writer: _Writer, past: History) -> list[Failure]:
    """Write every paper's pages, one run's records in memory at a time; returns all failures, newest run first.

    Runs of suites that have a history go into ``past``.
    """
    failed: list[Failure] = []
    for run, pairs in _by_run(found):
        records = _records(run)
        own = failures(run, records) if records is not None else []
        failed += own
        lasting = [line.suite for line, _ in pairs if has_history(line)]
        if records is not None and lasting:
            past.add(run, records, lasting)
        by_suite = _split(records)
        for line, result in pairs:
            page = paper_page(root, line, result, by_suite.get(line.suite),
                              [item for item in own if item.suite == line.suite])
            _write_paper(page, writer)
    for line in found:
        if not line.results:
            _write_paper(paper_page(root, line, None, None, ()), writer)
    return failed


def _write_paper(page: PaperPage, writer: _Writer) -> None:
    name = paper_path(page.line.suite, page.result, page.line)
    writer.page(name, "paper.html.j2", page=page, line=page.line, result=page.result)


def _by_run(found: Sequence[Line]) -> Iterator[tuple[Run, list[tuple[Line, Result]]]]:
    runs: dict[Path, tuple[Run, list[tuple[Line, Result]]]] = {}
    for line in found:
        for result in line.results:
            runs.setdefault(result.run.folder, (result.run, []))[1].append((line, result))
    yield from sorted(runs.values(), key=lambda item: (-item[0].info.started_at, item[0].id))


def _records(run: Run) -> pd.DataFrame | None:
    """The run's records, None for a run that stopped before it wrote any."""
    from harness.records.table import RECORDS_FILE

    return run.records(COLUMNS) if (run.folder / RECORDS_FILE).is_file() else None


def _split(records: pd.DataFrame | None) -> dict[str, pd.DataFrame]:
    if records is None:
        return {}
    return {str(suite): own for suite, own in records.groupby("suite", sort=False, observed=True)}


def _index(found: Sequence[Line], runs: Sequence[Run]) -> dict[str, Any]:
    families: dict[str, list[Line]] = {}
    for line in found:
        families.setdefault(line.family, []).append(line)
    totals = Counter(verdict for line in found for _, _, verdict, _ in line.claims)
    machines = {line.newest.run.machine: line.newest.run.info.machine for line in found if line.newest}
    return {"families": families, "papers": len(found), "totals": totals, "claims": sum(totals.values()),
            "machines": machines, "runs": sorted(runs, key=lambda run: -run.info.started_at)}


def _status_counts(failed: Sequence[Failure]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for item in failed:
        counts[item.status] += item.count
    return counts


def _copy_assets(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    ours, plotly = files("harness.report") / "templates", files("plotly") / "package_data" / "plotly.min.js"
    for name in ASSETS:
        (folder / name).write_bytes((ours / name).read_bytes())
    (folder / "plotly.min.js").write_bytes(plotly.read_bytes())


def _refuse_foreign(out: Path) -> None:
    """A report replaces a report and nothing else."""
    if out.exists() and not out.is_dir():
        raise LitmusError("the report's folder is a file", where=out, key="out", expected="a folder",
                          next_step="choose another --out")
    ours = (out / MARKER).is_file()
    if out.is_dir() and any(out.iterdir()) and not ours:
        raise LitmusError("the report's folder holds other files", where=out, key="out",
                          expected="an empty folder, or one with an earlier report",
                          next_step="choose another --out, or empty this one")


def _clear(out: Path) -> None:
    """Remove an earlier report's pages, so that no page of a suite that is gone stays behind."""
    for name in ("papers", "history", "assets"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    for name in ("fast-paths.html", "machines.html"):
        (out / name).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
