"""The cell: the unit of isolation, resume and identity. All arms are inside, so arms are always paired."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from harness.declare.card import Measure


@dataclass(frozen=True)
class Cell:
    """(suite, experiment, point, seed, device) with everything a worker needs to run it.

    ``tuned`` maps arm to its hyperparameters. ``code`` is the hash of the suite and of what it imports.
    """

    suite: str
    experiment: str
    kind: Literal["speed", "trial"]
    point: Mapping[str, Any]
    seed: int
    device: str
    profile: str
    arms: tuple[str, ...]
    card_version: int
    code: str
    tuned: Mapping[str, Mapping[str, Any]]
    measure: Measure
    timeout_s: float
    memory_gib: float

    @cached_property
    def id(self) -> str:
        """16 hex digits of the content: equal when and only when a finished record answers the same question.

        Limits (time, memory) and the profile's name are left out: they do not change the numbers.
        """
        parts = {
            "suite": self.suite, "experiment": self.experiment, "point": dict(self.point), "seed": self.seed,
            "device": self.device, "arms": self.arms, "card_version": self.card_version, "code": self.code,
            "tuned": {arm: dict(values) for arm, values in self.tuned.items()},
            "measure": self._measured() if self.kind == "speed" else None,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    def _measured(self) -> dict[str, Any]:
        """The part of ``measure`` that the numbers depend on here: a CPU's times know no cold and warm."""
        return self.measure.model_dump(exclude={"cache"} if self.device == "cpu" else None)

    @property
    def label(self) -> str:
        """The selector that names this cell's point: ``suite:experiment[axis=value,...]``."""
        axes = ",".join(f"{name}={value}" for name, value in self.point.items())
        return f"{self.suite}:{self.experiment}" + (f"[{axes}]" if axes else "")

    def to_json(self) -> str:
        """One line of JSON, for the worker's protocol."""
        data = {**{k: v for k, v in asdict(self).items() if k != "measure"}, "measure": self.measure.model_dump()}
        data["point"], data["tuned"] = dict(self.point), {arm: dict(v) for arm, v in self.tuned.items()}
        return json.dumps(data, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Cell:
        """The inverse of :meth:`to_json`."""
        data = json.loads(text)
        data["measure"] = Measure.model_validate(data["measure"])
        data["arms"] = tuple(data["arms"])
        return cls(**data)
