"""The shape of what a run's JSON files hold, checked whenever they are read: they may be anyone's."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from harness.errors import LitmusError
from harness.records.limits import LONGEST_NAME, LONGEST_TEXT, is_suite_name

Verdict = Literal["supported", "refuted", "inconclusive", "not run"]
VERDICTS: tuple[str, ...] = get_args(Verdict)
_LATEST_S = 253402300799.0  # the end of the year 9999
_STRICT = ConfigDict(strict=True, extra="allow")


def _suite(name: str) -> str:
    if not is_suite_name(name):
        raise ValueError("a suite's name is FAMILY/SLUG")
    return name


def _scalar(value: Any) -> Any:
    """A bool, a short text or a number that a machine has; what an axis may take."""
    if isinstance(value, str) and len(value) <= LONGEST_NAME:
        return value
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
        return value
    raise ValueError("neither a number, nor a word, nor true or false")


Name = Annotated[str, Field(max_length=LONGEST_NAME)]
Text = Annotated[str, Field(max_length=LONGEST_TEXT)]
SuiteName = Annotated[str, AfterValidator(_suite)]
Seconds = Annotated[float, Field(ge=0, le=_LATEST_S, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Point = dict[Name, Annotated[Any, AfterValidator(_scalar)]]
_Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Interval(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    low: float | None
    high: float | None
    level: float


class _Estimate(_Interval):
    point: float | None
    n: int
    unit: Name
    method: Text


class _Part(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    id: Name
    experiment: Name
    point: Point
    estimate: _Estimate | None
    refute_interval: _Interval | None
    supported_if: Text
    refuted_if: Text
    verdict: Verdict
    reason: Text
    cells: list[Name]


class _VerdictRow(TypedDict):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    suite: SuiteName
    claim: Name
    verdict: Verdict
    reason: Text
    scale: dict[Name, Text]
    note: Text | None
    parts: list[_Part]


class _Device(TypedDict, total=False):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    id: Name
    name: Name
    memory_bytes: Count


class MachineShape(TypedDict, total=False):
    """``machine`` in ``run.json``; of a run by hand, any part may be absent."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    key: Name
    cpu: Name
    cores: Count
    memory_bytes: Count
    caches: dict[Name, Count] | None
    simd: list[Name]
    system: Name
    devices: list[_Device]


class _Worker(TypedDict, total=False):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    machine: Name
    slots: Count


class EngineShape(TypedDict, total=False):
    """``engine`` in ``run.json``; each engine adds what tells where its jobs ran."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    name: Name
    scheduler: Name
    workers: dict[Name, _Worker]
    image: Name


class CanaryShape(TypedDict, total=False):
    """``canary`` in ``run.json``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    alarm: bool
    floor: float | None
    reason: Text


class _Stream(TypedDict, total=False):
    __pydantic_config__ = _STRICT  # type: ignore[misc]
    read_bytes_per_s: _Size | None
    copy_bytes_per_s: _Size | None
    triad_bytes_per_s: _Size | None
    flops_per_s: _Size | None


class CeilingsShape(TypedDict, total=False):
    """``ceilings`` in ``run.json``."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]
    threads: dict[Name, _Stream]
    devices: dict[Name, _Stream]


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def has_shape(value: Any, shape: Any) -> Any:
    """``value`` as it is, where it has the shape. Raises pydantic's ValidationError otherwise."""
    _adapter(shape).validate_python(value)
    return value


def check_verdicts(rows: Any, path: Path, next_step: str) -> list[dict[str, Any]]:
    """``rows`` as they are, where they are verdicts. Raises LitmusError naming the first place that is not."""
    try:
        found: list[dict[str, Any]] = has_shape(rows, list[_VerdictRow])
    except ValidationError as error:
        first = error.errors()[0]
        raise LitmusError("verdicts.json is not valid", where=path, next_step=next_step,
                          key=".".join(["verdicts", *map(str, first["loc"])])[:300], expected=first["msg"][:300],
                          ) from error
    return found


def is_point(text: str) -> bool:
    """Whether the JSON text is a point of axes: an object of scalars under short names."""
    try:
        value = json.loads(text)
        has_shape(value, Point)
    except (ValueError, RecursionError):  # ValidationError is a ValueError
        return False
    return isinstance(value, Mapping)


def number(value: Any) -> float:
    """A metric's value as a float; NaN for what is no number, such as a text or a list from a foreign record."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
