"""Option values that need more than a type: durations, profiles, devices, seeds, run names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.declare.card import PROFILES, Profile
from harness.errors import LitmusError, did_you_mean

if TYPE_CHECKING:
    from harness.records.store import Run
    from harness.run.engine.choice import EngineChoice

_UNITS_S = {"h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|min|m|s)")


def parse_budget(text: str | None) -> float | None:
    """``90s``, ``10m``, ``1h30m`` in seconds. Raises LitmusError for anything else, zero included."""
    if text is None:
        return None
    compact = text.strip().lower().replace(" ", "")
    total_s = sum(float(amount) * _UNITS_S[unit] for amount, unit in _PART.findall(compact))
    if _PART.sub("", compact) or total_s <= 0:
        raise LitmusError("not a time budget", where="the command line", key="--budget", value=text,
                          expected="a duration above zero with its unit, such as 90s, 10m or 1h30m",
                          next_step="try: litmus run --budget 10m")
    return total_s


def parse_profile(text: str) -> Profile:
    """One of the profiles. Raises LitmusError with the nearest name."""
    if text not in PROFILES:
        raise LitmusError("no such profile", where="the command line", key="--profile", value=text,
                          expected=f"{', '.join(PROFILES)}; {did_you_mean(text, PROFILES)}",
                          next_step="smoke takes seconds, small is the default evidence, full is everything")
    return text


def parse_devices(texts: Sequence[str]) -> tuple[str, ...]:
    """Device kinds or ids from repeated or comma-separated values; ``auto`` (the default) stands alone."""
    names = tuple(name.strip() for text in texts for name in text.split(",") if name.strip())
    for name in names:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise LitmusError("no such device", where="the command line", key="--device", value=name,
                              expected=f"auto, cpu, cuda or cuda:INDEX; {did_you_mean(name, ('auto', 'cpu', 'cuda'))}",
                              next_step="see what this machine has with: litmus doctor")
    if "auto" in names and len(names) > 1:
        raise LitmusError("'auto' already means every device", where="the command line", key="--device",
                          value=",".join(names), expected="auto alone, or the devices by name",
                          next_step="leave 'auto' out")
    return names or ("auto",)


def parse_engine(
    name: str | None, scheduler: str | None, insecure: bool, image: str | None
) -> EngineChoice | None:
    """The engine that the options ask for, None where they ask for none. Raises LitmusError where they do not fit."""
    from harness.run.engine.choice import EngineChoice

    if name is None and scheduler is None and not insecure and image is None:
        return None
    if name != "docker" and image is not None:
        raise LitmusError("only the docker engine has an image", where="the command line", key="--engine",
                          value=name, expected="--engine docker beside --image", next_step="add: --engine docker")
    if name != "dask" and (scheduler is not None or insecure):
        raise LitmusError("only the dask engine has a scheduler", where="the command line", key="--engine",
                          value=name, expected="--engine dask beside --scheduler and --insecure",
                          next_step="add: --engine dask")
    return EngineChoice(name or "local", scheduler, insecure, image)


def at_least_one(key: str, value: int | None) -> int | None:
    """``value`` where it is None or at least 1. Raises LitmusError otherwise."""
    if value is not None and value < 1:
        raise LitmusError("too small", where="the command line", key=key, value=value,
                          expected="a whole number, 1 or more", next_step=f"leave {key} out to take the default")
    return value


def runs_named(root: Path, names: Sequence[str]) -> list[Run]:
    """The runs given by path, id or ``latest``; all stored runs, newest first, when none is given."""
    from harness.records.store import find_runs, resolve_run

    return [resolve_run(root, name) for name in names] if names else find_runs(root)
