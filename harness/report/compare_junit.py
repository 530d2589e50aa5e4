"""A comparison as JUnit XML: one test case for each gating comparison."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from harness.judge.comparison import REASONS, Comparison, Outcome
from harness.report.compare_words import (
    basis_text,
    change_text,
    headline,
    interval_text,
    plain,
    where_text,
    worst_first,
    zone_text,
)

# What XML 1.0 has no way to write, surrogates without their other half included.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def render(outcome: Outcome) -> str:
    """The XML text. Bad words fail, what could not be decided is skipped; an alarm of the canary is an error."""
    cases = worst_first([item for item in outcome.comparisons if item.gates])
    failed = sum(item.is_bad for item in cases)
    skipped = sum(not item.is_bad and item.verdict in ("inconclusive", "incomparable") for item in cases)
    suite = ElementTree.Element("testsuite", {
        "name": _text(f"litmus: {plain(outcome.base)} to {plain(outcome.head)}"),
        "tests": str(len(cases) + outcome.canary_failed), "failures": str(failed), "skipped": str(skipped),
        "errors": str(int(outcome.canary_failed)), "time": f"{outcome.seconds:.3f}",
    })
    for item in cases:
        _case(suite, item)
    if outcome.canary_failed:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "litmus", "name": "canary"})
        ElementTree.SubElement(case, "error", {"type": "canary", "message": _text("; ".join(outcome.alarms))})
    if outcome.alarms or outcome.notes:
        said = [headline(outcome), *outcome.alarms, *outcome.notes]
        ElementTree.SubElement(suite, "system-out").text = _text("\n".join(said))
    ElementTree.indent(suite)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"


def _case(suite: ElementTree.Element, item: Comparison) -> None:
    name = plain(f"{where_text(item)} {item.arm} {item.metric}", 300)
    classname = plain(item.suite).replace("/", ".")
    case = ElementTree.SubElement(suite, "testcase", {"classname": _text(classname), "name": _text(name)})
    message = (f"{item.verdict}: {change_text(item)} [{interval_text(item)}], {basis_text(item)}, "
               f"zone {zone_text(item)} ({REASONS[item.reason]})")
    if item.is_bad:
        found = ElementTree.SubElement(case, "failure", {"type": item.reason, "message": _text(message)})
        found.text = _text(plain(item.detail, 1000)) or None
    elif item.verdict in ("inconclusive", "incomparable"):
        text = message if item.verdict == "inconclusive" else REASONS[item.reason]
        detail = f"; {plain(item.detail, 300)}" if item.detail else ""
        ElementTree.SubElement(case, "skipped", {"message": _text(f"{item.reason}: {text}{detail}")})


def _text(value: str) -> str:
    return _NOT_XML.sub("�", value)
