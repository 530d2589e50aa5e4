"""The claims of a card: a sentence of the paper, the estimate that tests it and the rule that decides."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from harness.declare.arithmetic import Condition
from harness.declare.checks import Model, distinct
from harness.declare.estimate_spec import Equivalence, EstimateSpec
from harness.declare.explain import CardFault
from harness.declare.fields import MACHINE_NAMES, ConditionField, WhereField


class Part(Model):
    """One estimate and its decision rule. ``equivalence`` brings its own rule."""

    id: str | None = None
    experiment: str | None = None
    where: dict[str, WhereField] = Field(default_factory=dict)
    estimate: EstimateSpec
    supported_if: ConditionField | None = None
    refuted_if: ConditionField | None = None
    points: Literal["all", "any", "pool"] = "all"

    @model_validator(mode="after")
    def _has_rule(self) -> Part:
        if isinstance(self.estimate, Equivalence):
            if self.supported_if or self.refuted_if:
                raise CardFault("an equivalence has supported_if or refuted_if", expected="only 'within'",
                                next_step="remove supported_if and refuted_if")
        elif self.supported_if is None or self.refuted_if is None:
            raise CardFault("half of the decision rule is missing", next_step="add the other one",
                            expected="both supported_if and refuted_if: a claim that cannot fail is no claim")
        else:
            _decidable(self.estimate, self.supported_if, self.refuted_if)
        return self

    def rule(self) -> tuple[str, str]:
        """(supported_if, refuted_if) as condition texts."""
        if isinstance(self.estimate, Equivalence):
            band = f"[{-self.estimate.within!r}, {self.estimate.within!r}]"
            return f"inside {band}", f"outside {band}"
        assert self.supported_if is not None and self.refuted_if is not None  # _has_rule
        return self.supported_if, self.refuted_if


class Requirement(Model):
    """A precondition of a claim: where it does not hold, the claim is ``not run`` with ``otherwise`` as the reason."""

    experiment: str | None = None
    where: dict[str, WhereField] = Field(default_factory=dict)
    estimate: EstimateSpec
    holds_if: ConditionField
    points: Literal["all", "any", "pool"] = "all"
    otherwise: str


class Claim(Model):
    """A sentence of the paper and the rule that judges it.

    Either one estimate at the claim itself or several ``parts``: supported when all are, refuted when one is (Holm).
    """

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    statement: str
    paper: dict[str, str] = Field(default_factory=dict)
    experiment: str | None = None
    where: dict[str, WhereField] = Field(default_factory=dict)
    estimate: EstimateSpec | None = None
    supported_if: ConditionField | None = None
    refuted_if: ConditionField | None = None
    points: Literal["all", "any", "pool"] = "all"
    parts: list[Part] = Field(default_factory=list)
    requires: list[Requirement] = Field(default_factory=list)
    unit: str | None = None
    min_seeds: int = Field(default=5, ge=1)
    scale: dict[str, str] = Field(default_factory=dict)
    note: str | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Claim:
        if bool(self.parts) == (self.estimate is not None):
            raise CardFault("the claim has no test, or two", expected="either 'estimate' or 'parts'",
                            next_step="keep one of the two")
        if self.parts and (self.supported_if or self.refuted_if):
            raise CardFault("the claim has a rule beside its parts", next_step="move it into the parts",
                            expected="supported_if and refuted_if in each part")
        distinct("parts", [str(part.id) for part in self.resolved_parts()])  # raises too where a part has no rule
        return self

    def resolved_parts(self) -> list[Part]:
        """The parts with experiment and where inherited from the claim; a single estimate is one part."""
        if self.parts:
            return [
                part.model_copy(
                    update={
                        "experiment": part.experiment or self.experiment,
                        "where": {**self.where, **part.where},
                        "id": part.id or str(index + 1),
                    }
                )
                for index, part in enumerate(self.parts)
            ]
        assert self.estimate is not None  # _one_form
        return [
            Part(
                id=self.id,
                experiment=self.experiment,
                where=self.where,
                estimate=self.estimate,
                supported_if=self.supported_if,
                refuted_if=self.refuted_if,
                points=self.points,
            )
        ]


def _decidable(estimate: EstimateSpec, supported_if: str, refuted_if: str) -> None:
    """Refuse a rule under which one verdict is out of reach, or two could hold at once."""
    names = dict.fromkeys(MACHINE_NAMES, 1)
    supported, refuted = Condition.parse(supported_if, names), Condition.parse(refuted_if, names)
    low, high = estimate.domain()
    for key, condition in (("supported_if", supported), ("refuted_if", refuted)):
        if not condition.meets(low, high):
            raise CardFault(f"{key} can never hold", value=str(condition), next_step="move the bound",
                            expected=f"a region that this estimate can reach: it lies in [{low:g}, {high:g}]")
    if not any(name in supported_if + refuted_if for name in MACHINE_NAMES) and supported.overlaps(refuted):
        raise CardFault("supported_if and refuted_if overlap", value=f"{supported_if} and {refuted_if}",
                        expected="regions that no interval lies in both of", next_step="move one bound")
