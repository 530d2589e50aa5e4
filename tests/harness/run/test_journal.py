"""The journal: whole lines or none, one writer, disks that fill up."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import LitmusError
from harness.records.record import Record
from harness.run.journal import JOURNAL_FILE, TORN_FILE, Journal, latest, read_journal

ONE = Record(cell="c1", suite="x/y", experiment="t", kind="trial", arm="a", point={"n": 1}, seed=0, device="cpu",
             profile="small", status="ok", card_version=1, code="0", metrics={"m": float("inf"), "s": [1.0, 2.0]})


def records(number: int) -> list[Record]:
    return [replace(ONE, cell=f"c{index}") for index in range(number)]


def test_what_was_appended_is_read_back(tmp_path):
    with Journal(tmp_path) as journal:
        for record in records(3):
            journal.append(record)
    with Journal(tmp_path) as journal:
        assert journal.records == records(3)
        assert journal.notes == []


@pytest.mark.parametrize("cut", [1, 2, 50])
def test_a_torn_last_line_is_cut_off_and_kept(tmp_path, cut):
    with Journal(tmp_path) as journal:
        for record in records(3):
            journal.append(record)
    path = tmp_path / JOURNAL_FILE
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    with Journal(tmp_path) as journal:
        assert journal.records == records(2)
        assert "torn" in journal.notes[0]
        journal.append(ONE)
    assert read_journal(path)[0] == [*records(2), ONE]
    torn = (tmp_path / TORN_FILE).read_bytes()
    assert data.endswith(torn[:-1] + data[-cut:])


def test_a_last_line_of_zeros_is_torn_too(tmp_path):
    """What some file systems leave after a power cut."""
    with Journal(tmp_path) as journal:
        journal.append(ONE)
    with (tmp_path / JOURNAL_FILE).open("ab") as file:
        file.write(b"\0" * 100)
    with Journal(tmp_path) as journal:
        assert journal.records == [ONE]


@pytest.mark.parametrize("line", [b"not json", b"[]", b'{"cell": 1}', b"\xff\xfe", b""])
def test_a_damaged_line_in_the_middle_is_refused_and_left_alone(tmp_path, line):
    path = tmp_path / JOURNAL_FILE
    text = (ONE.to_json() + "\n").encode()
    path.write_bytes(text + line + b"\n" + text)
    with pytest.raises(LitmusError) as refusal:
        Journal(tmp_path)
    assert "line 2" in str(refusal.value)
    assert path.read_bytes() == text + line + b"\n" + text
    assert not (tmp_path / TORN_FILE).exists()


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path):
    with Journal(tmp_path, "litmus run x") as journal:
        with pytest.raises(LitmusError, match="another run") as refusal:
            Journal(tmp_path)
        assert f"process {os.getpid()}" in str(refusal.value)
        assert "litmus run x" in str(refusal.value)
        journal.append(ONE)
    with Journal(tmp_path) as journal:
        assert journal.records == [ONE]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LitmusError, match="cannot be written"):
        Journal(tmp_path / "file" / "run")


@pytest.fixture
def small_disk(tmp_path):
    """A file system with 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "litmus-test", str(folder)], check=False,
                             capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no right to mount a small file system; test_sessions.py covers this with RLIMIT_FSIZE")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_takes_the_partial_line_back(small_disk):
    kept = []
    with Journal(small_disk) as journal:
        with pytest.raises(LitmusError, match="the disk is full") as refusal:
            for record in records(1000):
                journal.append(record)
                kept.append(record)
        assert f"{len(kept)} records are safe" in str(refusal.value)
        assert f"--resume {small_disk}" in str(refusal.value)
        assert kept
        assert read_journal(small_disk / JOURNAL_FILE) == (kept, (small_disk / JOURNAL_FILE).stat().st_size, b"")


def test_an_interrupted_write_leaves_no_half_line(tmp_path, monkeypatch):
    write = os.write

    def half(fd: int, data: bytes) -> int:
        write(fd, bytes(data[:10]))
        raise KeyboardInterrupt

    with Journal(tmp_path) as journal:
        journal.append(ONE)
        monkeypatch.setattr(os, "write", half)
        with pytest.raises(KeyboardInterrupt):
            journal.append(ONE)
        monkeypatch.undo()
        journal.append(ONE)
    assert read_journal(tmp_path / JOURNAL_FILE)[0] == [ONE, ONE]


def test_latest_keeps_the_last_record_of_each_arm():
    again = replace(ONE, status="crashed")
    other = replace(ONE, arm="b")
    assert latest([ONE, other, again]) == [again, other]


def test_an_absent_journal_has_no_records(tmp_path: Path):
    assert read_journal(tmp_path / JOURNAL_FILE) == ([], 0, b"")
