"""What an image installs, as pip's requirements: the project's dependencies, and the extras that suites use.

    ci/docker/requirements.py cpu|cuda
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = {"cpu": ("peers",), "cuda": ("peers", "gpu")}


def requirements(kind: str) -> list[str]:
    """Torch by its exact version first: an open requirement would take another build than the tested one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    torch = [line for line in pinned if line.startswith("torch==")]
    extras = [text for extra in EXTRAS[kind] for text in project["optional-dependencies"][extra]]
    return [*torch, *(text for text in project["dependencies"] if not text.startswith("torch")), *extras]


if __name__ == "__main__":
    sys.stdout.write("\n".join(requirements(sys.argv[1])) + "\n")
