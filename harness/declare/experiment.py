"""The experiments of a card: arms, axes, seeds, what each profile changes, and how arms are tuned and timed."""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

from pydantic import Field, model_validator

from harness.declare.checks import Model, distinct, known
from harness.declare.estimate_spec import SPEED_METRICS
from harness.declare.explain import CardFault
from harness.declare.fields import NumberField, Scalar, ScalarField, ScalarsField

Profile = Literal["smoke", "small", "full"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
DeviceKind = Literal["cpu", "cuda"]
# Columns a claim's `where` may use besides the experiment's axes.
WHERE_COLUMNS = ("input_bytes", "device")
RESERVED_COLUMNS = (*WHERE_COLUMNS, "cell", "arm", "seed", "process", "unit")


class Metric(Model):
    """One number a trial reports. ``better`` gives comparisons their direction; ``series`` marks a learning curve."""

    unit: str = ""
    better: Literal["lower", "higher", "none"] = "none"
    series: bool = False
    help: str = ""


class Measure(Model):
    """How a speed cell is timed: fresh processes x interleaved rounds, each sample at least ``min_sample_ms`` long.

    On CUDA every call is timed with a flushed (``cold``) and an unflushed L2 (``warm``); ``cache`` says which times are
    judged, the others are recorded beside them. It means nothing on a CPU.
    """

    processes: int = Field(default=3, ge=1, le=50)
    rounds: int = Field(default=8, ge=2, le=1000)
    min_sample_ms: float = Field(default=5.0, gt=0, le=10_000)
    cache: Literal["cold", "warm"] = "cold"


class Tune(Model):
    """A fair search: every arm gets as many trials, on seeds disjoint from the reported ones.

    ``point`` gives the axes' values, one or a list of them; the score is the mean over all their combinations and
    seeds. ``limits`` are the smallest and largest value that a hyperparameter may take when a grid is extended.
    """

    metric: str
    seeds: int = Field(default=2, ge=1)
    point: dict[str, ScalarsField] = Field(default_factory=dict)
    limits: dict[str, tuple[NumberField, NumberField]] = Field(default_factory=dict)
    grid: dict[str, dict[str, list[ScalarField]]]


class FastPath(Model):
    """The report's page of fast paths shows this experiment: every arm but ``peers`` is ours and held against them.

    ``op`` is the heading under which experiments stand together. It steers the page alone: no cell depends on it.
    """

    op: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    peers: list[str] = Field(min_length=1)


class Override(Model):
    """What a profile changes in an experiment. The unchanged experiment is profile ``small``."""

    axes: dict[str, list[ScalarField]] = Field(default_factory=dict)
    seeds: int | None = Field(default=None, ge=1)
    arms: list[str] | None = None
    measure: Measure | None = None
    timeout_s: float | None = Field(default=None, gt=0)
    memory_gib: float | None = Field(default=None, gt=0)


class Experiment(Model):
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
    tuned_from: dict[str, str] = Field(default_factory=dict)
    fast_path: FastPath | None = None
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
        distinct("arms", self.arms)
        for name, values in self.axes.items():
            if not values:
                raise CardFault(f"axis '{name}' has no values", expected="one value or more")
            if name in RESERVED_COLUMNS:
                raise CardFault("an axis has a reserved name", value=name, next_step="rename the axis",
                                expected="a name other than " + ", ".join(RESERVED_COLUMNS))
        for profile, override in self.profiles.items():
            if isinstance(override, Override):
                known("axis", override.axes, self.axes, f"profiles.{profile}.axes")
                known("arm", override.arms or [], self.arms, f"profiles.{profile}.arms")
        if self.kind == "trial" and not self.metrics:
            raise CardFault("a trial experiment declares no metrics", expected="the numbers its function returns",
                            next_step="add them: metrics: {val_loss: {better: lower}}")
        if self.kind == "speed" and self.metrics:
            raise CardFault("a speed experiment declares metrics", value=", ".join(self.metrics),
                            expected="none: they are " + ", ".join(SPEED_METRICS), next_step="remove 'metrics'")
        if self.tune is not None:
            known("arm", self.tune.grid, self.arms, "tune.grid")
            known("metric", [self.tune.metric], self.metrics, "tune.metric")
            known("axis", self.tune.point, self.axes, "tune.point")
            names = {name for grid in self.tune.grid.values() for name in grid}
            known("hyperparameter", self.tune.limits, sorted(names), "tune.limits")
            sizes = {arm: _grid_size(grid) for arm, grid in self.tune.grid.items()}
            if len(set(sizes.values())) > 1:
                found = ", ".join(f"{arm}: {size}" for arm, size in sizes.items())
                raise CardFault("the tuning grids differ in size", value=found,
                                expected="as many trials for every arm", next_step="make the grids equally large")
        return self

    @model_validator(mode="after")
    def _borrows_for_its_arms(self) -> Experiment:
        known("arm", self.tuned_from, self.arms, "tuned_from")
        if self.tuned_from and self.kind != "trial":
            raise CardFault("a speed experiment takes no tuned values", key="tuned_from", expected="kind: trial",
                            next_step="remove 'tuned_from'")
        return self

    @model_validator(mode="after")
    def _fast_path_has_two_sides(self) -> Experiment:
        if self.fast_path is None:
            return self
        if self.kind != "speed":
            raise CardFault("a trial experiment is no fast path", key="fast_path", value=self.fast_path.op,
                            expected="kind: speed", next_step="remove 'fast_path'")
        distinct("peers", self.fast_path.peers)
        known("arm", self.fast_path.peers, self.arms, "fast_path.peers")
        if set(self.fast_path.peers) == set(self.arms):
            raise CardFault("every arm is a peer", key="fast_path.peers", value=", ".join(self.arms),
                            expected="at least one arm that is ours", next_step="leave our arms out of 'peers'")
        return self

    @property
    def is_tuned(self) -> bool:
        """Whether the trial function takes ``tuned``: the arms have a grid of their own, or another search's winner."""
        return self.tune is not None or bool(self.tuned_from)

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
        for name in ("seeds", "arms", "measure", "timeout_s", "memory_gib"):
            value = getattr(override, name)
            if value is not None:
                changes[name] = value
        if profile == "smoke" and override.seeds is None:
            changes["seeds"] = 1
        return self.model_copy(update=changes)


def _grid_size(grid: dict[str, list[Scalar]]) -> int:
    size = 1
    for values in grid.values():
        size *= len(values)
    return size
