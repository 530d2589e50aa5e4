"""What an engine promises: one job in its own process somewhere, its messages as they come, and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from harness.plan.machine import Machine
from harness.run.protocol import Ending, Job

OnMessage = Callable[[dict[str, Any]], None]


class Engine(Protocol):
    """A place where jobs run. ``slots`` is how many trial cells it runs side by side."""

    slots: int

    def execute(self, job: Job, on_message: OnMessage) -> Ending:
        """Run ``job`` and block until nothing of it is left. May be called from several threads at once.

        ``on_message`` gets every message but ``end``, in order, in the calling thread; if it raises, the worker is
        ended and the error goes on. Every limit of the job is enforced. After :meth:`cancel` the ending is
        ``cancelled``.
        """

    def ready(self) -> None:
        """Block until jobs start without delay, so that the first one's time is its own. Raises LitmusError."""

    def cancel(self) -> None:
        """End all running jobs soon and refuse new ones; safe from any thread and from a signal's handler."""

    def close(self) -> None:
        """End everything and wait until no process of this engine is left."""


class RunEngine(Engine, Protocol):
    """An engine that a whole run can be given to: it also says where its jobs run."""

    @property
    def machine(self) -> Machine:
        """What the plan is made for, and where everything that is timed is timed."""

    @property
    def software(self) -> Mapping[str, str]:
        """The versions that jobs find there, see :func:`harness.plan.machine.software`."""

    @property
    def devices(self) -> Mapping[str, int]:
        """How many of each device take a trial cell at the same time; one of each that is not named here."""

    def about(self) -> dict[str, Any]:
        """``engine`` in ``run.json``: its ``name`` as on the command line, and what else tells where jobs ran.

        What differs from job to job is in the records' ``worker``: an engine adds it to each record's message and to
        the ending.
        """
