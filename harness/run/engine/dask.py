"""The dask engine: jobs go to the workers of a dask.distributed cluster, which decides who takes what.

A trial cell asks for one ``trial`` slot, and one on CUDA also for its device. What is timed asks for its device and for
every slot of one worker, so nothing of this cluster runs beside it there. Judging stays on this machine.
"""

from __future__ import annotations

import itertools
import queue
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from harness.errors import LitmusError
from harness.plan.cell import Cell
from harness.plan.machine import Machine
from harness.plan.plan import MISSING_DEVICE
from harness.run.engine import dask_worker
from harness.run.engine.address import checked_address
from harness.run.engine.base import OnMessage
from harness.run.engine.crew import Crew, Need
from harness.run.engine.dask_worker import TRIAL, Member, timing
from harness.run.engine.local import LocalEngine
from harness.run.protocol import Ending, Job, decode

MOST_RETRIES = 2
_HERE = ("judge", "inspect")
_ALONE = ("speed", "turns", "ceilings")
_LOOK_S = 1.0
_END_S = 10.0


class DaskEngine:
    """Runs jobs on the workers of ``scheduler``. A context manager.

    ``jobs`` trial cells go side by side, by default as many as the workers have slots for. A job whose worker is lost
    goes to another one, at most twice; records say who ran them and who was lost before. Raises LitmusError where the
    scheduler may not be used or does not answer, and where no worker can run the project.
    """

    def __init__(
        self, root: Path, scheduler: str, suites: Sequence[str] = (), preload: Sequence[str] = (),
        jobs: int | None = None, *, insecure: bool = False,
    ) -> None:
        self.scheduler, self._insecure = checked_address(scheduler, insecure=insecure), insecure
        self._client = _connect(self.scheduler)
        try:
            self._crew = Crew(self._client, root, suites)
        except BaseException:
            self._client.close()
            raise
        # The client's own name: the scheduler forgets what was told under it once the client is gone.
        topic = str(self._client.id)
        self._setting = dask_worker.Setting(uuid.uuid4().hex, str(root), tuple(preload), topic)
        self._inboxes: dict[str, queue.SimpleQueue[dict[str, Any] | None]] = {}
        self._client.subscribe_topic(topic, self._hear)
        self._numbers = itertools.count()
        self._spent: deque[Any] = deque()
        self._kinds: dict[str, str] = {}
        self._here = LocalEngine(root, 1, preload)
        self._cancelled = self._closed = False
        self.slots = jobs or sum(member.slots for member in self._crew.alive())

    def __enter__(self) -> DaskEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def machine(self) -> Machine:
        """The kind of machine that everything timed is timed on."""
        return self._crew.machine

    @property
    def software(self) -> Mapping[str, str]:
        """What all workers have installed."""
        return self._crew.software

    @property
    def devices(self) -> Mapping[str, int]:
        """How many workers have each CUDA device."""
        names = {device for member in self._crew.alive() for device in member.devices if device != "cpu"}
        return {name: len(self._crew.able(Need(name))) for name in names}

    def about(self) -> dict[str, Any]:
        """See :class:`harness.run.engine.base.RunEngine`; also the other machines and who was left out."""
        members = list(self._crew.members.values())
        others = {member.machine.key: member.machine.to_dict() for member in members
                  if member.machine.key != self.machine.key}
        return {
            "name": "dask", "scheduler": self.scheduler, "insecure": self._insecure,
            "workers": {member.name: {"machine": member.machine.key, "slots": member.slots} for member in members},
            "other_machines": others, "left_out": dict(self._crew.left_out.values()),
        }

    def ready(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        addresses = [member.address for member in self._crew.alive()]
        said = self._client.run(dask_worker.warm, self._setting, workers=addresses, on_error="return")
        faults = {address: fault for address, fault in said.items() if isinstance(fault, LitmusError)}
        if faults and len(faults) == len(addresses):
            raise next(iter(faults.values()))
        for address, fault in faults.items():
            self._crew.drop(address, fault.problem)

    def execute(self, job: Job, on_message: OnMessage) -> Ending:
        """See :class:`harness.run.engine.base.Engine`. ``missing`` where no worker can take the job."""
        if job.task in _HERE:
            return self._here.execute(job, on_message)
        course = _Course(job, on_message)
        while not self._cancelled:
            self._crew.refresh()
            need = self._need(course)
            members = self._crew.able(need)
            if not members:
                if self._crew.given_up(need):
                    return course.missing()
                time.sleep(0.2)
                continue
            ending = self._submitted(course, members)
            if ending is not None:
                return ending
            if course.exhausted:
                return course.lost_too_often()
        return Ending("cancelled", "the run ended", course.arm, worker=course.worker())

    def _need(self, course: _Course) -> Need:
        if course.job.task in _ALONE:
            return Need(course.device, self.machine.key, alone=True)
        return Need(course.device, self._kinds.get(course.cell))

    def _submitted(self, course: _Course, members: Sequence[Member]) -> Ending | None:
        """Give the job to one of ``members`` and follow it; None where it was lost and may be given again."""
        key = f"litmus-{self._setting.token[:12]}-{next(self._numbers)}"
        inbox = self._inboxes[key] = queue.SimpleQueue()
        course.begin()
        future = self._client.submit(
            dask_worker.run_job, self._setting, key, course.job.to_json(), key=key, pure=False,
            workers=[member.address for member in members], allow_other_workers=False,
            resources=_resources(course, members[0]))
        try:
            return self._follow(course, members, future, inbox)
        except BaseException:
            self._take_back(course, future, inbox)
            raise
        finally:
            del self._inboxes[key]
            self._forget(future)

    def _forget(self, future: Any) -> None:
        """Release what dask keeps of tasks, but of none that it still takes for running."""
        self._spent.append(future)
        while self._spent and self._spent[0].status != "pending":
            self._spent.popleft().release()

    def _follow(self, course: _Course, members: Sequence[Member], future: Any, inbox: Any) -> Ending | None:
        silent = 0
        while True:
            if self._cancelled:
                self._take_back(course, future, inbox)
                return Ending("cancelled", "the run ended", course.arm, worker=course.worker())
            try:
                event = inbox.get(timeout=_LOOK_S)
            except queue.Empty:
                silent = silent + 1 if future.status == "finished" else 0
                if self._is_lost(members, future) or silent > 1:
                    future.cancel()
                    course.lose()
                    return None
                continue
            if event is None:
                continue
            ending = course.hear(event)
            if course.kept and course.cell:
                self._kinds[course.cell] = course.kind
            if ending is not None:
                return ending
            if course.exhausted:
                self._take_back(course, future, inbox)
                return None

    def _is_lost(self, members: Sequence[Member], future: Any) -> bool:
        """Whether nothing will come of the task any more. Raises LitmusError where it cannot run, or dask is gone."""
        if self._client.status != "running":
            raise LitmusError("the scheduler is gone; what was recorded is safe", where=self.scheduler,
                              next_step="start it again, then go on with: litmus run --resume")
        if future.status == "error":
            error = future.exception()
            if isinstance(error, LitmusError):
                raise error
            if type(error).__name__ != "KilledWorker":
                raise LitmusError("a dask worker cannot run jobs", where=self.scheduler,
                                  value=f"{type(error).__name__}: {error}"[:300], expected="the same Litmus as here",
                                  next_step="see docs/clusters.md")
            return True
        self._crew.refresh()
        there = {member.address for member in self._crew.alive()}
        return future.status in ("cancelled", "lost") or not there & {member.address for member in members}

    def _take_back(self, course: _Course, future: Any, inbox: Any) -> None:
        """Cancel the task, and where it has begun wait until nothing of it is left."""
        if self._client.status != "running":
            return
        future.cancel()
        end_s = time.monotonic() + (_END_S if course.running else 0.0)
        while course.running and time.monotonic() < end_s:
            try:
                event = inbox.get(timeout=0.1)
            except queue.Empty:
                continue
            if event is not None and decode(event["data"])["kind"] == "end":
                return

    def _hear(self, event: tuple[float, Any]) -> None:
        """Called by dask for each event under the client's name; others than ours have no key."""
        message = event[1]
        inbox = self._inboxes.get(message.get("key", "")) if isinstance(message, dict) else None
        if inbox is not None:
            inbox.put(message)

    def cancel(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        self._cancelled = True
        self._here.cancel()
        for inbox in list(self._inboxes.values()):
            inbox.put(None)

    def close(self) -> None:
        """See :class:`harness.run.engine.base.Engine`."""
        if self._closed:
            return
        self._closed = True
        self.cancel()
        self._here.close()
        if self._client.status == "running":
            there = list(self._client.nthreads())
            mine = [address for address in self._crew.members if address in there]
            if mine:
                self._client.run(dask_worker.leave, self._setting.token, workers=mine, on_error="ignore")
            self._client.unsubscribe_topic(self._setting.topic)
        self._client.close()


@dataclass
class _Course:
    """One job on its way: who has it, what it said, who was lost. Every message goes on once, whoever sent it."""

    job: Job
    on_message: OnMessage
    lost: list[dict[str, Any]] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    start: str | None = None
    name: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        cell = Cell.from_json(self.job.cell) if self.job.cell else None
        self.cell = cell.id if cell else ""
        self.device: str = cell.device if cell else self.job.argument.get("device", "cpu")

    @property
    def running(self) -> bool:
        """Whether a worker has begun it and did not end it."""
        return self.start is not None

    @property
    def exhausted(self) -> bool:
        """Whether it may not be tried again."""
        return len(self.lost) > MOST_RETRIES

    @property
    def arm(self) -> str | None:
        """The arm that a trial is in: they run in order."""
        left = [arm for arm in self.job.arms if arm not in self.kept]
        return left[0] if left and self.job.task == "trial" else None

    def begin(self) -> None:
        """It is given to the cluster."""
        self.start = None

    def worker(self) -> dict[str, Any]:
        """What a record says: who ran it, on which machine, and who was lost before."""
        mine = {"name": self.name, "machine": self.kind} if self.name else {}
        return {**mine, "lost": [dict(item) for item in self.lost]} if self.lost else mine

    def lose(self) -> None:
        """Whoever has it is gone."""
        if self.start is not None:
            self.lost.append({"name": self.name, "machine": self.kind, "noticed_at": time.time()})
        self.start = None

    def hear(self, event: dict[str, Any]) -> Ending | None:
        """Pass on what the worker says; the ending, when it ends."""
        message = decode(event["data"])
        if message["kind"] == "began":
            self.lose()  # dask gives the task of a lost worker to another one by itself
            self.start, self.name, self.kind = event["start"], message["name"], message["machine"]
        elif event["start"] == self.start and message["kind"] == "end":
            return replace(Ending(**message["ending"]), worker=self.worker())
        elif event["start"] == self.start:
            self._pass_on(message)
        return None

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["kind"] == "record":
            arm = message["record"]["arm"]
            if self.job.task == "trial" and self.kept.get(arm) == self.kind:
                return  # who was lost had handed it in; on another kind of machine all arms are taken anew
            self.kept[arm] = self.kind
            message["record"]["worker"] = self.worker()
        self.on_message(message)

    def missing(self) -> Ending:
        """Nobody can take it."""
        what = f"{self.device} alone" if self.job.task in _ALONE else self.device
        reason = f"{MISSING_DEVICE}: no worker of the cluster is left for {what}"
        return Ending("missing", reason, self.arm, worker=self.worker())

    def lost_too_often(self) -> Ending:
        """It was lost as often as it may be."""
        names = ", ".join(item["name"] for item in self.lost)
        return Ending("crashed", f"its worker was lost {len(self.lost)} times: {names}", self.arm, worker=self.worker())


def _resources(course: _Course, member: Member) -> dict[str, int]:
    if course.job.task in _ALONE:
        return {timing(course.device): 1, TRIAL: member.slots}
    return {TRIAL: 1} if course.device == "cpu" else {TRIAL: 1, timing(course.device): 1}


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ImportError as error:
        raise LitmusError("the dask engine needs dask.distributed", key="--engine", value="dask",
                          next_step='pip install "litmus-harness[dask]"') from error
    try:
        return Client(address, timeout=_END_S, set_as_default=False, name="litmus")
    except (OSError, TypeError, RuntimeError, ValueError) as error:  # TypeError: dask's word for TLS that is not set up
        raise LitmusError("the scheduler does not answer", where=address, key="--scheduler",
                          value=(str(error).splitlines() or [type(error).__name__])[0][:200],
                          expected="a running dask scheduler, for tls:// with dask's TLS set up here",
                          next_step="check the address; see docs/clusters.md") from error
