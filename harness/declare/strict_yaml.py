"""YAML as the project's files are written: plain data, a mapping at the top, no key given twice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import yaml

from harness.errors import LitmusError


def parse_mapping(text: str, where: object, what: str, keys: Iterable[str], next_step: str) -> dict[str, Any]:
    """The mapping in ``text``. ``what`` ("the card") and ``where`` name it in messages, ``keys`` are what it may hold.

    Raises LitmusError for anything else; ``next_step`` says where an example is.
    """
    try:
        data = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise LitmusError(
            f"{what} is not valid YAML", where=at, value=getattr(error, "problem", None) or str(error),
            expected="a YAML mapping", next_step="check indentation and quotes at that line",
        ) from error
    except RecursionError as error:
        raise LitmusError(f"{what} is nested too deeply", where=where, expected=f"{what} a few levels deep",
                          next_step=next_step) from error
    if not isinstance(data, dict):
        raise LitmusError(f"{what} is not a mapping", where=where, value=type(data).__name__,
                          expected="the keys " + ", ".join(keys), next_step=next_step)
    return data


_MERGE = "tag:yaml.org,2002:merge"
_MOST_KEYS = 10_000  # of one mapping with all that it merges: no card needs more, and merges of merges multiply


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # base chosen at run time
    """A safe loader that refuses a key given twice, which YAML would silently overwrite.

    A merge (``<<: *name``) is no repetition: what the mapping says itself goes before what it takes over.
    """

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        self._refuse_twice(node)
        super().flatten_mapping(node)
        if len(node.value) > _MOST_KEYS:
            raise yaml.constructor.ConstructorError(None, None, "a mapping merges too many keys", node.start_mark)

    def _refuse_twice(self, node: yaml.MappingNode) -> None:
        checked: set[int] = self.__dict__.setdefault("_checked", set())
        if id(node) in checked:  # once merged, a mapping holds keys of two sources
            return
        checked.add(id(node))
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str | int) and key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", key_node.start_mark)
            if isinstance(key, str | int):
                seen.add(key)
