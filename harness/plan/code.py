"""Which code a suite's numbers depend on: its own files and what they import here. Nothing is imported to find out."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_PROJECT_PACKAGES = ("reference", "suites")


def code_hash(root: Path, folder: Path) -> str:
    """16 hex digits over the suite's Python files and their static imports below ``reference/`` and ``suites/``."""
    return _hash(root, code_files(root, folder))


def file_hash(root: Path, path: Path) -> str:
    """The same over one Python file of the project and its static imports."""
    return _hash(root, _closure(root, [path]))


def _hash(root: Path, files: set[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        state = path.stat()
        normal = _normal(path, (state.st_mtime_ns, state.st_size))
        digest.update(str(path.relative_to(root)).encode() + b"\0" + normal + b"\0")
    return digest.hexdigest()[:16]


def code_files(root: Path, folder: Path) -> set[Path]:
    """The files behind :func:`code_hash`; kernels in other languages beside an imported module count too."""
    return _closure(root, folder.glob("*.py"))


def _closure(root: Path, files: Iterable[Path]) -> set[Path]:
    todo = list(files)
    seen: set[Path] = set()
    while todo:
        path = todo.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        seen.update(path.parent.glob("*.cu"))
        todo += _project_imports(root, path)
    return seen


def library_modules(root: Path, folder: Path) -> set[str]:
    """What the files behind :func:`code_hash` import from elsewhere, dotted; attributes that look like modules too."""
    found: set[str] = set()
    for path in code_files(root, folder):
        with suppress(SyntaxError):
            found.update(_imported(ast.parse(path.read_bytes()), path, root))
    return {name for name in found if name.split(".")[0] not in (*_PROJECT_PACKAGES, "harness")}


@lru_cache(maxsize=4096)
def _normal(path: Path, state: tuple[int, int]) -> bytes:
    """The file without comments and layout, so that only what can change numbers changes the hash.

    ``state`` only tells the cache when to look again.
    """
    data = path.read_bytes()
    if path.suffix != ".py":
        return data
    try:
        return ast.dump(ast.parse(data)).encode()
    except SyntaxError:
        return data


def _project_imports(root: Path, path: Path) -> list[Path]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []
    return [found for name in _imported(tree, path, root) for found in _files_of(root, name)]


def _imported(tree: ast.AST, path: Path, root: Path) -> Iterator[str]:
    package = ".".join(path.parent.relative_to(root).parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _files_of(root: Path, name: str) -> Iterator[Path]:
    parts = name.split(".")
    if parts[0] not in _PROJECT_PACKAGES:
        return
    for depth in range(1, len(parts) + 1):
        place = root.joinpath(*parts[:depth])
        yield place / "__init__.py"
        if depth == len(parts):
            yield place.with_suffix(".py")
