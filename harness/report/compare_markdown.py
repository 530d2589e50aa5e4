"""A comparison for a pull request: the headline, alarms, what changed with the worst first, a fold for the rest."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.judge.comparison import REASONS, Comparison, Outcome
from harness.report.compare_words import (
    basis_text,
    change_text,
    counts,
    headline,
    interval_text,
    is_change,
    plain,
    where_text,
    worst_first,
    zone_text,
)

# A job summary holds 1 MiB, a comment 65,536 characters; rows are at most some 700 characters long.
_MOST_CHANGED, _MOST_FOLDED = 50, 200
_SPECIAL = re.compile(r"([\\`*_\[\](){}#+!|~$@:-])")


def render(outcome: Outcome) -> str:
    """The comparison as GitHub Markdown. Names are text there: no markup, no table border, no mention of anyone."""
    parts = [f"### {'✅' if outcome.exit_code == 0 else '❌'} {escape(headline(outcome), 300)}", ""]
    parts += [f"> [!WARNING]\n> {escape(alarm, 600)}\n" for alarm in outcome.alarms]
    parts += [f"{escape(outcome.base)} → {escape(outcome.head)}: {escape(counts(outcome.comparisons), 600)}.", ""]
    parts += [f"{escape(note, 600)}\n" for note in outcome.notes]
    ordered = worst_first(outcome.comparisons)
    changed = [item for item in ordered if is_change(item)]
    rest = [item for item in ordered if not is_change(item)]
    parts += _table(changed, _MOST_CHANGED)
    if rest:
        parts += [f"<details><summary>{len(rest)} that did not change, or could not be told</summary>", "",
                  *_table(rest, _MOST_FOLDED), "</details>", ""]
    reasons = dict.fromkeys(item.reason for item in ordered)
    if reasons:
        parts += ["<details><summary>What the reasons mean</summary>", "",
                  *(f"- `{reason}`: {REASONS[reason]}" for reason in reasons), "", "</details>", ""]
    return "\n".join(parts)


def _table(rows: Sequence[Comparison], most: int) -> list[str]:
    if not rows:
        return []
    head = ["| | where | arm | metric | change | interval | n | zone | why |", "|---" * 9 + "|"]
    lines = [_row(item) for item in rows[:most]]
    more = [f"\n{len(rows) - most} more; all of them are in the JSON output."] if len(rows) > most else []
    return [*head, *lines, *more, ""]


def _row(item: Comparison) -> str:
    word = f"**{item.verdict}**" if item.is_bad and item.gates else item.verdict
    if not item.gates and item.verdict != "incomparable":
        word += " (not gating)"
    why = f"{item.reason}: {item.detail}" if item.detail else item.reason
    level = f" at {100 * item.level:.4g} %" if item.low is not None or item.high is not None else ""
    cells = [word, escape(where_text(item)), escape(item.arm), escape(item.metric), change_text(item),
             interval_text(item) + level, basis_text(item), zone_text(item), escape(why, 300)]
    return "| " + " | ".join(cells) + " |"


def escape(text: object, limit: int = 120) -> str:
    """``text`` as it is read: on one line, cut to ``limit``, every character that Markdown or HTML reads escaped."""
    safe = plain(text, limit).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe).replace("\\@", "@<!-- -->").replace("\\:", "&#58;")
