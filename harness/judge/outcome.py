"""What a judgement leaves: the verdict of a claim and of its parts, as in ``verdicts.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.declare.suite import Estimate
from harness.records.store import Verdict, finite


@dataclass(frozen=True)
class Interval:
    """An interval at confidence ``level``."""

    low: float
    high: float
    level: float

    def to_dict(self) -> dict[str, Any]:
        """low, high (None where unbounded) and level."""
        return {"low": finite(self.low), "high": finite(self.high), "level": self.level}


@dataclass(frozen=True)
class PartVerdict:
    """The verdict of one part of a claim at one point of its axes (``point`` is {} when the points are pooled).

    ``estimate`` decides support, ``refute_interval`` (the same estimate at the Holm level) decides refutation;
    both are None where nothing could be computed. ``supported_if`` and ``refuted_if`` are the card's; where the A/A
    floor narrowed them, ``reason`` says so. ``cells`` are the ids of the cells that decided.
    """

    id: str
    experiment: str
    point: dict[str, Any]
    estimate: Estimate | None
    refute_interval: Interval | None
    supported_if: str
    refuted_if: str
    verdict: Verdict
    reason: str
    cells: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in ``verdicts.json``; an unbounded or undefined number is None, since JSON has none of them."""
        return {
            "id": self.id, "experiment": self.experiment, "point": dict(self.point),
            "estimate": None if self.estimate is None else _estimate_dict(self.estimate),
            "refute_interval": None if self.refute_interval is None else self.refute_interval.to_dict(),
            "supported_if": self.supported_if, "refuted_if": self.refuted_if, "verdict": self.verdict,
            "reason": self.reason, "cells": list(self.cells),
        }


@dataclass(frozen=True)
class ClaimVerdict:
    """The verdict of a claim with one sentence that says why, and the parts it follows from."""

    suite: str
    claim: str
    verdict: Verdict
    reason: str
    scale: dict[str, str]
    note: str | None
    parts: tuple[PartVerdict, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As in ``verdicts.json``, see :meth:`PartVerdict.to_dict`."""
        return {
            "suite": self.suite, "claim": self.claim, "verdict": self.verdict, "reason": self.reason,
            "scale": dict(self.scale), "note": self.note, "parts": [part.to_dict() for part in self.parts],
        }


def _estimate_dict(estimate: Estimate) -> dict[str, Any]:
    return {
        "point": finite(estimate.point), "low": finite(estimate.low), "high": finite(estimate.high),
        "level": estimate.level, "n": estimate.n, "unit": estimate.unit, "method": estimate.method,
    }
