"""What the parent, the zygote, the supervisor and the worker say to each other: newline JSON over sockets and pipes.

The parent hands the zygote one end of a socket pair and a page of shared memory per job. On the socket it sends one
:class:`Job`; the supervisor answers with messages and closes. Messages are objects with a ``kind``:

``record``   one arm's Record, as soon as it is finished
``result``   what a task other than a cell returned
``note``     one sentence for the user
``done``     the worker ran to its end (worker to supervisor only)
``end``      how the worker ended, an :class:`Ending`; always the last message
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from harness.plan.cell import Cell
from harness.records.record import Record, Status

Task = Literal["trial", "speed", "turns", "ceilings", "judge", "inspect", "oracle"]
PREPARE_LIMIT_S = 900.0
STARTUP_LIMIT_S = 60.0
CANNOT_LOAD = "suite.py cannot be loaded"
# What CUDA and its libraries keep resident on the host before a cell asks for anything.
CUDA_HOST_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Limits:
    """What the supervisor enforces from outside: seconds per arm, while an artefact is built, and before the first arm.

    ``memory_bytes`` bounds the resident memory of the worker and of everything it started, together.
    """

    arm_s: float
    memory_bytes: int
    prepare_s: float = PREPARE_LIMIT_S
    startup_s: float = STARTUP_LIMIT_S


@dataclass(frozen=True)
class Job:
    """One worker's work. ``arms`` are the arms to run, and what the page's index counts.

    ``fresh`` asks for a new interpreter instead of a fork: CUDA does not survive forking.
    """

    task: Task
    root: str
    limits: Limits
    arms: tuple[str, ...] = ()
    cell: str | None = None
    process: int = 0
    argument: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Job:
        """The inverse of :meth:`to_json`."""
        data = json.loads(text)
        data["limits"], data["arms"] = Limits(**data["limits"]), tuple(data["arms"])
        return cls(**data)


@dataclass(frozen=True)
class Ending:
    """How a worker ended: ``done``, or the status its current arm gets, with the reason and the end of its output.

    ``arm`` is the arm it was in, ``"*"`` while all were timed together, None where it had not begun one.
    ``missing``: there is no place left that could run it. ``worker`` is what a record says about where it ran.
    """

    status: Literal["done", "timeout", "oom", "crashed", "cancelled", "missing"]
    reason: str | None = None
    arm: str | None = None
    output_tail: str = ""
    worker: dict[str, Any] = field(default_factory=dict)

    @property
    def last_words(self) -> str | None:
        """The last line it printed, or the reason where it printed nothing."""
        lines = self.output_tail.strip().splitlines()
        return lines[-1] if lines else self.reason


def cell_job(cell: Cell, root: str, arms: tuple[str, ...], process: int = 0) -> Job:
    """The job that runs ``arms`` of ``cell``, which may take ``cell.memory_gib`` on the host and on a device."""
    cuda = cell.device != "cpu"
    return Job(
        task=cell.kind,
        root=root,
        limits=Limits(
            arm_s=cell.timeout_s,
            memory_bytes=int(cell.memory_gib * 2**30) + (CUDA_HOST_BYTES if cuda else 0),
            startup_s=STARTUP_LIMIT_S + cell.timeout_s,
        ),
        arms=arms,
        cell=cell.to_json(),
        process=process,
        fresh=cuda,
    )


def blank_record(cell: Cell, arm: str, status: Status, reason: str | None, **more: Any) -> Record:
    """The record of ``arm`` with everything that is known without running it."""
    return Record(
        cell=cell.id,
        suite=cell.suite,
        experiment=cell.experiment,
        kind=cell.kind,
        arm=arm,
        point=dict(cell.point),
        seed=cell.seed,
        device=cell.device,
        profile=cell.profile,
        status=status,
        card_version=cell.card_version,
        code=cell.code,
        reason=reason,
        tuned=dict(cell.tuned.get(arm, {})),
        repro=repro_line(cell),
        **more,
    )


def repro_line(cell: Cell) -> str:
    """What to type to run this cell alone, in the foreground."""
    return f"litmus repro {cell.id}"


def encode(kind: str, **values: Any) -> bytes:
    """One message as a line."""
    return json.dumps({"kind": kind, **values}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """The inverse of :func:`encode`. Raises ValueError on anything else."""
    message = json.loads(line)
    if not isinstance(message, dict) or "kind" not in message:
        raise ValueError("not a message")
    return message


def record_from(data: dict[str, Any]) -> Record:
    """A Record from a message's ``record`` value."""
    return Record.from_dict(data)


class Lines:
    """Splits a stream of bytes into complete lines."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes, without their newlines."""
        *ended, rest = data.split(b"\n")
        if not ended:
            self._parts.append(rest)
            return []
        first = b"".join([*self._parts, ended[0]])
        self._parts = [rest]
        return [line for line in [first, *ended[1:]] if line]


