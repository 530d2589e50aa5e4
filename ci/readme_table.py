"""Fills README's table of verdicts from results/, between its two markers. With --check: says whether it is current."""

from __future__ import annotations

import sys
from pathlib import Path

from harness.records.store import find_runs
from harness.report import markdown

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- verdicts: begin -->", "<!-- verdicts: end -->"


def filled(readme: str, table: str) -> str:
    """``readme`` with ``table`` between the markers. Raises ValueError where they are not there once, in order."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"README.md needs {BEGIN} and then {END}, each once")
    head, _, rest = readme.partition(BEGIN)
    return f"{head}{BEGIN}\n\n{table.strip()}\n\n{END}{rest.partition(END)[2]}"


def main() -> int:
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    wanted = filled(readme, markdown.table(ROOT, find_runs(ROOT)))
    if wanted == readme:
        print("README.md: the table of verdicts is current")
        return 0
    if "--check" in sys.argv[1:]:
        print("README.md: the table of verdicts is not what results/ says; fix it with: make readme-table")
        return 1
    path.write_text(wanted, encoding="utf-8")
    print("README.md: the table of verdicts was brought up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
