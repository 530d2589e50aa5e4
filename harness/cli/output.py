"""How the commands print: consoles, verdict colours, numbers, JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

VERDICTS = ("supported", "refuted", "inconclusive", "not run")
_STYLES = {"supported": "green", "refuted": "red", "inconclusive": "yellow", "not run": "dim"}


def console() -> Console:
    """Standard output; wide when it is not a terminal, so that piped tables are not cut."""
    made = _console()
    return made if made.is_terminal else _console(width=200)


def error_console() -> Console:
    """Standard error."""
    return _console(stderr=True)


def _console(stderr: bool = False, width: int | None = None) -> Console:
    # Names such as throughput[n=4096] are text here, never markup.
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def verdict_text(verdict: str | None) -> Text:
    """The verdict word in its colour; a dash where there is none."""
    return Text(verdict or "-", style=_STYLES.get(verdict or "", ""))


def tally(verdicts: Iterable[str | None]) -> Text:
    """``3 supported, 1 not run``; a dash where nothing was judged."""
    counts = Counter(verdict for verdict in verdicts if verdict)
    parts = [Text(f"{counts[word]} {word}", style=_STYLES[word]) for word in VERDICTS if counts[word]]
    return Text(", ").join(parts) if parts else Text("-")


def harmless(text: str) -> str:
    """``text`` without control characters: names and reasons may be anyone's, and a terminal obeys some."""
    return "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in text)


def number(value: float | None) -> str:
    """Four significant digits; a dash for None."""
    return "-" if value is None else f"{value:.4g}"


def seconds(value: float) -> str:
    """A duration for people: ``0.4 s``, ``12 s``, ``3 min 20 s``, ``1 h 05 min``."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def shown(path: Path) -> Path:
    """``path`` from the current folder where it lies below it, else whole."""
    here = Path.cwd()
    return path.resolve().relative_to(here) if path.resolve().is_relative_to(here) else path


def print_json(value: Any) -> None:
    """One indented JSON document on standard output; numbers that JSON does not have become null."""
    from harness.records.store import finite

    print(json.dumps(finite(value), indent=2, allow_nan=False))
