"""The card: one paper, its experiments and its claims. Data, strictly validated; reading one imports no torch."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.declare.arithmetic import Condition
from harness.declare.estimate_spec import SPEED_METRICS, Custom, Equivalence, EstimateSpec
from harness.declare.fields import ConditionField, Scalar, ScalarField
from harness.errors import LitmusError, did_you_mean

Profile = Literal["smoke", "small", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
DeviceKind = Literal["cpu", "cuda"]
# Columns a claim's `where` may use besides the experiment's axes.
WHERE_COLUMNS = ("input_bytes", "device")


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Paper(_Model):
    """Where the claims come from."""

    title: str
    arxiv: str | None = None
    year: int = Field(ge=1950, le=2100)
    code: str | None = None
    venue: str | None = None


class Metric(_Model):
    """One number a trial reports. ``better`` gives comparisons their direction; ``series`` marks a learning curve."""

    unit: str = ""
    better: Literal["lower", "higher", "none"] = "none"
    series: bool = False
    help: str = ""


class Measure(_Model):
    """How a speed cell is timed: fresh processes x interleaved rounds, each sample at least ``min_sample_ms`` long."""

    processes: int = Field(default=3, ge=1, le=50)
    rounds: int = Field(default=8, ge=2, le=1000)
    min_sample_ms: float = Field(default=5.0, gt=0, le=10_000)


class Tune(_Model):
    """A fair search: every arm gets as many trials, on seeds disjoint from the reported ones."""

    metric: str
    seeds: int = Field(default=2, ge=1)
    point: dict[str, ScalarField] = Field(default_factory=dict)
    grid: dict[str, dict[str, list[ScalarField]]]


class Override(_Model):
    """What a profile changes in an experiment. The unchanged experiment is profile ``small``."""

    axes: dict[str, list[ScalarField]] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1)
    arms: list[str] | None = None
    measure: Measure | None = None
    timeout_s: float | None = Field(default=None, gt=0)


class Experiment(_Model):
    """One table of cells: arms x axes x seeds, either timed (``speed``) or run once per seed (``trial``)."""

    kind: Literal["speed", "trial"]
    arms: list[str] = Field(min_length=1)
    axes: dict[str, list[ScalarField]] = Field(default_factory=dict)
    seeds: int = Field(default=1, ge=1)
    metrics: dict[str, Metric] = Field(default_factory=dict)
    profiles: dict[Profile, Override | Literal["skip"]] = Field(default_factory=dict)
    devices: list[DeviceKind] = Field(default=["cpu"], min_length=1)
    timeout_s: float = Field(default=120.0, gt=0)
    memory_gib: float = Field(default=8.0, gt=0)
    measure: Measure = Measure()
    tune: Tune | None = None
    help: str = ""

    @model_validator(mode="after")
    def _coherent(self) -> Experiment:
        _distinct("arms", self.arms)
        for name, values in self.axes.items():
            if not values:
                raise ValueError(f"axis '{name}' has no values")
            if name in WHERE_COLUMNS or name in ("seed", "arm"):
                raise ValueError(f"axis '{name}' has a reserved name")
        for profile, override in self.profiles.items():
            if isinstance(override, Override):
                _known(f"profiles.{profile}.axes", override.axes, self.axes)
                _known(f"profiles.{profile}.arms", override.arms or [], self.arms)
        if self.kind == "trial" and not self.metrics:
            raise ValueError("a trial experiment must declare its metrics")
        if self.kind == "speed" and self.metrics:
            raise ValueError("a speed experiment has fixed metrics: " + ", ".join(SPEED_METRICS))
        if self.tune is not None:
            _known("tune.grid", self.tune.grid, self.arms)
            _known("tune.metric", [self.tune.metric], self.metrics)
            _known("tune.point", self.tune.point, self.axes)
            sizes = {arm: _grid_size(grid) for arm, grid in self.tune.grid.items()}
            if len(set(sizes.values())) > 1:
                raise ValueError(f"tune.grid: every arm must get as many trials, found {sizes}")
        return self

    def metric_names(self) -> list[str]:
        """The metrics an estimate may use."""
        return list(SPEED_METRICS) if self.kind == "speed" else list(self.metrics)

    def better(self, metric: str) -> Literal["lower", "higher", "none"]:
        """The direction in which ``metric`` improves."""
        if self.kind == "speed":
            return "higher" if metric in ("bandwidth", "flop_rate") else "lower"
        return self.metrics[metric].better

    def in_profile(self, profile: Profile) -> Experiment | None:
        """This experiment as ``profile`` runs it; None where the profile skips it.

        Without an override, ``smoke`` takes the first value of each axis and one seed, ``full`` equals ``small``.
        """
        override = self.profiles.get(profile)
        if override == "skip":
            return None
        if override is None:
            if profile != "smoke":
                return self
            override = Override(axes={name: values[:1] for name, values in self.axes.items()}, seeds=1)
        changes: dict[str, Any] = {"axes": {**self.axes, **override.axes}}
        for name in ("seeds", "arms", "measure", "timeout_s"):
            value = getattr(override, name)
            if value is not None:
                changes[name] = value
        if profile == "smoke" and override.seeds is None:
            changes["seeds"] = 1
        return self.model_copy(update=changes)


class Part(_Model):
    """One estimate and its decision rule. ``equivalence`` brings its own rule."""

    id: str | None = None
    experiment: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    estimate: EstimateSpec
    supported_if: ConditionField | None = None
    refuted_if: ConditionField | None = None
    points: Literal["all", "any", "pool"] = "all"

    @model_validator(mode="after")
    def _has_rule(self) -> Part:
        if isinstance(self.estimate, Equivalence):
            if self.supported_if or self.refuted_if:
                raise ValueError("an equivalence decides by 'within'; leave supported_if and refuted_if out")
        elif self.supported_if is None or self.refuted_if is None:
            raise ValueError("needs both supported_if and refuted_if: a claim that cannot fail is no claim")
        return self

    def rule(self) -> tuple[str, str]:
        """(supported_if, refuted_if) as condition texts."""
        if isinstance(self.estimate, Equivalence):
            band = f"[{-self.estimate.within!r}, {self.estimate.within!r}]"
            return f"inside {band}", f"outside {band}"
        assert self.supported_if is not None and self.refuted_if is not None  # _has_rule
        return self.supported_if, self.refuted_if


class Requirement(_Model):
    """A precondition of a claim: where it does not hold, the claim is ``not run`` with ``otherwise`` as the reason."""

    experiment: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)
    estimate: EstimateSpec
    holds_if: ConditionField
    points: Literal["all", "any", "pool"] = "all"
    otherwise: str


class Claim(_Model):
    """A sentence of the paper and the rule that judges it.

    Either one estimate at the claim itself or several ``parts``: supported when all are, refuted when one is (Holm).
    """

    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    statement: str
    paper: dict[str, str] = Field(default_factory=dict)
    experiment: str | None = None
    where: dict[str, Any] = Field(default_factory=dict)
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
            raise ValueError("needs either 'estimate' or 'parts'")
        if self.parts and (self.supported_if or self.refuted_if):
            raise ValueError("with 'parts', each part carries its own supported_if and refuted_if")
        self.resolved_parts()  # raises where a part has no rule
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


class Card(_Model):
    """One paper as data."""

    paper: Paper
    version: int = Field(ge=1)
    summary: str
    experiments: dict[str, Experiment] = Field(min_length=1)
    claims: list[Claim] = Field(min_length=1)

    @model_validator(mode="after")
    def _coherent(self) -> Card:
        _distinct("claims", [claim.id for claim in self.claims])
        for claim in self.claims:
            needs: list[Part | Requirement] = [*claim.resolved_parts(), *claim.requires]
            for need in needs:
                self._check_need(claim, need)
        return self

    def _check_need(self, claim: Claim, need: Part | Requirement) -> None:
        name = need.experiment or claim.experiment
        at = f"claim '{claim.id}'"
        if name is None:
            raise ValueError(f"{at}: names no experiment")
        _known(f"{at}: experiment", [name], self.experiments)
        experiment = self.experiments[name]
        estimate = need.estimate
        if not isinstance(estimate, Custom):
            _known(f"{at}: arm", estimate.arms(), experiment.arms)
            _known(f"{at}: metric", estimate.metrics(), experiment.metric_names())
        _known(f"{at}: where", need.where, [*experiment.axes, *WHERE_COLUMNS])
        for value in need.where.values():
            if isinstance(value, str) and value[:1] in "<>=":
                _condition_or_value_error(at, value)

    @cached_property
    def claim_ids(self) -> list[str]:
        return [claim.id for claim in self.claims]


def load_card(path: Path) -> Card:
    """Read and validate one ``card.yaml``. Raises LitmusError naming file, key, value and expectation."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise LitmusError("cannot read the card", where=path, value=error.strerror) from error
    return parse_card(text, path)


def parse_card(text: str, where: object) -> Card:
    """Validate a card given as YAML text; ``where`` names it in messages."""
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise LitmusError(
            "the card is not valid YAML", where=at, value=getattr(error, "problem", None) or str(error),
            expected="a YAML mapping", next_step="check indentation and quotes at that line",
        ) from error
    if not isinstance(data, dict):
        raise LitmusError("the card is not a mapping", where=where, expected="keys paper, version, summary, ...")
    try:
        return Card.model_validate(data)
    except ValidationError as error:
        raise _explain(error, where) from error


def _explain(error: ValidationError, where: object) -> LitmusError:
    first = error.errors()[0]
    key = ".".join(str(item) for item in first["loc"])
    value, expected, step = first.get("input"), first["msg"].removeprefix("Value error, "), "fix the card"
    problem = "the card is not valid"
    if first["type"] == "extra_forbidden":
        problem, value = "unknown key", first["loc"][-1]
        expected = did_you_mean(str(value), _known_keys_at(first["loc"]))
        step = "remove the key or correct its name"
    elif first["type"] == "missing":
        problem, value, expected = "a required key is missing", None, "this key"
        step = "add it; 'litmus new' writes a complete example"
    if isinstance(value, dict | list):
        value = None
    more = len(error.errors()) - 1
    if more:
        step += f" ({more} more problem{'s' if more > 1 else ''} in this card)"
    return LitmusError(problem, where=where, key=key, value=value, expected=expected, next_step=step)


def _known_keys_at(loc: tuple[int | str, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "paper": Paper, "metrics": Metric, "measure": Measure, "tune": Tune, "profiles": Override,
        "parts": Part, "requires": Requirement, "claims": Claim, "experiments": Experiment,
    }
    for name in reversed([str(item) for item in loc[:-1]]):
        if name in models:
            return list(models[name].model_fields)
    return list(Card.model_fields)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # base chosen at run time
    """A safe loader that refuses a key given twice, which YAML would silently overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            if isinstance(key, str | int):
                seen.add(key)
        return super().construct_mapping(node, deep)  # type: ignore[no-any-return]


def _known(what: str, names: Any, known: Any) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{what} '{name}' does not exist; {did_you_mean(str(name), known)}")


def _distinct(what: str, names: list[str]) -> None:
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"{what} given twice: {', '.join(sorted(twice))}")


def _condition_or_value_error(at: str, text: str) -> None:
    from harness.declare.fields import MACHINE_NAMES

    try:
        Condition.parse(text, dict.fromkeys(MACHINE_NAMES, 1))
    except LitmusError as error:
        raise ValueError(f"{at}: where '{text}': {error.expected}") from error


def _grid_size(grid: dict[str, list[Scalar]]) -> int:
    size = 1
    for values in grid.values():
        size *= len(values)
    return size
