"""Which engine a run asks for, and how each is opened. An engine more is a name, its options and a line in ENGINES."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import LitmusError, did_you_mean
from harness.plan.code import library_modules
from harness.plan.machine import this_machine
from harness.run.engine.base import RunEngine


@dataclass(frozen=True)
class EngineChoice:
    """The engine's name and its options as the command line gives them."""

    name: str = "local"
    scheduler: str | None = None
    insecure: bool = False
    image: str | None = None

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> EngineChoice:
        """What a run's ``engine`` says it was made with, so that it can go on with the same."""
        return cls(str(about.get("name", "local")), about.get("scheduler"), bool(about.get("insecure", False)),
                   about.get("image_id"))

    def words(self) -> list[str]:
        """The words of the command line that ask for it; none for this machine."""
        words = [] if self.name == "local" else ["--engine", self.name]
        words += ["--scheduler", self.scheduler] if self.scheduler else []
        words += ["--image", self.image] if self.image else []
        return [*words, "--insecure"] if self.insecure else words


def open_engine(choice: EngineChoice, root: Path, suites: Sequence[str], jobs: int | None) -> RunEngine:
    """The engine, to be closed by the caller. ``suites`` are those of the run, ``jobs`` its trial cells side by side.

    Raises LitmusError for an unknown name, and where the engine cannot be had.
    """
    if choice.name not in ENGINES:
        raise LitmusError("no such engine", where="the command line", key="--engine", value=choice.name,
                          expected=f"{', '.join(ENGINES)}; {did_you_mean(choice.name, ENGINES)}",
                          next_step="leave --engine out to run on this machine")
    preload = {module for name in suites for module in library_modules(root, root / "suites" / name)}
    return ENGINES[choice.name](choice, root, suites, sorted(preload), jobs)


def _local(
    choice: EngineChoice, root: Path, suites: Sequence[str], preload: Sequence[str], jobs: int | None
) -> RunEngine:
    from harness.run.engine.local import LocalEngine

    engine = LocalEngine(root, jobs or this_machine().cores, preload)
    engine.warm()  # its libraries load while the run is planned
    return engine


def _dask(
    choice: EngineChoice, root: Path, suites: Sequence[str], preload: Sequence[str], jobs: int | None
) -> RunEngine:
    from harness.run.engine.dask import DaskEngine

    if choice.scheduler is None:
        raise LitmusError("no scheduler is named", where="the command line", key="--scheduler",
                          expected="the address of a dask scheduler, such as tls://head:8786",
                          next_step="start one on this machine with: litmus cluster up --local 2")
    return DaskEngine(root, choice.scheduler, suites, preload, jobs, insecure=choice.insecure)


def _docker(
    choice: EngineChoice, root: Path, suites: Sequence[str], preload: Sequence[str], jobs: int | None
) -> RunEngine:
    from harness.run.engine.docker import DEFAULT_IMAGE, DockerEngine

    return DockerEngine(root, choice.image or DEFAULT_IMAGE, jobs, preload)


_Open = Callable[[EngineChoice, Path, Sequence[str], Sequence[str], int | None], RunEngine]
ENGINES: dict[str, _Open] = {"local": _local, "dask": _dask, "docker": _docker}
