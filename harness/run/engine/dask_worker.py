"""What runs on a dask worker: it describes its machine, and hands each job to a local engine of its own.

Every job passes through the same zygote and supervisor as on a single machine, so every limit holds. What the job
says goes to the client as events of the scheduler, in order and as it comes; ``began`` comes first and ``end`` last.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import harness
from harness.plan.code import code_hash
from harness.plan.machine import Machine, software, this_machine
from harness.run.engine.local import LocalEngine, Stop
from harness.run.protocol import Job, encode

TRIAL = "trial"
_TIMING = "timing-"
_LOOK_S = 0.2
_IDLE_S = 300.0
_RUNNING = ("executing", "long-running")


def timing(device: str) -> str:
    """The dask resource that is one device, alone."""
    return _TIMING + device


@dataclass(frozen=True)
class Member:
    """One dask worker as it describes itself: ``slots`` trial cells side by side, ``code`` by suite as found there."""

    address: str
    name: str
    machine: Machine
    software: Mapping[str, str]
    litmus: str
    code: Mapping[str, str]
    slots: int
    devices: tuple[str, ...]


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run have in common; ``topic`` is where the client listens."""

    token: str
    root: str
    preload: tuple[str, ...]
    topic: str


@dataclass
class _Run:
    """One run's engine on this dask worker, and what it has running."""

    engine: LocalEngine
    jobs: dict[str, tuple[Any, Stop]] = field(default_factory=dict)
    used_s: float = field(default_factory=time.monotonic)


_LOCK = threading.Lock()
_RUNS: dict[str, _Run] = {}


def project(root: str) -> Path:
    """Where the project is on this machine: $LITMUS_ROOT, else where the client has it."""
    return Path(os.environ.get("LITMUS_ROOT") or root)


async def introduce(root: str, suites: Sequence[str], dask_worker: Any = None) -> Member:
    """Describe this dask worker, and give it resources where whoever started it gave none.

    These are one slot for each of its threads and one for each device of its machine.
    """
    machine = this_machine()
    found = dask_worker.state.total_resources
    if TRIAL not in found:
        devices = {timing(device.id): 1 for device in machine.devices}
        await dask_worker.set_resources(**{TRIAL: dask_worker.state.nthreads, **devices})
    here = project(root)
    return Member(
        address=dask_worker.contact_address or dask_worker.address,
        name=str(dask_worker.name),
        machine=replace(machine, devices=tuple(replace(device, uuid=None) for device in machine.devices)),
        software=software(),
        litmus=harness.__version__,
        code=await asyncio.to_thread(_code, here, suites),
        slots=int(found[TRIAL]),
        devices=tuple(device.id for device in machine.devices if found.get(timing(device.id))),
    )


def _code(root: Path, suites: Sequence[str]) -> dict[str, str]:
    folders = {suite: root / "suites" / suite for suite in suites}
    return {suite: code_hash(root, folder) for suite, folder in folders.items() if folder.is_dir()}


async def warm(setting: Setting) -> None:
    """Start the run's engine here and wait until it is ready. Raises LitmusError where that fails."""
    await asyncio.to_thread(_run_of(setting).engine.ready)


async def leave(token: str) -> None:
    """The run is over: end what it has here."""
    with _LOCK:
        run = _RUNS.pop(token, None)
    if run is not None:
        await asyncio.to_thread(run.engine.close)


def run_job(setting: Setting, key: str, text: str) -> None:
    """The dask task: run the job in ``text`` here and tell the client all about it."""
    from distributed import get_worker

    worker, start = get_worker(), uuid.uuid4().hex

    def tell(data: bytes) -> None:
        worker.log_event(setting.topic, {"key": key, "start": start, "data": data})

    run, stop = _run_of(setting), Stop()
    with _LOCK:
        run.jobs[key] = (worker, stop)
    try:
        tell(encode("began", name=str(worker.name), machine=this_machine().key))
        job = Job.from_json(text)
        job = replace(job, root=str(project(job.root)))
        ending = run.engine.execute(job, lambda message: tell(encode(**message)), stop)
        tell(encode("end", ending=asdict(ending)))
    finally:
        with _LOCK:
            del run.jobs[key]
            run.used_s = time.monotonic()


def _run_of(setting: Setting) -> _Run:
    with _LOCK:
        if not _RUNS:
            threading.Thread(target=_watch, name="litmus-watch", daemon=True).start()
        if setting.token not in _RUNS:
            _RUNS[setting.token] = _Run(LocalEngine(project(setting.root), 1, setting.preload))
        return _RUNS[setting.token]


def _watch() -> None:
    """While there are runs: end jobs whose task the scheduler has taken back, and runs that nobody asks anything of.

    That is how a cancelled job ends, and all of a client that is gone.
    """
    while True:
        time.sleep(_LOOK_S)
        with _LOCK:
            for run in _RUNS.values():
                for key, (worker, stop) in run.jobs.items():
                    task = worker.state.tasks.get(key)
                    if task is None or task.state not in _RUNNING:
                        stop.ask()
            old = [token for token, run in _RUNS.items() if not run.jobs and time.monotonic() - run.used_s > _IDLE_S]
            ended = [_RUNS.pop(token) for token in old]
            alone = not _RUNS
        for run in ended:
            run.engine.close()
        if alone:
            return
