"""How a claim turns records into one number with an interval: the ``estimate:`` block of a card.

Metric names: a trial's declared metrics; for speed experiments ``time`` (ns per call), ``bandwidth`` (bytes per
second by the cost model), ``flop_rate``, ``error`` and ``peak_bytes``. Pairing is by seed (trial) or by process and
round (speed), never across cells.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from harness.declare.fields import ConditionField, NumberField

SPEED_METRICS = ("time", "bandwidth", "flop_rate", "error", "peak_bytes")


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def metrics(self) -> list[str]:
        """The metric names this estimate reads."""
        return []

    def arms(self) -> list[str]:
        """The arm names this estimate reads; empty means all arms of the experiment."""
        return []

    def domain(self) -> tuple[float, float]:
        """The interval of values that the estimate can take."""
        return (-math.inf, math.inf)


class Ratio(_Spec):
    """``of / to`` of a metric, paired; the point is exp of the median over rounds (mean over seeds) of log ratios."""

    ratio: str
    of: str
    to: str

    def domain(self) -> tuple[float, float]:
        return (0.0, math.inf)

    def metrics(self) -> list[str]:
        return [self.ratio]

    def arms(self) -> list[str]:
        return [*arms_of(self.of), *arms_of(self.to)]


class Difference(_Spec):
    """Mean of the paired ``of - minus``; with ``relative`` divided by the mean of ``minus``."""

    difference: str
    of: str
    minus: str
    relative: bool = False

    def metrics(self) -> list[str]:
        return [self.difference]

    def arms(self) -> list[str]:
        return [*arms_of(self.of), *arms_of(self.minus)]


class Equivalence(_Spec):
    """TOST: the paired ``of - to`` with a 90 % interval; supported inside, refuted outside ``+-within``."""

    equivalence: str
    of: str
    to: str
    within: Annotated[NumberField, Field(gt=0)]
    relative: bool = False

    def metrics(self) -> list[str]:
        return [self.equivalence]

    def arms(self) -> list[str]:
        return [*arms_of(self.of), *arms_of(self.to)]


class Mean(_Spec):
    """Mean of a metric of one arm over seeds (trial) or its median over rounds (speed)."""

    mean: str
    of: str

    def metrics(self) -> list[str]:
        return [self.mean]

    def arms(self) -> list[str]:
        return arms_of(self.of)


class Fraction(_Spec):
    """Share of cells of one arm whose metric satisfies ``holds_if`` (NaN never does); Wilson interval."""

    fraction: str
    of: str
    holds_if: ConditionField

    def domain(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def metrics(self) -> list[str]:
        return [self.fraction]

    def arms(self) -> list[str]:
        return arms_of(self.of)


class Slope(_Spec):
    """Slope of log(metric) on log(axis) for one arm; bootstrap over pairing units."""

    slope: str
    against: str
    of: str

    def metrics(self) -> list[str]:
        return [self.slope]

    def arms(self) -> list[str]:
        return arms_of(self.of)


class RankCorrelation(_Spec):
    """Spearman's rho of two metrics over the cells of one arm (all arms when ``of`` is left out)."""

    rank_correlation: tuple[str, str]
    of: str | None = None

    def domain(self) -> tuple[float, float]:
        return (-1.0, 1.0)

    def metrics(self) -> list[str]:
        return list(self.rank_correlation)

    def arms(self) -> list[str]:
        return arms_of(self.of) if self.of else []


class Ordering(_Spec):
    """Whether ``metric`` rises along ``arms``: the smallest paired gap between neighbours, Holm over the gaps.

    The estimate is the least favourable neighbour's gap (log ratio when ``log``): ``> 0`` means the whole order holds.
    """

    ordering: str
    rising: tuple[str, ...] = Field(min_length=2)
    log: bool = False

    def metrics(self) -> list[str]:
        return [self.ordering]

    def arms(self) -> list[str]:
        return list(self.rising)


class Exact(_Spec):
    """A deterministic metric: every cell must agree; the interval has no width."""

    exact: str
    of: str

    def metrics(self) -> list[str]:
        return [self.exact]

    def arms(self) -> list[str]:
        return arms_of(self.of)


class Custom(_Spec):
    """A function of the suite registered with ``@suite.estimate(name)``."""

    custom: str
    params: dict[str, Any] = Field(default_factory=dict)


_KINDS = {
    "ratio": Ratio,
    "difference": Difference,
    "equivalence": Equivalence,
    "mean": Mean,
    "fraction": Fraction,
    "slope": Slope,
    "rank_correlation": RankCorrelation,
    "ordering": Ordering,
    "exact": Exact,
    "custom": Custom,
}
EstimateKind = Literal[
    "ratio", "difference", "equivalence", "mean", "fraction", "slope", "rank_correlation", "ordering", "exact", "custom"
]


def kind_of(value: object) -> str | None:
    """Which estimate a mapping (or a built spec) is: the one key that names a kind."""
    keys = value.keys() if isinstance(value, dict) else type(value).model_fields if isinstance(value, _Spec) else ()
    named = [key for key in keys if key in _KINDS]
    return named[0] if len(named) == 1 else None


EstimateSpec = Annotated[
    Annotated[Ratio, Tag("ratio")]
    | Annotated[Difference, Tag("difference")]
    | Annotated[Equivalence, Tag("equivalence")]
    | Annotated[Mean, Tag("mean")]
    | Annotated[Fraction, Tag("fraction")]
    | Annotated[Slope, Tag("slope")]
    | Annotated[RankCorrelation, Tag("rank_correlation")]
    | Annotated[Ordering, Tag("ordering")]
    | Annotated[Exact, Tag("exact")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(
        kind_of,
        custom_error_type="estimate_kind",
        custom_error_message="expected exactly one of the keys " + ", ".join(_KINDS),
    ),
]


def arms_of(reference: str) -> list[str]:
    """The arms behind ``name`` or ``best(a, b)``; ``best`` is the arm with the better median at each point."""
    best = re.fullmatch(r"best\((.+)\)", reference.strip())
    return [name.strip() for name in best.group(1).split(",")] if best else [reference.strip()]
