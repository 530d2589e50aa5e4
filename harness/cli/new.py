"""``litmus new``: a suite's skeleton."""

from __future__ import annotations

import keyword
import re
from pathlib import Path
from typing import Annotated

import typer

from harness.cli.skeleton import skeleton
from harness.declare.catalog import find_root
from harness.errors import LitmusError


def new(name: Annotated[str, typer.Argument(help="FAMILY/SLUG, both lower-case Python names.")]) -> None:
    """Write the skeleton of a suite: card, functions, reference method. It is valid and its claims can fail.

    \b
    Examples:
      litmus new softmax/sparsemax
      litmus validate sparsemax
    """
    family, slug = _names(name)
    root = find_root()
    files = skeleton(family, slug)
    for path in files:
        if (root / path).exists():
            raise LitmusError("the file is there already, and is left as it is", where=root / path,
                              expected="a new name", next_step="choose another slug, or edit that file")
    for package in ("suites", "reference", "reference/methods", f"reference/methods/{family}"):
        if not (root / package / "__init__.py").exists():
            files[Path(package, "__init__.py")] = ""
    for path, text in files.items():
        _write(root / path, text)
        print(f"wrote {path}")
    print(f"\nnext: litmus validate {slug}\nthen put the paper in place of the placeholder, see docs/adding-a-suite.md")


def _names(name: str) -> tuple[str, str]:
    match = re.fullmatch(r"([a-z][a-z0-9_]*)/([a-z][a-z0-9_]*)", name)
    if not match or keyword.iskeyword(match.group(1)) or keyword.iskeyword(match.group(2)):
        near = re.sub(r"\W+", "_", name.rpartition("/")[2].lower()).strip("_") or "slug"
        raise LitmusError("not a suite's name", where="the command line", key="FAMILY/SLUG", value=name,
                          expected="two lower-case Python names with a slash between, such as softmax/sparsemax",
                          next_step=f"try: litmus new FAMILY/{near}")
    return match.group(1), match.group(2)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LitmusError("cannot write the file", where=path, value=error.strerror,
                          expected="a project folder that can be written",
                          next_step="check the folder's permissions and the space left") from error
