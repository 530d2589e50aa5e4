"""What an engine promises: one job in its own process somewhere, its messages as they come, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

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
