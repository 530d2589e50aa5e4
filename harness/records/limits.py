"""What is read of a records file that may be anyone's: sizes before it is read, values after."""

from __future__ import annotations

import contextlib
import re
import resource
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.errors import LitmusError
from harness.records.record import STATUSES

MOST_ROWS = 5_000_000
MOST_VALUES = 200_000_000  # in one column, list elements counted
MOST_BYTES = 4 * 2**30  # all columns read, uncompressed
MOST_TEXT_BYTES = 2**30  # one text column, written out
LONGEST_NAME = 200
LONGEST_TEXT = 2**18
LONGEST_RESULT = 2**24  # metrics with their series
_MEMORY_BYTES = 8 * 2**30

_NAMES = ("cell", "suite", "experiment", "kind", "arm", "device", "profile", "status", "code")
_OPTIONAL = ("reason", "error", "tolerance", "workspace_bytes", "cache", "data")
_RESULTS = ("metrics", "how")
_CHOICES = {"status": STATUSES, "kind": ("speed", "trial")}
# Names end up in paths of pages and in selectors.
_SUITE = re.compile(r"[\w-]+(\.[\w-]+)*/[\w-]+(\.[\w-]+)*")


def is_suite_name(name: str) -> bool:
    """Whether ``name`` is FAMILY/SLUG of letters, digits, ``_``, ``-`` and inner dots, so no path out of a folder."""
    return len(name) <= LONGEST_NAME and _SUITE.fullmatch(name) is not None


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """Let this process grow by 8 GiB at most meanwhile; beyond, MemoryError. A file may lie about its size."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:  # no Linux: the sizes that the file states must do
        yield
        return
    limit = pages * resource.getpagesize() + _MEMORY_BYTES
    known = [value for value in (soft, hard) if value != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([limit, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def check_size(path: Path, metadata: Any, names: Sequence[str], groups: Sequence[int]) -> None:
    """Raises LitmusError where the columns ``names`` in the row ``groups`` state more than the limits."""
    if metadata.num_rows > MOST_ROWS or metadata.num_row_groups > MOST_ROWS // 100:
        raise _too_large(path, "rows", metadata.num_rows, f"at most {MOST_ROWS:,} records")
    values: dict[str, int] = {}
    total = 0
    for group in groups:
        for index in range(metadata.num_columns):
            column = metadata.row_group(group).column(index)
            name = column.path_in_schema.split(".")[0]
            if name in names:
                values[name] = values.get(name, 0) + column.num_values
                total += column.total_uncompressed_size
    name = max(values, key=lambda item: values[item], default="")
    if name and values[name] > MOST_VALUES:
        raise _too_large(path, name, values[name], f"at most {MOST_VALUES:,} values")
    if total > MOST_BYTES:
        raise _too_large(path, "uncompressed size", total, f"at most {MOST_BYTES // 2**30} GiB")


def check_values(path: Path, table: Any) -> None:
    """Raises LitmusError where a column of ``table`` holds what no run writes: nothing, long or unknown names."""
    import pyarrow as pa

    for name in table.column_names:
        column = table.column(name)
        if column.null_count and name not in _OPTIONAL:
            raise _not_ours(path, name, "nothing", "a value in each record")
        if pa.types.is_dictionary(column.type):
            _check_texts(path, name, column)
        elif pa.types.is_list(column.type):
            _check_lists(path, name, column)


def _check_texts(path: Path, name: str, column: Any) -> None:
    import pyarrow.compute as pc

    longest = LONGEST_NAME if name in _NAMES else LONGEST_RESULT if name in _RESULTS else LONGEST_TEXT
    total = 0
    for chunk in column.chunks:
        texts = chunk.dictionary
        texts.validate(full=True)  # UTF-8, offsets in bounds
        if texts.null_count and name not in _OPTIONAL:
            raise _not_ours(path, name, "nothing", "a value in each record")
        lengths = pc.binary_length(texts)
        most = pc.max(lengths).as_py() or 0
        if most > longest:
            raise _not_ours(path, name, f"a text of {most:,} bytes", f"at most {longest:,} bytes")
        total += pc.sum(pc.take(lengths, chunk.indices)).as_py() or 0
        if name in _CHOICES or name == "suite":
            _check_words(path, name, texts.to_pylist())
    if total > MOST_TEXT_BYTES and name in (*_RESULTS, "stderr_tail"):  # written out, the others stay shared
        raise _too_large(path, name, total, f"at most {MOST_TEXT_BYTES // 2**30} GiB of text")


def _check_words(path: Path, name: str, found: Sequence[str]) -> None:
    for word in found:
        if name == "suite" and not is_suite_name(word):
            raise _not_ours(path, name, word, "FAMILY/SLUG")
        if name in _CHOICES and word not in _CHOICES[name]:
            raise _not_ours(path, name, word, "one of " + ", ".join(_CHOICES[name]))


def _check_lists(path: Path, name: str, column: Any) -> None:
    import pyarrow.compute as pc

    inner = pc.list_flatten(column)
    if inner.null_count:
        raise _not_ours(path, name, "nothing", "a number for each sample")
    least = 1 if name.endswith(("_calls", "_elapsed_ns")) else 0
    lowest = pc.min(inner).as_py()
    if lowest is not None and lowest < least:
        raise _not_ours(path, name, lowest, f"at least {least}")


def _too_large(path: Path, key: str, value: int, expected: str) -> LitmusError:
    return LitmusError("the records are too large", where=path, key=key, value=value, expected=expected,
                       next_step="make a smaller run: fewer suites or seeds at once")


def _not_ours(path: Path, key: str, value: object, expected: str) -> LitmusError:
    shown = value if not isinstance(value, str) else value[:80]
    return LitmusError("the records hold what no run writes", where=path, key=key, value=shown, expected=expected,
                       next_step="check where the file comes from, or make new records with: litmus run")
