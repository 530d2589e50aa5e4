"""Field types shared by the card's models: arithmetic numbers and conditions, checked while the card is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from harness.declare.arithmetic import Condition, looks_like_arithmetic, parse_number
from harness.errors import LitmusError

# Constants of the machine that a card may mention; their values are known only when a plan is made.
MACHINE_NAMES = ("llc", "l2", "l1", "cores", "memory")


def _number(value: Any) -> Any:
    try:
        return parse_number(value)
    except LitmusError as error:
        raise ValueError(f"{error.problem}; expected {error.expected}") from error


def _scalar(value: Any) -> Any:
    """A YAML scalar: arithmetic becomes a number, other text stays text."""
    if isinstance(value, str) and looks_like_arithmetic(value):
        return _number(value)
    if isinstance(value, str) and any(mark in value for mark in "()*/"):
        return _number(value)  # refuses: text that only looks like code
    if isinstance(value, bool | int | float | str):
        return value
    raise ValueError("expected a number, a word or true/false")


def _condition(value: Any) -> Any:
    names = dict.fromkeys(MACHINE_NAMES, 1)
    try:
        Condition.parse(value, names)
    except LitmusError as error:
        raise ValueError(f"{error.problem}; expected {error.expected}") from error
    return str(value)


NumberField = Annotated[float, BeforeValidator(_number)]
Scalar = bool | int | float | str
ScalarField = Annotated[Scalar, BeforeValidator(_scalar)]
ConditionField = Annotated[str, BeforeValidator(_condition)]
