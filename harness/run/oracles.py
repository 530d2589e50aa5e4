"""A suite's oracles, asked in a worker: they say whether the method is right before anything of it is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.run.engine.base import Engine
from harness.run.lanes import Cancelled
from harness.run.protocol import Job, Limits

_LIMIT_S = 120.0
_MEMORY_BYTES = 8 * 2**30
_SKIPPED = "skipped: "


@dataclass
class Answers:
    """What each oracle said: ``faults`` of those that disagree, ``skipped`` with reasons, and who ``agreed``."""

    faults: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    agreed: list[str] = field(default_factory=list)

    def take(self, name: str, fault: str | None) -> None:
        """Sort one answer in."""
        if fault is None:
            self.agreed.append(name)
        elif fault.startswith(_SKIPPED):
            self.skipped[name] = fault.removeprefix(_SKIPPED)
        else:
            self.faults[name] = fault

    @property
    def fault(self) -> str | None:
        """One line on the first oracle that disagrees, None where all is well."""
        return next((f"oracle {name}: {text}" for name, text in self.faults.items()), None)


def ask(engine: Engine, root: Path, suite: str) -> Answers:
    """Run every oracle of ``suite`` in one worker. An oracle that breaks the worker disagrees.

    A suite that cannot be loaded has no answers: its cells say why. Raises Cancelled when the engine is cancelled.
    """
    answers = Answers()
    current: list[str] = []

    def on_message(message: dict[str, Any]) -> None:
        if message["kind"] == "asking":
            current.append(message["name"])
        elif message["kind"] == "result":
            answers.take(message["name"], message["value"])
            current.clear()

    limits = Limits(arm_s=_LIMIT_S, startup_s=_LIMIT_S, memory_bytes=_MEMORY_BYTES)
    ending = engine.execute(Job(task="oracle", root=str(root), limits=limits, argument={"suite": suite}), on_message)
    if ending.status == "cancelled":
        raise Cancelled
    if ending.status != "done" and current:
        answers.take(current[0], ending.reason or ending.status)
    return answers
