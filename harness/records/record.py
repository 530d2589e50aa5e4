"""The record: what one arm of one cell leaves, always, however the cell ended."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

SCHEMA_VERSION = 3

Cache = Literal["cold", "warm"]
Status = Literal["ok", "wrong", "timeout", "oom", "crashed", "throttled", "skipped"]
STATUSES: tuple[str, ...] = get_args(Status)


@dataclass(frozen=True)
class Samples:
    """Raw timings of one speed arm, column-wise: sample i took ``elapsed_ns[i]`` for ``calls[i]`` calls.

    ``process`` and ``round`` name the pairing unit, ``position`` the place inside the round's ABBA order.
    """

    process: list[int] = field(default_factory=list)
    round: list[int] = field(default_factory=list)
    position: list[int] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    elapsed_ns: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Record:
    """One arm of one cell. Times in ns, sizes in bytes, unrounded.

    ``metrics`` holds a trial's numbers and series (list values). ``reason`` explains every status but ``ok``.
    ``code`` is the hash of the suite's files and of what they import, ``data`` of the data set if the suite gave one.

    ``samples`` are what is judged. On CUDA they were taken with the device's L2 cache as ``cache`` says, and
    ``other_samples`` hold the other state from the same rounds; on a CPU ``cache`` is None and there are no others.
    ``how`` says how they were taken on CUDA: the timer, clocks, dropped rounds (see ``harness.run.measure.cuda``).
    ``worker`` says where it ran beyond what ``run.json`` says of all, such as the machine of a cluster.
    ``peak_bytes`` is what one call needed at its peak beyond what was there before it, on the device for CUDA; the arm
    declares ``workspace_bytes`` of it, and ``returned_bytes`` are the fresh arrays that the call returned.
    """

    cell: str
    suite: str
    experiment: str
    kind: Literal["speed", "trial"]
    arm: str
    point: dict[str, Any]
    seed: int
    device: str
    profile: str
    status: Status
    card_version: int
    code: str
    reason: str | None = None
    started_at: float = 0.0
    elapsed_ns: int = 0
    prepare_ns: int = 0
    first_call_ns: int = 0
    peak_bytes: int = 0
    metrics: dict[str, float | list[float]] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    input_bytes: int = 0
    bytes_moved: float = 0.0
    flops: float = 0.0
    error: float | None = None
    tolerance: float | None = None
    workspace_bytes: float | None = None
    returned_bytes: int = 0
    cache: Cache | None = None
    other_samples: Samples = field(default_factory=Samples)
    how: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    stderr_tail: str = ""
    repro: str = ""
    attempt: int = 1
    worker: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """One line of JSON; non-finite numbers are kept as NaN, Infinity, -Infinity."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> Record:
        """The inverse of :meth:`to_json`. Raises ValueError on anything else, unknown keys included."""
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError("a record is a JSON object")
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Record:
        """The inverse of ``asdict``; what an older record lacks is absent. Raises ValueError on anything else."""
        unknown = set(data) - {item.name for item in fields(cls)}
        if unknown:
            raise ValueError(f"unknown record keys: {sorted(unknown)}")
        if data.get("status") not in STATUSES:
            raise ValueError(f"unknown status {data.get('status')!r}")
        try:
            timings = {name: Samples(**data.get(name, {})) for name in ("samples", "other_samples")}
            return cls(**{**data, **timings})
        except TypeError as error:
            raise ValueError(str(error)) from error
