"""Refusals: every message names the place, the key, the value, what was expected and the next step."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

USAGE = 2
NOTHING_COMPARABLE = 3
WRONG_OR_CRASHED = 4
CANARY_FAILED = 5


class LitmusError(Exception):
    """A refusal the user can act on. The CLI prints it without a traceback and exits with ``exit_code``.

    ``where`` is a file or command, ``key`` the setting inside it, ``value`` what was found,
    ``expected`` what would have been accepted and ``next_step`` what to type or change.
    """

    exit_code = USAGE

    def __init__(
        self,
        problem: str,
        *,
        where: object | None = None,
        key: str | None = None,
        value: object | None = None,
        expected: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.key = key
        self.value = value
        self.expected = expected
        self.next_step = next_step

    def lines(self) -> list[str]:
        """The message as printed: the problem first, then one labelled line for each known detail."""
        details = [
            ("in", self.where),
            ("key", self.key),
            ("value", None if self.value is None else repr(self.value)),
            ("expected", self.expected),
            ("next", self.next_step),
        ]
        width = max(len(label) for label, _ in details)
        return [self.problem] + [
            f"  {label:<{width}}  {text}" for label, text in details if text is not None
        ]

    def __str__(self) -> str:
        return "\n".join(self.lines())


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``"did you mean 'x' or 'y'?"`` for the names nearest to ``name``, else the full list."""
    names = sorted(set(known))
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(repr(item) for item in near) + "?"
    return "known: " + (", ".join(names) if names else "none")
