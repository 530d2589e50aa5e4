"""The journal: one line of JSON per record, fsynced before it counts, held by one run at a time.

A crash can only tear the last line; it is cut off and kept in ``journal.torn``. Any other damage is refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

from harness.errors import LitmusError
from harness.records.record import Record

JOURNAL_FILE = "journal.jsonl"
LOCK_FILE = "journal.lock"
TORN_FILE = "journal.torn"
_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file may not grow",
    errno.EIO: "the disk reports an error",
}


class Journal:
    """The journal of one run folder, open for appending. A context manager; leaving it releases the lock.

    ``records`` are those read at opening, ``notes`` what was repaired. Raises LitmusError where another run holds the
    folder, where it cannot be written, or where a line in the middle is damaged.
    """

    def __init__(self, folder: Path, command: str = "") -> None:
        self.folder, self.path = folder, folder / JOURNAL_FILE
        self.notes: list[str] = []
        self._size = self._count = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(folder, error) from error
        self._fd: int | None = None
        try:
            self._take_lock(command)
            self.records = self._repair()
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def append(self, record: Record) -> None:
        """Write ``record`` and wait until it is on the disk.

        Raises LitmusError where the disk is full or fails; the partial line is taken back, all earlier records stay.
        """
        assert self._fd is not None, "the journal is closed"
        data, written = memoryview(record.to_json().encode() + b"\n"), False
        try:
            while data:
                data = data[os.write(self._fd, data) :]
            os.fsync(self._fd)
            written = True
        except OSError as error:
            raise self._refusal(error, record) from error
        finally:
            if not written:  # an interrupt, too, must not leave half a line for the next record to follow
                os.ftruncate(self._fd, self._size)
        self._size = os.fstat(self._fd).st_size
        self._count += 1

    def _refusal(self, error: OSError, record: Record) -> LitmusError:
        if error.errno not in _FULL:
            return _unwritable(self.path, error)
        return LitmusError(
            f"{_FULL[error.errno]}; the run stops here", where=self.path,
            value=f"{self._count} records are safe, this one is not: {record.suite}:{record.experiment} {record.arm}",
            expected="room for the journal", next_step=f"make room, then: litmus run --resume {self.folder}",
        )

    def close(self) -> None:
        """Release the folder."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self, command: str) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock_fd, 4096, 0).decode("utf-8", "replace").strip()
            raise LitmusError(
                "another run is writing into this folder", where=self.folder, value=holder or "an unknown process",
                expected="one run per folder", next_step="wait until it is done, or choose another folder with --out",
            ) from error
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"process {os.getpid()}, since {started}: {command}\n".encode(), 0)

    def _repair(self) -> list[Record]:
        records, good_bytes, torn = read_journal(self.path)
        if torn:
            with (self.folder / TORN_FILE).open("ab") as file:
                file.write(torn + b"\n")
            with self.path.open("r+b") as file:
                file.truncate(good_bytes)
            self.notes.append(f"the journal's last line was torn ({len(torn)} bytes); it is now in {TORN_FILE}")
        return records

    def _open(self) -> None:
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            folder_fd = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        os.fsync(folder_fd)
        os.close(folder_fd)
        self._size, self._count = os.fstat(self._fd).st_size, len(self.records)


def read_journal(path: Path) -> tuple[list[Record], int, bytes]:
    """(records, bytes of whole lines, the torn rest). Raises LitmusError for a damaged line that is not the last."""
    data = path.read_bytes() if path.exists() else b""
    lines = data.split(b"\n")
    ended, rest = lines[:-1], lines[-1]
    records, good_bytes = [], 0
    for number, line in enumerate(ended, start=1):
        try:
            records.append(Record.from_json(line.decode()))
        except ValueError as error:
            if number == len(ended) and not rest:
                return records, good_bytes, line
            raise LitmusError(
                "the journal is damaged", where=f"{path}, line {number}", value=line[:80].decode("utf-8", "replace"),
                expected=f"one record per line ({error})",
                next_step="remove that line and resume; the cells it held are run again",
            ) from error
        good_bytes += len(line) + 1
    return records, good_bytes, rest


def latest(records: Iterable[Record]) -> list[Record]:
    """One record for each (cell, arm), the last one written, in the order of first appearance."""
    newest: dict[tuple[str, str], Record] = {}
    for record in records:
        newest[record.cell, record.arm] = record
    return list(newest.values())


def _unwritable(path: Path, error: OSError) -> LitmusError:
    return LitmusError("the results cannot be written", where=path, value=error.strerror,
                       expected="a folder you may write to", next_step="choose another one with --out FOLDER")
