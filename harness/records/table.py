"""``records.parquet``: the records of a run as a table with an explicit schema and a version.

One row per record. ``point``, ``tuned``, ``metrics``, ``how`` and ``worker`` are JSON text (non-finite numbers are kept
as NaN, Infinity, -Infinity). The samples are list columns. Short, repeated texts are dictionary-encoded. A file of an
older version lacks the columns that came later; they are read as what was true then.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import LitmusError, did_you_mean
from harness.records.files import own_file, replacing
from harness.records.limits import bounded_memory, check_size, check_values
from harness.records.record import SCHEMA_VERSION, Record, Samples
from harness.records.shapes import is_point

if TYPE_CHECKING:
    import pandas as pd

RECORDS_FILE = "records.parquet"
VERSION_KEY = b"litmus.schema_version"
JSON_COLUMNS = ("point", "metrics", "tuned", "how", "worker")
SAMPLE_COLUMNS = tuple(f"samples_{item.name}" for item in fields(Samples))
OTHER_SAMPLE_COLUMNS = tuple(f"other_{name}" for name in SAMPLE_COLUMNS)
_LISTS = (*SAMPLE_COLUMNS, *OTHER_SAMPLE_COLUMNS)
COLUMNS = tuple(item.name for item in fields(Record) if item.name not in ("samples", "other_samples")) + _LISTS
DEFAULT_COLUMNS = tuple(name for name in COLUMNS if name not in (*_LISTS, "stderr_tail"))

_REPEATED = ("cell", "suite", "experiment", "kind", "arm", "point", "device", "profile", "status", "code", "reason",
             "tuned", "data", "repro", "cache", "worker")
_PLAIN_TEXT = ("metrics", "how", "stderr_tail")
_REAL = ("started_at", "bytes_moved", "flops", "error", "tolerance", "workspace_bytes")
# What each version added, and what a file of before holds instead.
_ADDED: dict[int, dict[str, Any]] = {
    2: {"workspace_bytes": None, "returned_bytes": 0, "cache": None, "how": "{}",
        **{name: [] for name in OTHER_SAMPLE_COLUMNS}},
    3: {"worker": "{}"},
}
_ROWS_PER_BATCH = 20_000


@cache
def schema() -> Any:
    """The Arrow schema of ``records.parquet``; its metadata holds the schema version."""
    import pyarrow as pa

    def kind(name: str) -> Any:
        if name in _LISTS:
            return pa.list_(pa.int64())
        if name in _REPEATED:
            return pa.dictionary(pa.int32(), pa.string())
        if name in _PLAIN_TEXT:
            return pa.string()
        return pa.float64() if name in _REAL else pa.int64()

    return pa.schema([(name, kind(name)) for name in COLUMNS], metadata={VERSION_KEY: str(SCHEMA_VERSION).encode()})


def write_records(folder: Path, records: Iterable[Record]) -> Path:
    """Write ``folder/records.parquet`` in one atomic step; an older file stays untouched until then.

    Records are streamed, so memory does not grow with their number.
    """
    import pyarrow.parquet as pq

    path = Path(folder) / RECORDS_FILE
    rows = iter(records)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema(), compression="zstd") as writer:
        while batch := list(itertools.islice(rows, _ROWS_PER_BATCH)):
            writer.write_table(_to_table(batch))
    return path


def _to_table(batch: Sequence[Record]) -> Any:
    import pyarrow as pa

    def values(name: str) -> list[Any]:
        if name in _LISTS:
            timings, _, column = name.rpartition("samples_")
            return [getattr(getattr(record, f"{timings}samples"), column) for record in batch]
        if name in JSON_COLUMNS:
            return [json.dumps(dict(getattr(record, name)), separators=(",", ":")) for record in batch]
        return [getattr(record, name) for record in batch]

    arrays = [pa.array(values(field.name), type=field.type) for field in schema()]
    return pa.Table.from_arrays(arrays, schema=schema())


def load_records(path: Path, columns: Sequence[str] | None = None, kind: str | None = None) -> pd.DataFrame:
    """The records in ``path`` (a ``records.parquet`` or a run's folder) as a table, one row per record.

    ``columns`` are names from :data:`COLUMNS`; without them the sample lists and ``stderr_tail`` are left out. With a
    ``kind`` only the records of that kind are read, in parts of the file that hold some.
    Repeated texts come as categoricals, other texts as Arrow strings, absent ``error`` and ``tolerance`` as NaN.
    The file may be anyone's: raises LitmusError for one that is absent, a link out of its folder, not parquet, not
    ours, of a newer schema, larger than :mod:`harness.records.limits` allows, or with values that no run writes.
    """
    path = Path(path)
    path = path / RECORDS_FILE if path.is_dir() else path
    wanted = list(DEFAULT_COLUMNS if columns is None else columns)
    for name in wanted:
        if name not in COLUMNS:
            raise LitmusError("records have no such column", where=path, key=name, expected=did_you_mean(name, COLUMNS))
    read = dict.fromkeys([*wanted, "kind"]) if kind else wanted
    table = _read(path, list(read), kind)
    return _to_pandas(table.select(wanted))


def _read(path: Path, wanted: list[str], kind: str | None) -> Any:
    """The columns as an Arrow table of exactly our types, without the file's own metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        own_file(path)
        with bounded_memory():
            later = _added_later(path, pq.read_schema(path, memory_map=False))
            shared = [name for name in _PLAIN_TEXT if name not in later]
        with bounded_memory(), pq.ParquetFile(path, memory_map=False, read_dictionary=shared) as file:
            names = [name for name in wanted if name not in later]
            groups = [index for index in range(file.num_row_groups) if kind is None or _may_hold(file, index, kind)]
            check_size(path, file.metadata, names, groups)
            table = file.read_row_groups(groups, columns=names)
            if kind is not None:
                table = table.filter(_equal_to(table.column("kind"), kind))
            check_values(path, table)
            _check_points(path, table)
            return _ours(table, wanted, later)
    except FileNotFoundError as error:
        raise _refuse(path, "there are no records here") from error
    except MemoryError as error:
        raise _refuse(path, "the records need too much memory") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError) as error:
        raise _refuse(path, "not a parquet file", (str(error).splitlines() or [""])[0][:200]) from error


def _may_hold(file: Any, group: int, kind: str) -> bool:
    """Whether a row group may hold records of the kind, by its statistics; without them it may."""
    place = file.schema_arrow.get_field_index("kind")
    names = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
    if place < 0 or "kind" not in names:
        return True
    found = file.metadata.row_group(group).column(names.index("kind")).statistics
    if found is None or not found.has_min_max or not isinstance(found.min, str):
        return True
    return bool(found.min <= kind <= found.max)


def _check_points(path: Path, table: Any) -> None:
    chunks = table.column("point").chunks if "point" in table.column_names else []
    for text in {text for chunk in chunks for text in chunk.dictionary.to_pylist()}:
        if not is_point(text):
            raise _refuse(path, "the column 'point' holds what is no point", text[:80])


def _equal_to(column: Any, text: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(column.cast("string"), text)


def _ours(table: Any, wanted: Sequence[str], later: dict[str, Any]) -> Any:
    import pyarrow as pa

    fields = [schema().field(name) for name in wanted]
    arrays = [pa.array([later[field.name]] * table.num_rows, type=field.type) if field.name in later
              else table.column(field.name).cast(field.type) for field in fields]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def _to_pandas(table: Any) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa

    # One dictionary for all row groups; without this every group would carry its own categories.
    table = table.unify_dictionaries()
    return table.to_pandas(types_mapper={pa.string(): pd.ArrowDtype(pa.string())}.get)  # type: ignore[no-any-return]


def _added_later(path: Path, found: Any) -> dict[str, Any]:
    """The columns that came after this file's version, with their values. Raises LitmusError for another schema."""
    version = (found.metadata or {}).get(VERSION_KEY, b"")
    if not version.isdigit() or len(version) > 9:
        raise _refuse(path, "a parquet file, but not one of Litmus")
    if int(version) > SCHEMA_VERSION:
        raise LitmusError("the records are of a newer schema", where=path, key="schema_version", value=int(version),
                          expected=f"at most {SCHEMA_VERSION}", next_step="update Litmus, or run again with this one")
    later = {name: value for added, columns in _ADDED.items() if added > int(version)
             for name, value in columns.items()}
    for field in schema():
        places = found.get_all_field_indices(field.name)
        if not places and field.name in later:
            continue
        if len(places) != 1:
            raise _refuse(path, f"the records {'have twice' if places else 'lack'} the column '{field.name}'")
        kind = found.field(places[0]).type
        if kind != field.type:
            raise _refuse(path, f"the column '{field.name}' has another type", str(kind)[:200])
    return {name: value for name, value in later.items() if found.get_field_index(name) < 0}


def _refuse(path: Path, problem: str, value: str | None = None) -> LitmusError:
    return LitmusError(problem, where=path, value=value, expected=f"{RECORDS_FILE} as written by 'litmus run'",
                       next_step="check the path, or make new records with: litmus run")
