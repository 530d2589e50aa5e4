"""Writes constraints.txt: the version of every distribution that the project and its extras need, as installed here.

Run it in the environment whose versions are to be pinned: .venv/bin/python ci/freeze.py > constraints.txt
"""

from __future__ import annotations

import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
# torch's CUDA builds ask for the Triton that they were built with; ci/venv chooses one beside the CPU build.
LEFT_TO_TORCH = {"triton"}


def closure(requirements: list[Requirement]) -> tuple[dict[str, str], set[str]]:
    """name -> version of all that ``requirements`` need here, and the names that are not installed."""
    found: dict[str, str] = {}
    missing: set[str] = set()
    todo = [(item, "") for item in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        item, extra = todo.pop()
        if item.marker is not None and not item.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(item.name)
        if (name, frozenset(item.extras)) in seen:
            continue
        seen.add((name, frozenset(item.extras)))
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            missing.add(name)
            continue
        found[name] = Version(distribution.version).public  # without a local label such as +cpu
        for text in distribution.requires or []:
            todo += [(Requirement(text), wanted) for wanted in item.extras or {""}]
    return found, missing


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    found, missing = closure([Requirement(text) for text in texts])
    print("# Written by ci/freeze.py. pip install -c constraints.txt takes these versions.")
    print("\n".join(f"{name}=={version}" for name, version in sorted(found.items())
                    if name not in LEFT_TO_TORCH))
    if missing:
        print("not installed here, so not pinned: " + ", ".join(sorted(missing)), file=sys.stderr)


if __name__ == "__main__":
    main()
