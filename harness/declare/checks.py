"""What the parts of a card share: the strict base of all models, and the checks that names exist and are distinct."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from harness.declare.explain import CardFault
from harness.errors import did_you_mean


class Model(BaseModel):
    """Unknown keys are refused, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def known(what: str, names: Any, declared: Any, key: str = "") -> None:
    """Refuse the first of ``names`` that is not ``declared``, with the nearest; ``key`` is where it was written."""
    for name in names:
        if name not in declared:
            near = did_you_mean(str(name), [str(item) for item in declared])
            raise CardFault(f"this {what} does not exist", key=key, value=name, expected=near,
                            next_step="correct it, or declare it in the experiment")


def distinct(what: str, names: list[str]) -> None:
    """Refuse names that are given twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CardFault(f"{what} given twice", value=", ".join(twice), expected="each name once",
                        next_step="rename one")
