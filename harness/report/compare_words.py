"""What all renderings of a comparison share: the order, the counts, the headline, numbers and harmless names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from harness.judge.comparison import BAD, GOOD, Comparison, Outcome

WORDS = ("slower", "worse", "faster", "better", "same", "inconclusive", "incomparable")
LONGEST_NAME = 120
_CHANGED = (*BAD, *GOOD)


def worst_first(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """What fails first, then other bad words, good ones, inconclusive, incomparable, same; larger changes first."""
    return sorted(comparisons, key=lambda item: (_rank(item), -_size(item), item.suite, item.experiment,
                                                    item.arm, item.metric))


def _rank(item: Comparison) -> int:
    if item.is_bad:
        return (0 if item.reason == "head_status" else 1) + (0 if item.gates else 2)
    order = {**dict.fromkeys(GOOD, 4), "inconclusive": 5, "incomparable": 6, "same": 7}
    return order[item.verdict]


def _size(item: Comparison) -> float:
    """How many half widths of the zone the change is; infinite where it has no number."""
    if item.change is None or math.isnan(item.change):
        return math.inf
    return abs(item.change) / max(item.threshold, 1e-12)


def is_change(item: Comparison) -> bool:
    """Whether a reader should see it without unfolding anything: it moved, or the head lost it."""
    return item.verdict in _CHANGED or item.is_bad


def counts(comparisons: Sequence[Comparison]) -> str:
    """``2 slower, 1 faster, 30 same, 3 inconclusive, 2 incomparable (2 card_version)``; zeros left out."""
    words: Counter[str] = Counter(item.verdict for item in comparisons)
    parts = []
    for word in WORDS:
        if words[word]:
            known = word in ("inconclusive", "incomparable")
            reasons = Counter(item.reason for item in comparisons if item.verdict == word) if known else Counter[str]()
            why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
            parts.append(f"{words[word]} {word}" + (f" ({why})" if why else ""))
    return ", ".join(parts) or "nothing to compare"


def headline(outcome: Outcome) -> str:
    """One sentence: what the exit code says, and how many gating comparisons it rests on."""
    gating = [item for item in outcome.comparisons if item.gates]
    bad = Counter(item.verdict for item in gating if item.verdict in BAD)
    lost = sum(item.reason == "head_status" for item in gating)
    undecided = sum(item.verdict == "inconclusive" for item in gating)
    decided = sum(item.verdict != "incomparable" for item in gating)
    of = f"of {decided} gating comparison{'' if decided == 1 else 's'}"
    tail = f"; {undecided} inconclusive" if undecided else ""
    if lost:
        return f"The head no longer finishes {lost} of what the base finished{tail}."
    if outcome.canary_failed:
        return "Undecided: equal code did not take equal time on this machine meanwhile."
    if outcome.exit_code == 3:
        return "Nothing could be compared."
    if bad:
        return f"Regression: {', '.join(f'{count} {word}' for word, count in bad.most_common())} {of}{tail}."
    if decided == 0:
        return "Nothing here gates; what was compared is below."
    return f"No regression in {decided} gating comparison{'' if decided == 1 else 's'}{tail}."


def change_text(item: Comparison) -> str:
    """``+5.2 %`` for relative changes, ``+0.0123`` for others, a dash for none."""
    return "–" if item.change is None else _signed(item.change, item.relative)


def interval_text(item: Comparison) -> str:
    """``+4.1 % … +6.0 %``; a dash where there is no interval."""
    if item.low is None and item.high is None:
        return "–"
    low = "−∞" if item.low is None else _signed(item.low, item.relative)
    high = "∞" if item.high is None else _signed(item.high, item.relative)
    return f"{low} … {high}"


def zone_text(item: Comparison) -> str:
    """``±1 %``: the half width of the zone of "the same"; a dash where nothing was measured."""
    if item.verdict == "incomparable":
        return "–"
    return f"±{100 * item.threshold:.3g} %" if item.relative else f"±{item.threshold:.3g}"


def basis_text(item: Comparison) -> str:
    """``8 seeds``, ``1 process``: what the interval rests on; a dash for nothing."""
    if item.n == 0:
        return "–"
    plural = {"process": "processes"}.get(item.unit, f"{item.unit}s")
    return f"{item.n} {item.unit if item.n == 1 else plural}"


def where_text(item: Comparison) -> str:
    """Suite, experiment and point, harmless and short."""
    point = ",".join(f"{axis}={value}" for axis, value in item.point.items())
    device = "" if item.device == "cpu" else f" @{item.device}"
    return plain(f"{item.suite}:{item.experiment}" + (f"[{point}]" if point else "") + device)


def plain(text: object, limit: int = LONGEST_NAME) -> str:
    """``text`` on one line without control or direction characters, cut to ``limit``: names may come from anyone."""
    cut = str(text)[: 4 * limit]
    flat = " ".join("".join(char if char.isprintable() else " " for char in cut).split())
    return flat if len(flat) <= limit and len(cut) == len(str(text)) else flat[: limit - 1] + "…"


def _signed(value: float, relative: bool) -> str:
    if math.isinf(value):
        return "+∞" if value > 0 else "−∞"
    shown = f"{100 * value:+.3g} %" if relative else f"{value:+.4g}"
    return shown.replace("-", "−") if shown.startswith("-") else shown
