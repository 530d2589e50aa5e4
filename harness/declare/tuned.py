"""``tuned.yaml``: the winners of ``litmus tune``, with the scores and the command that found them. Generated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from harness.declare.experiment import Experiment
from harness.declare.fields import Scalar
from harness.errors import LitmusError


class Score(BaseModel):
    """One trial of the search: the hyperparameters and the metric's mean over the tuning seeds."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    values: dict[str, Scalar]
    score: float | None
    per_seed: list[float | None] = Field(default_factory=list)


class Winner(BaseModel):
    """What one arm won with, and everything that was tried."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    values: dict[str, Scalar]
    trials: list[Score]
    extended: bool = False
    at_edge: list[str] = Field(default_factory=list)  # where a value beyond the winner's was never tried


class TunedExperiment(BaseModel):
    """One experiment's search."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    command: str
    commit: str
    code: str
    metric: str
    seeds: list[int]
    point: dict[str, Scalar | list[Scalar]]
    arms: dict[str, Winner]


class Tuned(BaseModel):
    """The whole file; empty where a suite was never tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    experiments: dict[str, TunedExperiment] = Field(default_factory=dict)

    def given(self, experiment: Experiment, name: str, arm: str) -> dict[str, Any]:
        """What a trial of ``arm`` gets as ``tuned``: its own winner's values and those that it takes from another."""
        return {**self.taken(experiment, arm), **(self.values(name, arm) or {})}

    def taken(self, experiment: Experiment, arm: str) -> Mapping[str, Any]:
        """The winner's values that ``arm`` takes from another search; none where it takes no other's."""
        source = experiment.tuned_from.get(arm)
        return (self.values(*source.split(":")) if source else None) or {}

    def missing(self, experiment: Experiment, name: str) -> list[tuple[str, str]]:
        """The (experiment, arm) whose winners the experiment ``name`` needs and that were not searched yet."""
        own = [(name, arm) for arm in experiment.tune.grid] if experiment.tune else []
        return [pair for pair in own + self.borrowed(experiment) if self.values(*pair) is None]

    @staticmethod
    def borrowed(experiment: Experiment) -> list[tuple[str, str]]:
        """The (experiment, arm) whose winners ``experiment`` takes over, each once."""
        pairs = [tuple(source.split(":")) for source in experiment.tuned_from.values()]
        return list(dict.fromkeys((of, arm) for of, arm in pairs))

    def values(self, experiment: str, arm: str) -> Mapping[str, Any] | None:
        """The winning hyperparameters of an arm, None where it was not tuned."""
        entry = self.experiments.get(experiment)
        winner = entry.arms.get(arm) if entry else None
        return winner.values if winner else None


def load_tuned(path: Path) -> Tuned:
    """Read ``tuned.yaml``; an absent file is an empty table."""
    if not path.exists():
        return Tuned()
    try:
        return Tuned.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise LitmusError(
            "tuned.yaml is not valid", where=path, value=str(error).splitlines()[0],
            expected="the file that 'litmus tune' writes",
            next_step=f"delete it and run: litmus tune {path.parent.name}",
        ) from error
