"""What Linux offers to hold a tree of processes: subreapers, death signals, /proc. Raises LitmusError elsewhere."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

from harness.errors import LitmusError

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def need_linux() -> None:
    """Workers are held by subreapers and /proc; raises LitmusError where there are none."""
    if sys.platform != "linux" or not Path("/proc/self/task").is_dir():
        raise LitmusError("cells cannot be isolated on this system", value=sys.platform, expected="Linux with /proc",
                          next_step="run inside a Linux container or virtual machine")


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose parent ends, daemons included."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent`` ends; exits at once where it is already gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def children(pid: int) -> list[int]:
    """The living and unreaped children of all threads of ``pid``; none where it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208  # polled: a Path per entry would cost
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
        except FileNotFoundError:
            if Path(f"/proc/{pid}/task/{thread}").exists():
                return _children_by_stat(pid)
        except OSError:
            continue
    return found


def _children_by_stat(pid: int) -> list[int]:
    """The slow way, for kernels built without the ``children`` file."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """Everything below ``pid``, parents first."""
    found, todo = [], children(pid)
    while todo:
        found += todo
        todo = [below for item in todo for below in children(item)]
    return found


def resident_bytes(pids: list[int]) -> int:
    """The sum of resident sets: quick, but pages shared by forks count once for each."""
    total = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123
                total += int(file.read().split()[1])
        except (OSError, IndexError):
            continue
    return total * _PAGE_BYTES


def proportional_bytes(pids: list[int]) -> int:
    """The memory that really is theirs: shared pages are divided among those that share them. Slow."""
    total = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
    return total * 1024


def kill_descendants(keep: frozenset[int] = frozenset(), limit_s: float = 10.0) -> bool:
    """Kill and reap everything below this process except the children in ``keep``; True when none is left.

    They are stopped before they are killed, so that a process that forks in a loop cannot outrun this.
    """
    me, end = os.getpid(), time.monotonic() + limit_s
    while True:
        roots = [pid for pid in children(me) if pid not in keep]
        if not roots:
            return True
        tree = roots + [pid for root in roots for pid in descendants(root)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in tree:
                _signal(pid, number)
        for pid in roots:
            _reap(pid)
        if time.monotonic() > end:
            return False
        time.sleep(0.001)


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return


def oom_kills() -> int:
    """How many processes the kernel has killed for lack of memory since it started."""
    try:
        text = Path("/proc/vmstat").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")), 0)
