"""Verdicts as Markdown: the README's table of papers, and a full text with estimates and reasons. Deterministic."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.records.store import Run
from harness.report.compare_words import plain
from harness.report.fast_paths import Block, fast_paths
from harness.report.fast_rows import ArmResult, FastRow
from harness.report.lines import Line, lines
from harness.report.numbers import digits_for, point_text, with_unit
from harness.report.words import MARKS, VERDICTS, question_of

LEGEND = " · ".join(f"{MARKS[verdict]} {verdict}" for verdict in VERDICTS)

_LONGEST = 2000

FAST_LEGEND = """# Fast paths

In each cell: time per call; the best peer's time ÷ ours with its 95 % interval, paired round by round; the share of
the machine's limit (the arm's bytes over the measured copy bandwidth, or its FLOPs over the arithmetic ceiling,
whichever takes longer). Shares above 100 % are possible: the ceilings are lower bounds, and inputs may fit a cache."""


def table(root: Path, runs: Sequence[Run]) -> str:
    """Papers by family with each claim's mark, and the run that each line comes from.

    The text depends on cards and stored verdicts alone, not on the code as it is now: equal inputs give equal text.
    """
    found = lines(root, runs)
    rows = [
        f"| {_text(line.family)} | {_title(line)} | {_claims(line)} | {_source(line)} |"
        for line in found
    ]
    head = ["| family | paper | claims | from run |", "|---|---|---|---|"]
    return "\n".join([_totals(found), "", *head, *rows, ""])


def report(root: Path, runs: Sequence[Run]) -> str:
    """The table, then every claim of every suite that was run: verdict, why, estimate, rule and n; then fast paths."""
    found = lines(root, runs)
    parts = ["# Verdicts", "", table(root, runs)]
    for line in found:
        if line.newest is not None:
            parts += _paper(line)
    ops = fast_paths(found)
    parts += [FAST_LEGEND, ""] if ops else []
    for op in ops:
        parts += [text for block in op.blocks for text in _block(op.name, block)]
    return "\n".join(parts).rstrip("\n") + "\n"


def _totals(found: Sequence[Line]) -> str:
    counts = Counter(verdict for line in found for _, _, verdict, _ in line.claims)
    shown = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    papers, claims = len(found), counts.total()
    return (f"{papers} paper{'s' if papers != 1 else ''}, {claims} claim{'s' if claims != 1 else ''}: {shown}.\n\n"
            f"{LEGEND}")


def _title(line: Line) -> str:
    paper = line.card.paper if line.card else None
    title = f"[{_text(line.title)}](suites/{line.suite})" if line.entry else _text(line.title)
    year = f", {paper.year}" if paper else ""
    if paper is None or not paper.arxiv:
        return title + year
    return f"{title}{year}, [arXiv {_text(paper.arxiv)}](https://arxiv.org/abs/{quote(paper.arxiv)})"


def _claims(line: Line) -> str:
    return "<br>".join(f"{MARKS[verdict]} {_text(name.replace('_', ' '))}" for name, _, verdict, _ in line.claims)


def _source(line: Line) -> str:
    result = line.newest
    if result is None:
        return "never run"
    return f"{_text(result.run.info.profile)}, {_text(result.run.machine)}, {_text(result.run.id)}"


def _paper(line: Line) -> list[str]:
    result = line.newest
    assert result is not None  # report() asks for none else
    verdicts = {verdict["claim"]: verdict for verdict in result.verdicts}
    text = [f"## {_text(line.title)}", "", f"`{line.suite}` from {_source(line)}."]
    if result.stale:
        text.append(f"Stale: {_text(result.stale)}.")
    text.append("")
    for name, statement, verdict, reason in line.claims:
        text += [f"- **{MARKS[verdict]} {verdict}**: {_text(statement)} ({_code(name)})", f"  - why: {_text(reason)}"]
        text += [f"  - {_part(part, line, name)}" for part in verdicts.get(name, {}).get("parts", [])]
    return [*text, ""]


def _part(part: dict[str, Any], line: Line, claim: str) -> str:
    place = ", ".join(item for item in (part["id"] if part["id"] != claim else "", point_text(part["point"])) if item)
    head = f"{_text(place)}: " if place else ""
    rule = f"supported if {_code(part['supported_if'])}, refuted if {_code(part['refuted_if'])}"
    estimate = part["estimate"]
    if estimate is None or estimate["point"] is None:
        return f"{head}no estimate; {rule}"
    low = -math.inf if estimate["low"] is None else estimate["low"]
    high = math.inf if estimate["high"] is None else estimate["high"]
    unit, digits = _unit(part, line, claim), digits_for(estimate["point"], low, high)
    point, low_text, high_text = (with_unit(value, unit, digits) for value in (estimate["point"], low, high))
    return (f"{head}{point} [{low_text}, {high_text}], {100 * estimate['level']:.3g} % interval, "
            f"n = {estimate['n']}; {rule}")


def _block(op: str, block: Block) -> list[str]:
    """One experiment as a table: a row per point and device, a column per arm of ours."""
    text = [f"## {_text(op)}: {_text(block.line.title)}, {_text(block.name.replace('_', ' '))}", ""]
    for source in block.sources:
        info, run = source.run.info, source.run
        state = f" Stale: {_text(source.result.stale)}." if source.result.stale else ""
        noise = f" {_text(source.canary.fault)}." if source.canary.fault else ""
        place = ", ".join(map(_text, (info.profile, run.machine, run.id)))
        text += [f"{_text(source.where)}: {place}.{state}{noise}", ""]
    if block.arms:
        names = ["point", "device", "best peer", *block.arms]
        text += ["| " + " | ".join(map(_text, names)) + " |", "|---" * len(names) + "|"]
        text += [_fast_row(block, row) for row in block.rows]
        text.append("")
    for absence in block.absences:
        text += [f"Without a result: {_text(absence.name)} ({_text('; '.join(absence.endings))}).", ""]
    return text


def _fast_row(block: Block, row: FastRow) -> str:
    peer = row.best_peer
    best = f"{with_unit(peer.speed.time_ns[1], 'ns')} {_text(peer.arm)}" if peer and peer.speed else "none has a result"
    cells = [_text(point_text(dict(row.point))), _text(block.where(row)), best]
    return "| " + " | ".join([*cells, *(_arm(row.of(arm)) for arm in block.arms)]) + " |"


def _arm(item: ArmResult | None) -> str:
    if item is None:
        return "no record"
    if item.speed is None:
        return _text(f"{item.status}: {item.reason}")
    parts = [with_unit(item.speed.time_ns[1], "ns")]
    if item.best and item.best.ratio:
        ratio = item.best.ratio
        digits = digits_for(ratio.point, ratio.low, ratio.high)
        point, low, high = (with_unit(value, "×", digits) for value in (ratio.point, ratio.low, ratio.high))
        parts.append(f"{point} [{low}, {high}] {item.best.word}")
    elif item.best:
        parts.append(_text(item.best.refusal))
    if item.share:
        parts.append(f"{with_unit(100 * item.share.share, '%', 2)} of {item.share.binds}")
    return "; ".join(parts)


def _unit(part: dict[str, Any], line: Line, claim: str) -> str:
    if line.card is None:
        return ""
    for known in line.card.claims:
        for own in known.resolved_parts() if known.id == claim else ():
            if (own.id or claim) == part["id"]:
                return question_of(own, line.card).unit
    return ""


def _text(text: str) -> str:
    """``text`` as it is read, in a table or a list: no markup, no cell border, no line break."""
    flat = plain(text, _LONGEST)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", flat.replace("&", "&amp;").replace("<", "&lt;"))


def _code(text: str) -> str:
    """``text`` as code: on one line, without what would end it."""
    return "`" + plain(text, _LONGEST).replace("`", "'") + "`"
