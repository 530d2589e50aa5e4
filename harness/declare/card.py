"""The card: one paper, its experiments and its claims. Data, strictly validated; reading one imports no torch."""

from __future__ import annotations

import itertools
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from harness.declare.arithmetic import Condition
from harness.declare.estimate_spec import SPEED_METRICS, Custom, Equivalence, EstimateSpec, Slope
from harness.declare.explain import CardFault, explain
from harness.declare.fields import MACHINE_NAMES, ConditionField, Scalar, ScalarField, WhereField, is_condition
from harness.errors import LitmusError, did_you_mean

Profile = Literal["smoke", "small", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
DeviceKind = Literal["cpu", "cuda"]
# Columns a claim's `where` may use besides the experiment's axes.
WHERE_COLUMNS = ("input_bytes", "device")
RESERVED_COLUMNS = (*WHERE_COLUMNS, "cell", "arm", "seed", "process", "unit")


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
    def _columns_apart(self) -> Experiment:
        for name in self.metric_names():
            if name in RESERVED_COLUMNS or name in self.axes:
                raise CardFault("a metric has the name of another column", value=name, next_step="rename one of them",
                                expected="a name other than " + ", ".join([*RESERVED_COLUMNS, *self.axes]))
        return self

    @model_validator(mode="after")
    def _coherent(self) -> Experiment:
        _distinct("arms", self.arms)
        for name, values in self.axes.items():
            if not values:
                raise CardFault(f"axis '{name}' has no values", expected="one value or more")
            if name in RESERVED_COLUMNS:
                raise CardFault("an axis has a reserved name", value=name, next_step="rename the axis",
                                expected="a name other than " + ", ".join(RESERVED_COLUMNS))
        for profile, override in self.profiles.items():
            if isinstance(override, Override):
                _known("axis", override.axes, self.axes, f"profiles.{profile}.axes")
                _known("arm", override.arms or [], self.arms, f"profiles.{profile}.arms")
        if self.kind == "trial" and not self.metrics:
            raise CardFault("a trial experiment declares no metrics", expected="the numbers its function returns",
                            next_step="add them: metrics: {val_loss: {better: lower}}")
        if self.kind == "speed" and self.metrics:
            raise CardFault("a speed experiment declares metrics", value=", ".join(self.metrics),
                            expected="none: they are " + ", ".join(SPEED_METRICS), next_step="remove 'metrics'")
        if self.tune is not None:
            _known("arm", self.tune.grid, self.arms, "tune.grid")
            _known("metric", [self.tune.metric], self.metrics, "tune.metric")
            _known("axis", self.tune.point, self.axes, "tune.point")
            sizes = {arm: _grid_size(grid) for arm, grid in self.tune.grid.items()}
            if len(set(sizes.values())) > 1:
                found = ", ".join(f"{arm}: {size}" for arm, size in sizes.items())
                raise CardFault("the tuning grids differ in size", value=found,
                                expected="as many trials for every arm", next_step="make the grids equally large")
        return self

    def metric_names(self) -> list[str]:
        """The metrics an estimate may use."""
        return list(SPEED_METRICS) if self.kind == "speed" else list(self.metrics)

    def grid(self) -> list[dict[str, Scalar]]:
        """Every point of the axes, the last axis varying fastest; one empty point without axes."""
        return [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]

    def axis_values(self, axis: str) -> list[Scalar]:
        """Every value that ``axis`` takes in some profile."""
        overrides = [item.axes.get(axis, []) for item in self.profiles.values() if isinstance(item, Override)]
        return [value for values in (self.axes[axis], *overrides) for value in values]

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


class Requirement(_Model):
    """A precondition of a claim: where it does not hold, the claim is ``not run`` with ``otherwise`` as the reason."""

    experiment: str | None = None
    where: dict[str, WhereField] = Field(default_factory=dict)
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
        _distinct("parts", [str(part.id) for part in self.resolved_parts()])  # raises too where a part has no rule
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
        name, at = need.experiment or claim.experiment, f"claims[{claim.id}]"
        if name is None:
            raise CardFault("the claim names no experiment", key=at, next_step="add it to the claim or to each part",
                            expected="'experiment'; " + did_you_mean("", self.experiments))
        _known("experiment", [name], self.experiments, at)
        experiment, estimate = self.experiments[name], need.estimate
        if not isinstance(estimate, Custom):
            _known("arm", estimate.arms(), experiment.arms, f"{at}.estimate")
            _known("metric", estimate.metrics(), experiment.metric_names(), f"{at}.estimate")
        if isinstance(estimate, Slope):
            _known("axis", [estimate.against], experiment.axes, f"{at}.estimate.against")
        _known("axis", need.where, [*experiment.axes, *WHERE_COLUMNS], f"{at}.where")
        for axis, wanted in need.where.items():
            if axis in experiment.axes and not is_condition(wanted):
                values = wanted if isinstance(wanted, list) else [wanted]
                _known(f"value of axis {axis}", values, experiment.axis_values(axis), f"{at}.where.{axis}")

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
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise LitmusError(
            "the card is not valid YAML", where=at, value=getattr(error, "problem", None) or str(error),
            expected="a YAML mapping", next_step="check indentation and quotes at that line",
        ) from error
    except RecursionError as error:
        raise LitmusError("the card is nested too deeply", where=where, expected="a card a few levels deep",
                          next_step="see an example with: litmus new") from error
    if not isinstance(data, dict):
        raise LitmusError("the card is not a mapping", where=where, value=type(data).__name__, next_step="see an "
                          "example with: litmus new", expected="the keys " + ", ".join(Card.model_fields))
    try:
        return Card.model_validate(data)
    except ValidationError as error:
        raise explain(error, Card, data, where) from error


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


def _known(what: str, names: Any, known: Any, key: str = "") -> None:
    for name in names:
        if name not in known:
            near = did_you_mean(str(name), [str(item) for item in known])
            raise CardFault(f"this {what} does not exist", key=key, value=name, expected=near,
                            next_step="correct it, or declare it in the experiment")


def _distinct(what: str, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CardFault(f"{what} given twice", value=", ".join(twice), expected="each name once",
                        next_step="rename one")


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


def _grid_size(grid: dict[str, list[Scalar]]) -> int:
    size = 1
    for values in grid.values():
        size *= len(values)
    return size
