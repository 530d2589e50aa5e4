"""Files that are replaced whole or not at all, and JSON that is read only up to a size."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.errors import LitmusError

# Nothing that Litmus writes is nested deeper than ten levels; code that walks a value must not run out of stack.
DEEPEST = 40


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is flushed to disk and takes the place of ``path``.

    On any failure ``path`` stays as it was. Raises LitmusError when the folder cannot be written or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise _unwritable(path, error) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _unwritable(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> Path:
    """Write ``data`` as readable JSON, atomically. Raises ValueError for numbers that JSON does not have."""
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def own_file(path: Path) -> Path:
    """``path``, where it is a regular file of its own folder, its links followed.

    Raises FileNotFoundError where there is nothing, LitmusError where a link leads out or it is no regular file.
    """
    try:
        found = path.resolve(strict=True)
    except RuntimeError as error:  # Python 3.11's word for a loop of links
        raise FileNotFoundError(str(path)) from error
    if not found.is_relative_to(path.parent.resolve()):
        raise LitmusError("a link leads out of the folder", where=path, expected="a file of the run's own folder",
                          next_step="replace the link by the file, if you trust it")
    if not found.is_file():
        raise LitmusError("not a regular file", where=path, expected="a file written by a run",
                          next_step="check the path")
    return path


def read_json_object(path: Path, limit_bytes: int, next_step: str) -> dict[str, Any]:
    """The JSON object in ``path``, which may be anyone's.

    Raises LitmusError when it is absent, a link out of its folder, larger than the limit, nested deeper than
    :data:`DEEPEST`, or anything else.
    """
    try:
        with own_file(path).open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise LitmusError("cannot read the file", where=path, value=error.strerror,
                          expected="a file written by a run", next_step=next_step) from error
    if len(data) > limit_bytes:
        raise LitmusError("the file is too large", where=path, expected=f"at most {limit_bytes // 2**20} MiB",
                          next_step=next_step)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise LitmusError("the file is not valid JSON", where=path, value=str(error)[:200],
                          expected="a file written by a run", next_step=next_step) from error
    if not isinstance(value, dict):
        raise LitmusError("the file holds no JSON object", where=path, expected="a file written by a run",
                          next_step=next_step)
    if depth_of(value) > DEEPEST:
        raise LitmusError("the file is nested too deeply", where=path, expected=f"at most {DEEPEST} levels",
                          next_step=next_step)
    return value


def depth_of(value: Any) -> int:
    """How many lists and objects lie inside each other in a JSON value, at most; counting ends above DEEPEST."""
    level, depth = [value], 0
    while level and depth <= DEEPEST:
        level = [inner for item in level if isinstance(item, dict | list)
                 for inner in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return depth - 1 if not level else depth


def _unwritable(path: Path, error: OSError) -> LitmusError:
    return LitmusError("cannot write the file", where=path, value=error.strerror or str(error),
                       expected="a folder that can be written, with space left",
                       next_step="free space, or choose another folder with --out")
