"""What ``run.json`` says about a run: the request, the machine, the code and the state it was in."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import harness
from harness.declare.card import PROFILES
from harness.errors import LitmusError
from harness.plan.machine import Machine
from harness.plan.plan import Plan, Request
from harness.records.store import RESULTS, CardState, RunInfo
from harness.run.engine.base import RunEngine


def default_folder(root: Path, machine: Machine, profile: str) -> Path:
    """``results/<machine>/<time>-<profile>``, not there yet."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = root / RESULTS / machine.key / f"{stamp}-{profile}"
    number = 2
    while folder.exists():
        folder = folder.with_name(f"{stamp}-{profile}-{number}")
        number += 1
    return folder


def run_info(
    root: Path, folder: Path, request: Request, command: str, engine: RunEngine, plan: Plan, before: RunInfo | None
) -> RunInfo:
    """The description of a run that begins now, or goes on from ``before`` with its start, ceilings and canary."""
    commit, dirty = commit_of(root)
    cells = [*plan.cells, *(skip.cell for skip in plan.skipped)]
    return RunInfo(
        run=folder.resolve().name,
        started_at=before.started_at if before else time.time(),
        profile=request.profile,
        selectors=list(request.selectors),
        devices=list(request.devices),
        seeds=request.seeds,
        command=command or (before.command if before else ""),
        litmus=harness.__version__,
        commit=commit,
        dirty=dirty,
        machine=engine.machine.to_dict(),
        engine=engine.about(),
        software=dict(engine.software),
        volatile=volatile(),
        ceilings=before.ceilings if before else {},
        canary=before.canary if before else None,
        cards={cell.suite: CardState(version=cell.card_version, code=cell.code) for cell in cells},
    )


def request_of(info: RunInfo) -> Request:
    """What the user asked for when the run began. Raises LitmusError where run.json does not say it."""
    for profile in PROFILES:
        if profile == info.profile:
            return Request(tuple(info.selectors), profile, tuple(info.devices), info.seeds)
    raise LitmusError("run.json is not valid", key="profile", value=info.profile, expected=", ".join(PROFILES))


def commit_of(root: Path) -> tuple[str | None, bool]:
    """(commit, whether files other than results differ from it); (None, False) outside a repository."""
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None, False
    return commit, bool(_git(root, "status", "--porcelain", "--", ".", f":(exclude){RESULTS}"))


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def volatile() -> Mapping[str, Any]:
    """What may differ from one minute to the next: load, free memory, frequency governor, huge pages, threads set."""
    files = {
        "governor": Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepage": Path("/sys/kernel/mm/transparent_hugepage/enabled"),
    }
    found: dict[str, Any] = {"load_average": list(os.getloadavg()), "available_bytes": _available_bytes()}
    for name, path in files.items():
        try:
            found[name] = path.read_text().strip()
        except OSError:
            found[name] = None
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    found["environment"] = {name: os.environ[name] for name in threads if name in os.environ}
    return found


def _available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
