"""The card: one paper, its experiments and its claims. Data, strictly validated; reading one imports no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from harness.declare.checks import Model, distinct, known
from harness.declare.claim import Claim, Part, Requirement
from harness.declare.estimate_spec import Custom, Slope
from harness.declare.experiment import (
    PROFILES,
    WHERE_COLUMNS,
    Experiment,
    FastPath,
    Measure,
    Metric,
    Override,
    Profile,
    Tune,
)
from harness.declare.explain import CardFault, explain
from harness.declare.fields import is_condition
from harness.declare.strict_yaml import parse_mapping
from harness.errors import LitmusError, did_you_mean

__all__ = [
    "PROFILES",
    "WHERE_COLUMNS",
    "Card",
    "Claim",
    "Experiment",
    "FastPath",
    "Measure",
    "Metric",
    "Override",
    "Paper",
    "Part",
    "Profile",
    "Requirement",
    "Tune",
    "load_card",
    "parse_card",
]


class Paper(Model):
    """Where the claims come from."""

    title: str
    arxiv: str | None = None
    year: int = Field(ge=1950, le=2100)
    code: str | None = None
    venue: str | None = None


class Card(Model):
    """One paper as data."""

    paper: Paper
    version: int = Field(ge=1)
    summary: str
    experiments: dict[str, Experiment] = Field(min_length=1)
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> Card:
        distinct("claims", [claim.id for claim in self.claims])
        for name, experiment in self.experiments.items():
            known("search", experiment.tuned_from.values(), self._searches(), f"experiments.{name}.tuned_from")
        for claim in self.claims:
            needs: list[Part | Requirement] = [*claim.resolved_parts(), *claim.requires]
            for need in needs:
                self._check_need(claim, need)
        return self

    def _searches(self) -> list[str]:
        """Every ``experiment:arm`` that has a grid."""
        return [f"{name}:{arm}" for name, item in self.experiments.items() if item.tune for arm in item.tune.grid]

    def _check_need(self, claim: Claim, need: Part | Requirement) -> None:
        name, at = need.experiment or claim.experiment, f"claims[{claim.id}]"
        if name is None:
            raise CardFault("the claim names no experiment", key=at, next_step="add it to the claim or to each part",
                            expected="'experiment'; " + did_you_mean("", self.experiments))
        known("experiment", [name], self.experiments, at)
        experiment, estimate = self.experiments[name], need.estimate
        if not isinstance(estimate, Custom):
            known("arm", estimate.arms(), experiment.arms, f"{at}.estimate")
            known("metric", estimate.metrics(), experiment.metric_names(), f"{at}.estimate")
        if isinstance(estimate, Slope):
            known("axis", [estimate.against], experiment.axes, f"{at}.estimate.against")
        known("axis", need.where, [*experiment.axes, *WHERE_COLUMNS], f"{at}.where")
        for axis, wanted in need.where.items():
            if axis in experiment.axes and not is_condition(wanted):
                values = wanted if isinstance(wanted, list) else [wanted]
                known(f"value of axis {axis}", values, experiment.axis_values(axis), f"{at}.where.{axis}")

    @cached_property
    def claim_ids(self) -> list[str]:
        """The claims' ids in the card's order."""
        return [claim.id for claim in self.claims]


def load_card(path: Path) -> Card:
    """Read and validate one ``card.yaml``. Raises LitmusError naming file, key, value and expectation."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LitmusError("cannot read the card", where=path, value=error.strerror, expected="a file that can be read",
                          next_step="check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise LitmusError("the card is not UTF-8 text", where=path, value=error.reason, expected="a YAML text file",
                          next_step="save it as UTF-8") from error
    return parse_card(text, path)


def parse_card(text: str, where: object) -> Card:
    """Validate a card given as YAML text; ``where`` names it in messages."""
    data = parse_mapping(text, where, "the card", Card.model_fields, "see an example with: litmus new")
    try:
        return Card.model_validate(data)
    except ValidationError as error:
        raise explain(error, Card, data, where) from error
