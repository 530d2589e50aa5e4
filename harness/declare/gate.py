"""The gate, ``ci/gate.yaml``: how much worse the head may be before a command fails, and every exception's reason."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from harness.declare.card import Experiment
from harness.declare.catalog import Catalog, Entry, Selector
from harness.declare.checks import Model
from harness.declare.explain import CardFault, explain
from harness.declare.fields import NumberField
from harness.declare.strict_yaml import parse_mapping
from harness.errors import LitmusError, did_you_mean

GATE_FILE = Path("ci") / "gate.yaml"
_LIMIT_BYTES = 2**20


class Threshold(Model):
    """A change up to ``threshold`` either way is "the same": a share of the base where ``relative``, else in the
    metric's own unit."""

    threshold: NumberField = Field(ge=0)
    relative: bool = True


class Exemption(Model):
    """Other rules for what matches ``at`` (a selector without a point) and, where given, ``arms`` and ``metrics``."""

    at: str
    metrics: list[str] = Field(default_factory=list)
    arms: list[str] = Field(default_factory=list)
    threshold: NumberField | None = Field(default=None, ge=0)
    relative: bool | None = None
    gates: bool | None = None
    reason: str = ""

    @model_validator(mode="after")
    def _says_what_and_why(self) -> Exemption:
        if len(self.reason.split()) < 2:
            raise CardFault("an exception without a reason", key="reason", expected="a sentence that says why",
                            next_step="add it: reason: the error is that of rounding alone")
        if self.threshold is None and self.gates is None and self.relative is None:
            raise CardFault("an exception that changes nothing", expected="'threshold', 'relative' or 'gates'",
                            next_step="add one of them, or remove the exception")
        if self.arms and (self.threshold is not None or self.relative is not None):
            raise CardFault("a threshold for single arms", key="arms", expected="'gates' alone beside 'arms'",
                            next_step="leave 'arms' out: a threshold holds for all arms of an experiment")
        try:
            selector = Selector.parse(self.at)
        except LitmusError as error:
            raise CardFault("not a place", key="at", value=self.at, expected="FAMILY/*, SUITE or SUITE:EXPERIMENT",
                            next_step="list the suites with: litmus ls") from error
        if selector.point:
            raise CardFault("a threshold for single points", key="at", value=self.at,
                            expected="FAMILY/*, SUITE or SUITE:EXPERIMENT", next_step="leave [...] out")
        return self

    def covers(self, suite: str, experiment: str, metric: str, arm: str | None) -> bool:
        """Whether this is about the metric of the arm; None for an arm asks about all of them."""
        selector = _selector(self.at)
        return (selector.takes_suite(Entry(suite, Path())) and selector.takes_experiment(experiment)
                and (not self.metrics or metric in self.metrics) and (not self.arms or arm in self.arms))


@lru_cache(maxsize=1024)
def _selector(text: str) -> Selector:
    return Selector.parse(text)


class Gate(Model):
    """What fails a comparison.

    ``alpha`` is the probability that any gating comparison of equal sides is called bad (Holm). ``speed`` is the zone
    for times, ``error`` for the measured error of a timed kernel, ``metrics`` for what trials report. Of exceptions
    that match, the last one that says something holds.
    """

    alpha: NumberField = Field(default=0.05, gt=0, lt=1)
    speed: Threshold = Threshold(threshold=0.01)
    error: Threshold = Threshold(threshold=1.0)
    metrics: Threshold = Threshold(threshold=0.01)
    exceptions: list[Exemption] = Field(default_factory=list)

    def threshold(self, suite: str, experiment: str, metric: str) -> tuple[float, bool]:
        """(half the width of the zone of "the same", whether it is relative) for one metric."""
        kinds: dict[str, Threshold] = {"time": self.speed, "error": self.error}
        found = kinds.get(metric, self.metrics)
        value, relative = found.threshold, found.relative
        for item in self._matching(suite, experiment, metric, None):
            value = value if item.threshold is None else item.threshold
            relative = relative if item.relative is None else item.relative
        return value, relative

    def gates(self, suite: str, experiment: str, arm: str, metric: str) -> bool:
        """Whether a bad word about it fails the command; by default it does."""
        return next((item.gates for item in reversed(self._matching(suite, experiment, metric, arm))
                     if item.gates is not None), True)

    def _matching(self, suite: str, experiment: str, metric: str, arm: str | None) -> list[Exemption]:
        return [item for item in self.exceptions if item.covers(suite, experiment, metric, arm)]

    def check(self, catalog: Catalog, where: object) -> None:
        """Raises LitmusError where an exception names a suite, experiment, arm or metric that does not exist."""
        for index, item in enumerate(self.exceptions, 1):
            key = f"exceptions[item {index}]"
            selector = Selector.parse(item.at)
            try:
                taken = [entry for entry, _ in catalog.select([item.at])]
            except LitmusError as error:
                raise LitmusError(error.problem, where=where, key=f"{key}.at", value=item.at, expected=error.expected,
                                  next_step=error.next_step) from error
            found = [experiment for entry in taken for name, experiment in entry.card.experiments.items()
                     if selector.takes_experiment(name)]
            arms = {arm for experiment in found for arm in experiment.arms}
            metrics = {name for experiment in found for name in experiment.metric_names()}
            _exist("arm", item.arms, arms, f"{key}.arms", where)
            _exist("metric", item.metrics, metrics, f"{key}.metrics", where)


def _exist(what: str, names: list[str], known: set[str], key: str, where: object) -> None:
    for name in names:
        if name not in known:
            raise LitmusError(f"no such {what}", where=where, key=key, value=name, expected=did_you_mean(name, known),
                              next_step="correct the name, or remove it")


def load_gate(root: Path, path: Path | None = None) -> Gate:
    """The gate in ``path``, by default ``root/ci/gate.yaml``; the defaults where that file does not exist.

    Raises LitmusError, with the place in the file, for anything that is not valid there.
    """
    place = path or root / GATE_FILE
    if path is None and not place.exists():
        return Gate()
    try:
        with place.open("rb") as file:
            data = file.read(_LIMIT_BYTES + 1)
        text = data.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise LitmusError("cannot read the gate", where=place, value=str(error), expected="a YAML text file",
                          next_step="check the path") from error
    if len(data) > _LIMIT_BYTES:
        raise LitmusError("the gate is too large", where=place, expected="at most 1 MiB", next_step="check the path")
    gate = parse_gate(text, place)
    gate.check(Catalog(root), place)
    return gate


def parse_gate(text: str, where: object) -> Gate:
    """Validate a gate given as YAML text, names of suites aside; ``where`` names it in messages."""
    data = parse_mapping(text or "{}", where, "the gate", Gate.model_fields, "see docs/comparing.md")
    try:
        return Gate.model_validate(data)
    except ValidationError as error:
        raise explain(error, Gate, data, where) from error


Direction = Literal["lower", "higher", "none"]


def compared_metrics(experiment: Experiment) -> dict[str, Direction]:
    """The metrics of an experiment that two sides are compared by, each with its better direction.

    ``time`` and ``error`` for speed; for trials every metric that is one number.
    """
    if experiment.kind == "speed":
        return {"time": "lower", "error": "lower"}
    return {name: metric.better for name, metric in experiment.metrics.items() if not metric.series}


def own_arms(experiment: Experiment) -> list[str]:
    """The arms that may gate: all but the peers of a fast path, whose code is not ours."""
    peers = set(experiment.fast_path.peers) if experiment.fast_path else set()
    return [arm for arm in experiment.arms if arm not in peers]
