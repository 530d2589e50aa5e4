"""All suites of a project, found by their cards. Nothing here imports a suite."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.declare.arithmetic import looks_like_arithmetic, parse_number
from harness.declare.card import Card, load_card
from harness.declare.fields import Scalar
from harness.errors import LitmusError, did_you_mean


@dataclass(frozen=True)
class Entry:
    """One suite's place; the card is read when asked for."""

    name: str
    folder: Path

    @property
    def family(self) -> str:
        """The first half of the name."""
        return self.name.split("/")[0]

    @property
    def slug(self) -> str:
        """The second half of the name."""
        return self.name.split("/")[1]

    @cached_property
    def card(self) -> Card:
        """The card. Raises LitmusError where it is not valid."""
        return load_card(self.folder / "card.yaml")


@dataclass(frozen=True)
class Selector:
    """``softmax/*``, ``two_pass_softmax``, ``galore:state_bytes``, ``two_pass_softmax:throughput[n=4096]``."""

    suite: str
    experiment: str | None
    point: tuple[tuple[str, Scalar], ...]

    @classmethod
    def parse(cls, text: str) -> Selector:
        """Read a selector. Raises LitmusError with the grammar."""
        match = re.fullmatch(r"([\w*?./-]+)(?::([\w*?]+)(?:\[([^\]]*)\])?)?", text.strip())
        if not match:
            raise _not_a_selector(text, "SUITE[:EXPERIMENT[AXIS=VALUE,...]]")
        pairs = [pair.partition("=") for pair in (match.group(3) or "").split(",") if pair.strip()]
        for name, sign, value in pairs:
            if not sign or not name.strip() or not value.strip():
                raise _not_a_selector(text, "points as [axis=value,axis=value]")
        point = tuple((name.strip(), _scalar(value.strip(), text)) for name, _, value in pairs)
        return cls(match.group(1), match.group(2), point)

    def takes_suite(self, entry: Entry) -> bool:
        """Whether the suite's name or slug matches."""
        return fnmatch.fnmatchcase(entry.name, self.suite) or fnmatch.fnmatchcase(entry.slug, self.suite)

    def takes_experiment(self, name: str) -> bool:
        """Whether the experiment's name matches; always when none was given."""
        return self.experiment is None or fnmatch.fnmatchcase(name, self.experiment)


def _scalar(text: str, selector: str) -> Scalar:
    try:
        return parse_number(text) if looks_like_arithmetic(text) else text
    except LitmusError as error:
        raise _not_a_selector(selector, f"after '=' a word or a number, not {text!r}") from error


def _not_a_selector(text: str, expected: str) -> LitmusError:
    return LitmusError("not a selector", where="the command line", key="selector", value=text, expected=expected,
                       next_step="try: litmus run 'two_pass_softmax:throughput[n=4096]'; names: litmus ls")


@dataclass(frozen=True)
class Catalog:
    """The suites below ``root/suites``."""

    root: Path

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """Every suite, by name."""
        cards = sorted((self.root / "suites").glob("*/*/card.yaml"))
        return tuple(Entry(f"{path.parent.parent.name}/{path.parent.name}", path.parent) for path in cards)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def get(self, name: str) -> Entry:
        """The suite called ``name`` (family/slug or slug)."""
        found = self.select([name])
        if len(found) != 1:
            names = [entry.name for entry, _ in found]
            raise LitmusError("more than one suite matches", key="suite", value=name,
                              expected="one of " + ", ".join(names), next_step=f"name one, such as {names[0]}")
        return found[0][0]

    def select(self, texts: Sequence[str]) -> list[tuple[Entry, list[Selector]]]:
        """The suites that any selector takes, each with the selectors that took it; all suites when none is given.

        Raises LitmusError for a selector that takes nothing, with the nearest names.
        """
        selectors = [Selector.parse(text) for text in texts] or [Selector("*", None, ())]
        for selector, text in zip(selectors, texts, strict=False):
            self._check(selector, text)
        chosen = []
        for entry in self.entries:
            taking = [selector for selector in selectors if selector.takes_suite(entry)]
            if taking:
                chosen.append((entry, taking))
        return chosen

    def _check(self, selector: Selector, text: str) -> None:
        matching = [entry for entry in self.entries if selector.takes_suite(entry)]
        if not matching:
            names = [name for entry in self.entries for name in (entry.slug, entry.name)]
            raise LitmusError("no such suite", where=self.root / "suites", key="selector", value=text,
                              expected=did_you_mean(selector.suite, names), next_step="list them with: litmus ls")
        experiments = {name for entry in matching for name in entry.card.experiments}
        if selector.experiment and not any(selector.takes_experiment(name) for name in experiments):
            raise LitmusError("no such experiment", where=matching[0].folder / "card.yaml", key="experiments",
                              value=text, expected=did_you_mean(selector.experiment, experiments),
                              next_step=f"see: litmus show {matching[0].slug}")
        axes = {axis for entry in matching for name, item in entry.card.experiments.items()
                if selector.takes_experiment(name) for axis in item.axes}
        for axis, _ in selector.point:
            if axis not in axes:
                raise LitmusError("no such axis", where=matching[0].folder / "card.yaml", key=axis, value=text,
                                  expected=did_you_mean(axis, axes), next_step=f"see: litmus show {matching[0].slug}")


def find_root(start: Path | None = None) -> Path:
    """The project's root: $LITMUS_ROOT, else the nearest folder upwards that holds ``suites/``, else this checkout."""
    if os.environ.get("LITMUS_ROOT"):
        return Path(os.environ["LITMUS_ROOT"]).resolve()
    here = (start or Path.cwd()).resolve()
    for folder in [here, *here.parents]:
        if (folder / "suites").is_dir():
            return folder
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "suites").is_dir():
        return checkout
    raise LitmusError("no suites found", where=here, expected="a folder with suites/ in it or above it",
                      next_step="cd into the project, or set LITMUS_ROOT")
