"""Small arithmetic in cards: ``2**20``, ``>= 4*llc``, ``inside [-0.01, 0.01]``: parsed by a grammar, never run."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from harness.errors import LitmusError

Number = int | float

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
_MAX_TEXT = 80
_MAX_EXPONENT = 128
CONDITION_GRAMMAR = "'> x', '>= x', '< x', '<= x', '== x', 'inside [a, b]' or 'outside [a, b]'"
_GRAMMAR = "a number or arithmetic of numbers with + - * / // ** and parentheses, such as 2**20"


def parse_number(text: str | Number, names: Mapping[str, Number] | None = None) -> Number:
    """The value of ``text``; ``names`` are the constants it may mention. Raises LitmusError on anything else."""
    if isinstance(text, float) or type(text) is int:
        return _finite(text, text)
    if not isinstance(text, str) or len(text) > _MAX_TEXT:
        raise _refuse(text, "not a number")
    try:
        tree = ast.parse(text.strip(), mode="eval")
        return _finite(_value(tree.body, text, names or {}), text)
    except (SyntaxError, ValueError, OverflowError, ZeroDivisionError, MemoryError, RecursionError) as error:
        raise _refuse(text, str(error)) from error


def _finite(value: Number, text: object) -> Number:
    if not math.isfinite(value):  # raises OverflowError for an integer that no float can hold
        raise _refuse(text, "the value is not finite")
    return value


def _value(node: ast.expr, text: str, names: Mapping[str, Number]) -> Number:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value  # type: ignore[return-value]  # narrowed by the type() test
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _value(node.operand, text, names)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, text, names), _value(node.right, text, names)
        if isinstance(node.op, ast.Pow) and (abs(right) > _MAX_EXPONENT or abs(left) > 1e9):
            raise _refuse(text, "the power is too large")
        result = _BINARY[type(node.op)](left, right)
        if isinstance(result, complex):
            raise _refuse(text, "the root of a negative number")
        return result
    raise _refuse(text, f"'{ast.unparse(node)}' is not arithmetic")


def _refuse(text: object, why: str) -> LitmusError:
    return LitmusError(f"not arithmetic: {why}", value=text, expected=_GRAMMAR)


def looks_like_arithmetic(text: str) -> bool:
    """Whether a YAML string is meant as a number: it holds a digit, and nothing but digits and operators."""
    return bool(re.fullmatch(r"[\d\s.+\-*/()eE_]*\d[\d\s.+\-*/()eE_]*", text))


_SIDES: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Condition:
    """A region of the real line: ``> 1.05``, ``inside [-0.08, 0.08]`` or ``outside [-0.08, 0.08]``.

    A decision asks whether a *whole interval* lies in the region, see :meth:`holds_for`.
    """

    kind: Literal[">", ">=", "<", "<=", "==", "inside", "outside"]
    low: float
    high: float

    @classmethod
    def parse(cls, text: str, names: Mapping[str, Number] | None = None) -> Condition:
        """Parse ``text``; bounds are arithmetic over ``names``. Raises LitmusError with the grammar."""
        text = str(text).strip()
        band = re.fullmatch(r"(inside|outside)\s*\[(.+),(.+)\]", text)
        if band:
            low, high = (float(parse_number(part, names)) for part in band.group(2, 3))
            if not low <= high:
                raise cls._refuse(text)
            return cls(band.group(1), low, high)  # type: ignore[arg-type]  # the pattern allows these two words
        side = re.fullmatch(r"(>=|<=|==|>|<)(.+)", text)
        if not side:
            raise cls._refuse(text)
        bound = float(parse_number(side.group(2).strip(), names))
        return cls(side.group(1), bound, bound)  # type: ignore[arg-type]  # the pattern allows these words

    @staticmethod
    def _refuse(text: str) -> LitmusError:
        return LitmusError(
            "not a condition",
            value=text,
            expected=CONDITION_GRAMMAR,
        )

    def holds(self, value: float) -> bool:
        """Whether one number lies in the region; never for NaN."""
        return self.holds_for(value, value)

    def holds_for(self, low: float, high: float) -> bool:
        """Whether the whole interval [low, high] lies in the region; never when an end is NaN."""
        if math.isnan(low) or math.isnan(high):
            return False
        if self.kind == "inside":
            return self.low <= low and high <= self.high
        if self.kind == "outside":
            return high < self.low or low > self.high
        compare = _SIDES[self.kind]
        return compare(low, self.low) and compare(high, self.low)

    def meets(self, low: float, high: float) -> bool:
        """Whether the region holds any part of the real interval [low, high], single points aside when low < high."""
        return any(max(low, left) < min(high, right) or (left == right and low <= left <= high)
                   for left, right in self._spans())

    def overlaps(self, other: Condition) -> bool:
        """Whether some interval lies in both regions, so that both could be decided at once."""
        return any(self.meets(low, high) for low, high in other._spans())

    def _spans(self) -> list[tuple[float, float]]:
        match self.kind:
            case ">" | ">=":
                return [(self.low, math.inf)]
            case "<" | "<=":
                return [(-math.inf, self.low)]
            case "outside":
                return [(-math.inf, self.low), (self.high, math.inf)]
            case _:
                return [(self.low, self.high)]

    def __str__(self) -> str:
        if self.kind in ("inside", "outside"):
            return f"{self.kind} [{self.low:g}, {self.high:g}]"
        return f"{self.kind} {self.low:g}"
