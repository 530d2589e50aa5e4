"""Field types shared by the card's models: arithmetic numbers and conditions, checked while the card is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from harness.declare.arithmetic import CONDITION_GRAMMAR, Condition, looks_like_arithmetic, parse_number
from harness.declare.explain import CardFault
from harness.errors import LitmusError

# Constants of the machine that a card may mention; their values are known only when a plan is made.
MACHINE_NAMES = ("llc", "l2", "l1", "cores", "memory")
_BANDS = ("inside", "outside")


def _number(value: Any) -> Any:
    try:
        return parse_number(value)
    except LitmusError as error:
        raise CardFault(error.problem, value=value, expected=error.expected or "a number") from error


def _scalar(value: Any) -> Any:
    """A YAML scalar: arithmetic becomes a number, other text stays text."""
    if isinstance(value, str) and looks_like_arithmetic(value):
        return _number(value)
    if isinstance(value, str) and any(mark in value for mark in "()*/"):
        return _number(value)  # refuses: text that only looks like code
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return _number(value)
    raise CardFault("not a single value", expected="a number, a word or true/false", next_step="write one value")


def _condition(value: Any) -> Any:
    if not isinstance(value, str):
        raise CardFault("not a condition", value=value, expected=CONDITION_GRAMMAR,
                        next_step='write it in quotes: "> 1.05"')
    try:
        Condition.parse(value, dict.fromkeys(MACHINE_NAMES, 1))
    except LitmusError as error:
        raise CardFault(error.problem, value=value, expected=error.expected or CONDITION_GRAMMAR) from error
    return value


def is_condition(value: object) -> bool:
    """Whether a ``where`` value is meant as a region (``>= 4*llc``) rather than as a value of its axis."""
    return isinstance(value, str) and (value.lstrip()[:1] in ("<", ">", "=") or value.split("[")[0].strip() in _BANDS)


def _where(value: Any) -> Any:
    if is_condition(value):
        return _condition(value)
    return [_scalar(item) for item in value] if isinstance(value, list) else _scalar(value)


def _one_or_more(value: Any) -> Any:
    return [_scalar(item) for item in value] if isinstance(value, list) and value else _scalar(value)


NumberField = Annotated[float, BeforeValidator(_number)]
Scalar = bool | int | float | str
ScalarField = Annotated[Scalar, BeforeValidator(_scalar)]
# A value of an axis or a list of them.
ScalarsField = Annotated[Scalar | list[Scalar], BeforeValidator(_one_or_more)]
ConditionField = Annotated[str, BeforeValidator(_condition)]
# A value of an axis, a list of them, or a condition on them.
WhereField = Annotated[Scalar | list[Scalar], BeforeValidator(_where)]
