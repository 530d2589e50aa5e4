"""What is said about one number on two sides, base and head: a word, a reason code, an interval. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Word = Literal["faster", "slower", "better", "worse", "same", "inconclusive", "incomparable"]
BAD: tuple[Word, ...] = ("slower", "worse")
GOOD: tuple[Word, ...] = ("faster", "better")

# Every reason code with what it means; {} in a sentence is filled from the comparison.
REASONS: Mapping[str, str] = {
    "beyond_zone": "the whole interval lies beyond the zone of equality",
    "inside_zone": "the whole interval lies inside the zone of equality",
    "identical": "both sides gave exactly the same numbers",
    "straddles_zone": "the interval reaches across a bound of the zone of equality",
    "not_after_holm": "beyond the zone by itself, but not at the level that many comparisons together need",
    "few_units": "too few rounds, processes or seeds for an interval",
    "budget_spent": "the time ran out before the interval was narrow enough",
    "undefined": "a value is not a finite number",
    "canary": "equal code did not take equal time meanwhile",
    "machine": "measured on different machines",
    "device": "measured on different devices",
    "card_version": "the card's version differs: its numbers may not be compared across it",
    "data": "the data differ (another interpreter or library made them)",
    "point": "the points measured differ",
    "only_base": "only the base has it",
    "only_head": "only the head has it",
    "base_status": "the base did not finish it",
    "head_status": "the head did not finish it: a regression by itself",
    "no_load": "one side's suite cannot be loaded by this harness",
    "one_direction": "a metric without a better direction",
}


@dataclass(frozen=True)
class Comparison:
    """One metric of one arm at one point on both sides.

    ``change`` is head / base - 1 for time and for relative thresholds, head - base otherwise, with its interval
    [low, high] at ``level`` over ``n`` independent ``unit``s; positive is slower, or a larger metric. ``threshold`` is
    the half width of the zone of equality actually used, in the units of ``change``. ``gates`` says whether a bad word
    fails the command.
    """

    suite: str
    experiment: str
    arm: str
    metric: str
    verdict: Word
    reason: str
    point: Mapping[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    detail: str = ""
    change: float | None = None
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    relative: bool = True
    n: int = 0
    unit: str = "round"
    threshold: float = 0.0
    better: Literal["lower", "higher", "none"] = "lower"
    gates: bool = True
    base: float | None = None
    head: float | None = None

    def __post_init__(self) -> None:
        if self.reason not in REASONS:
            raise ValueError(f"unknown reason code {self.reason!r}")

    @property
    def label(self) -> str:
        """Readable and unique within one comparison of two sides."""
        point = ",".join(f"{axis}={value}" for axis, value in self.point.items())
        return f"{self.suite}/{self.experiment}[{point}] {self.arm} {self.metric} @{self.device}"

    @property
    def is_bad(self) -> bool:
        """Whether it speaks against the head: a worse word, or an arm that the head can no longer run."""
        return self.verdict in BAD or self.reason == "head_status"

    def to_dict(self) -> dict[str, Any]:
        """Every field, for JSON."""
        return {**asdict(self), "label": self.label}


@dataclass(frozen=True)
class Outcome:
    """All comparisons of two sides with what must be known to trust them.

    ``alarms`` are sentences about the whole: a canary that tripped (then ``canary_failed``), or changes that go one way
    only. ``notes`` are sentences without a judgement. ``base`` and ``head`` name the sides (commit or run).
    """

    base: str
    head: str
    comparisons: tuple[Comparison, ...]
    alarms: tuple[str, ...] = ()
    canary_failed: bool = False
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 clean, 1 regression, 3 nothing comparable, 4 the head crashed or is wrong, 5 canary failed."""
        gating = [item for item in self.comparisons if item.gates]
        if any(item.reason == "head_status" for item in gating):
            return 4
        if self.canary_failed:
            return 5
        if not any(item.verdict != "incomparable" for item in self.comparisons):
            return 3
        return 1 if any(item.verdict in BAD for item in gating) else 0

    def to_dict(self) -> dict[str, Any]:
        """Every field, for JSON."""
        return {
            "base": self.base, "head": self.head, "exit_code": self.exit_code, "alarms": list(self.alarms),
            "notes": list(self.notes), "canary_failed": self.canary_failed, "seconds": self.seconds,
            "comparisons": [item.to_dict() for item in self.comparisons],
        }
