"""The suite: the few short functions an author writes beside a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.declare.card import Card, load_card
from harness.declare.tuned import Tuned, load_tuned
from harness.errors import LitmusError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

Point = Mapping[str, Any]
Buffers = tuple[Any, ...]


@dataclass(frozen=True)
class Estimate:
    """A number with an interval at confidence ``level``; ``n`` counts the independent ``unit``s behind it."""

    point: float
    low: float
    high: float
    n: int
    level: float = 0.95
    unit: str = "seed"
    method: str = ""


class NotTestable(Exception):
    """Raised by an estimate or an experiment whose question cannot be asked on this machine; becomes ``not run``."""


class SkipArm(Exception):
    """Raised inside an arm that cannot run here (a peer is not installed); becomes ``skipped(reason)``."""


@dataclass(frozen=True)
class Arm:
    """One competitor of a speed experiment.

    ``run(*inputs, *buffers)`` writes its result into ``buffers``, or returns it (an array or a tuple of arrays).
    ``buffers(*inputs)`` allocates them outside the timing; None takes the problem's. With ``in_place`` the buffers
    carry state that ``run`` updates, so they are made afresh before each check instead of being poisoned.
    ``outputs(*buffers)`` picks what is compared with the truth. ``bytes_moved`` and ``flops`` are the cost model of
    one call. ``workspace_bytes`` is what a call may allocate beside its inputs, its buffers and the result that it
    returns: recorded beside the measured peak, and checked by ``litmus validate``; None promises nothing.
    ``tolerance`` overrides the problem's. On CUDA ``run`` puts its work on torch's current stream, or joins it there.
    """

    run: Callable[..., Any]
    bytes_moved: float
    flops: float
    buffers: Callable[..., Buffers] | None = None
    outputs: Callable[..., Any] | None = None
    in_place: bool = False
    checked: bool = True
    tolerance: float | None = None
    workspace_bytes: float | None = None


@dataclass(frozen=True)
class Problem:
    """Everything a speed cell needs: fresh inputs, buffers, the float64 truth and the arms.

    ``inputs(rng)`` draws one set of inputs; the harness rotates several. ``truth(*inputs)`` is what the outputs are
    compared with. ``error(outputs, truth)`` is one number to hold against ``tolerance``; by default the largest
    relative error, see :func:`harness.run.check.relative_error`. On CUDA ``inputs`` and ``buffers`` give tensors on the
    device; ``truth`` and ``error`` get copies on the host.
    An arm with ``checked=False`` is a yardstick without a result of its own (a copy, a read-only stream).
    """

    inputs: Callable[[np.random.Generator], tuple[Any, ...]]
    buffers: Callable[..., Buffers]
    truth: Callable[..., Any]
    arms: Mapping[str, Arm | SkipArm]
    input_bytes: int
    tolerance: float
    error: Callable[[Any, Any], float] | None = None
    rotate: int = 2


class Artefacts(Protocol):
    """Where ``prepare`` keeps what it built."""

    def get(self, suite: str, name: str, config: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]) -> Any:
        """What ``build(config)`` gave, now or in an earlier run with equal config, code and libraries."""


class _BuildAlways:
    """Outside a run there is no cache: build, every time."""

    def get(self, suite: str, name: str, config: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]) -> Any:
        return build(config)


SpeedFunction = Callable[..., Problem]
TrialFunction = Callable[..., Mapping[str, Any]]
EstimateFunction = Callable[..., Estimate]


@dataclass
class Suite:
    """A paper's functions, registered by decorator under the names the card uses.

    ``Suite(__file__)`` reads the ``card.yaml`` beside the file. Registering a name the card does not know is refused.
    """

    file: str
    speeds: dict[str, SpeedFunction] = field(default_factory=dict)
    trials: dict[str, TrialFunction] = field(default_factory=dict)
    estimates: dict[str, EstimateFunction] = field(default_factory=dict)
    oracles: dict[str, Callable[[], None]] = field(default_factory=dict)
    artefacts: Artefacts = field(default_factory=_BuildAlways)
    data: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder = Path(self.file).resolve().parent
        self.name = f"{self.folder.parent.name}/{self.folder.name}"
        self.card: Card = load_card(self.folder / "card.yaml")
        self.tuned: Tuned = load_tuned(self.folder / "tuned.yaml")

    def speed(self, experiment: str) -> Callable[[SpeedFunction], SpeedFunction]:
        """Register ``f(point, rng, device) -> Problem`` for a speed experiment of the card."""
        return self._register("speed", experiment, self.speeds)

    def trial(self, experiment: str) -> Callable[[TrialFunction], TrialFunction]:
        """Register ``f(arm, point, seed, device) -> metrics``; with ``tune:`` in the card also ``tuned``.

        ``tuned`` maps the hyperparameter names of the arm's grid to the values that won (see ``litmus tune``).
        """
        return self._register("trial", experiment, self.trials)

    def estimate(self, name: str) -> Callable[[EstimateFunction], EstimateFunction]:
        """Register ``f(records, level, **params) -> Estimate`` for claims with ``estimate: {custom: name}``.

        ``records`` is the tidy table of the claim's experiment after ``where``, see ``harness.judge.tidy``.
        """

        def keep(function: EstimateFunction) -> EstimateFunction:
            self.estimates[name] = function
            return function

        return keep

    def oracle(self, function: Callable[[], None]) -> Callable[[], None]:
        """Register an independent proof that the method is right: raises AssertionError where it is not."""
        self.oracles[function.__name__] = function
        return function

    def prepare(self, name: str, config: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any]) -> Any:
        """An artefact built once by ``build(config)`` and cached by config, code and library versions.

        Time spent here is recorded, and is no part of an arm's elapsed time or of any measurement.
        """
        return self.artefacts.get(self.name, name, config, build)

    def uses_data(self, name: str, digest: str) -> None:
        """Say inside a trial or a speed function which data set it draws on; the digest goes into the record.

        Records with different digests are not comparable: offline text, for example, depends on the interpreter.
        """
        self.data[name] = digest

    def _register(self, kind: str, experiment: str, table: dict[str, Any]) -> Callable[[Any], Any]:
        known = [name for name, item in self.card.experiments.items() if item.kind == kind]
        if experiment not in known:
            raise LitmusError(
                f"the suite registers a {kind} experiment that its card does not have",
                where=self.file, key=experiment, expected=did_you_mean(experiment, known),
                next_step="add it to card.yaml or correct the name",
            )

        def keep(function: Any) -> Any:
            table[experiment] = function
            return function

        return keep


__all__ = ["Arm", "Artefacts", "Estimate", "NotTestable", "Point", "Problem", "SkipArm", "Suite"]
