"""From a validation error to a refusal that names file, key, value, expectation and next step."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from harness.errors import LitmusError, did_you_mean

Location = tuple[int | str, ...]


class CardFault(ValueError):
    """What a validator found wrong, in the parts that a refusal has."""

    def __init__(
        self, problem: str, *, key: str = "", value: object = None, expected: str, next_step: str = "correct the card"
    ) -> None:
        super().__init__(f"{problem}; expected {expected}")
        self.problem = problem
        self.key = key
        self.value = value
        self.expected = expected
        self.next_step = next_step


def explain(error: ValidationError, model: type[BaseModel], data: object, where: object) -> LitmusError:
    """The refusal for the first problem in ``data``, which was meant to be a ``model``; the others are counted."""
    found = _telling(error)
    first = found[0]
    problem, value, expected, step = _parts(first, model)
    if len(found) > 1:
        step += f" ({len(found) - 1} more problem{'s' if len(found) > 2 else ''} in this file)"
    fault = first.get("ctx", {}).get("error")
    places = [readable(_without_tags(first["loc"], model), data), fault.key if isinstance(fault, CardFault) else ""]
    key = ".".join(place for place in places if place)
    return LitmusError(problem, where=where, key=key or None, value=value, expected=expected, next_step=step)


def _parts(first: Any, model: type[BaseModel]) -> tuple[str, object, str, str]:
    """(problem, value, expected, next step) of one pydantic error."""
    kind, value, raised = first["type"], first.get("input"), first.get("ctx", {}).get("error")
    shown = None if isinstance(value, dict | list) else value
    if isinstance(raised, ValidationError):  # a model built inside a validator
        return _parts(_telling(raised)[0], model)
    if isinstance(raised, CardFault):
        return raised.problem, raised.value if raised.value is not None else shown, raised.expected, raised.next_step
    if kind == "extra_forbidden":
        name = str(first["loc"][-1])
        step = 'inside {...} write it in quotes: "best(a, b)"' if ")" in name else "remove the key or correct its name"
        return "unknown key", name, did_you_mean(name, _keys_at(model, first["loc"][:-1])), step
    if kind == "estimate_kind":
        keys = ", ".join(map(str, value)) if isinstance(value, dict) else shown
        return ("the estimate is of no known kind", keys, first["msg"].removeprefix("expected "),
                "see the kinds in docs/adding-a-suite.md")
    if kind == "literal_error":
        return "not an allowed value", shown, _choice(str(shown), first["ctx"]["expected"]), "choose one"
    if kind == "missing":
        shown = None
    plain = "not an allowed value", first["msg"].removeprefix("Input should be "), "correct the value"
    problem, expected, step = _PLAIN.get(kind, plain)
    return problem, shown, expected, step


# pydantic's error type -> (problem, expected, next step)
_MAPPING = ("not a mapping", "keys with values below this key", "see an example with: litmus new")
_PLAIN = {
    "missing": ("a required key is missing", "this key", "add it; 'litmus new' writes a complete example"),
    "string_type": ("not text", "text", "put the value in quotes"),
    "string_pattern_mismatch": ("not a name", "a lower-case name such as out_of_cache_speedup", "rename it"),
    "model_type": _MAPPING,
    "model_attributes_type": _MAPPING,
    "dict_type": _MAPPING,
    "list_type": ("not a list", "a list, such as [a, b]", "put brackets around it"),
}


def _choice(word: str, allowed: str) -> str:
    near = did_you_mean(word, [item.strip("' ") for item in allowed.replace(" or ", ",").split(",")])
    return allowed if near.startswith("known") else f"{allowed}; {near}"


def _telling(error: ValidationError) -> list[Any]:
    """The errors, unknown keys first, without those about a form of the value that was not meant."""
    errors: list[Any] = list(error.errors())
    skips = {item["loc"][:-1]: isinstance(item["input"], str) for item in errors if "literal['skip']" in item["loc"]}

    def meant(item: Any) -> bool:
        if "literal['skip']" in item["loc"]:
            return isinstance(item["input"], str)
        return not skips.get(item["loc"][:-1], False)

    kept = [item for item in errors if meant(item)] or errors
    return sorted(kept, key=lambda item: item["type"] != "extra_forbidden")


def readable(loc: Sequence[int | str], data: object) -> str:
    """``claims[out_of_cache].where.n``: list items by their id where they have one, else by their place from 1."""
    text, here = "", data
    for step in loc:
        if isinstance(step, int):
            here = here[step] if isinstance(here, list) and step < len(here) else None
            named = here.get("id") if isinstance(here, dict) else None
            text += f"[{named if isinstance(named, str) else f'item {step + 1}'}]"
        else:
            here = here.get(step) if isinstance(here, dict) else None
            if step == "[key]":  # the name itself is at fault, and was the step before
                continue
            text += f".{step}" if text else step
    return text


def _without_tags(loc: Location, model: type[BaseModel]) -> Location:
    """``loc`` without the steps that only name a branch of a union."""
    kept, here = [], _Place(model)
    for step in loc:
        after = here.step(step)
        if not after.is_branch:
            kept.append(step)
        here = after
    return tuple(kept)


def _keys_at(model: type[BaseModel], loc: Location) -> list[str]:
    """The keys that the mapping at ``loc`` may have."""
    here = _Place(model)
    for step in loc:
        here = here.step(step)
    forms = [form for form in here.forms() if isinstance(form, type) and issubclass(form, BaseModel)]
    return [name for form in forms for name in form.model_fields]


class _Place:
    """A place in a model's tree of types. ``is_branch`` marks the choice of a union's member, which is no key."""

    def __init__(self, annotation: Any, *, is_branch: bool = False) -> None:
        self.annotation = annotation
        self.is_branch = is_branch

    def forms(self) -> list[Any]:
        """The types a value here may have, unions opened and annotations taken off."""
        return [_bare(member) for member in _members(self.annotation)]

    def step(self, step: int | str) -> _Place:
        """The place below key, index or union branch ``step``."""
        for member in _members(self.annotation):
            if step in _branch_names(member) and len(_members(self.annotation)) > 1:
                return _Place(member, is_branch=True)
        for form in self.forms():
            if isinstance(form, type) and issubclass(form, BaseModel) and step in form.model_fields:
                field = form.model_fields[str(step)]
                return _Place(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
            if get_origin(form) is dict:
                return _Place(get_args(form)[1])
            if get_origin(form) in (list, tuple):
                return _Place(get_args(form)[0])
        return _Place(None, is_branch=isinstance(step, str) and step.startswith(("literal[", "function-")))


def _members(annotation: Any) -> list[Any]:
    bare = _bare(annotation)
    if get_origin(bare) in (Union, types.UnionType):
        return [inner for member in get_args(bare) if member is not type(None) for inner in _members(member)]
    return [annotation]


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _branch_names(member: Any) -> set[str]:
    tags = get_args(member)[1:] if get_origin(member) is Annotated else ()
    names = {item.tag for item in tags if isinstance(item, Tag)}
    bare = _bare(member)
    return names | ({bare.__name__} if isinstance(bare, type) else set())
