"""The fair search: every arm tries its grid, as many trials each, on seeds that no reported trial uses."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean

import yaml

from harness.declare.card import Card, Experiment, Measure, Tune
from harness.declare.catalog import Catalog
from harness.declare.fields import Scalar
from harness.declare.seeds import TUNING_OFFSET
from harness.declare.tuned import Score, Tuned, TunedExperiment, Winner, load_tuned
from harness.errors import LitmusError, did_you_mean
from harness.plan.cell import Cell
from harness.plan.code import code_hash, library_modules
from harness.plan.machine import this_machine
from harness.plan.plan import Plan
from harness.records.record import Record
from harness.run.about import commit_of
from harness.run.engine.base import Engine
from harness.run.engine.local import LocalEngine
from harness.run.lanes import run_cell
from harness.run.progress import Progress

Values = dict[str, Scalar]
_MAX_EXTENSIONS = 2
_DIGITS = 6


def tune(
    root: Path, suite: str, experiment: str | None, jobs: int | None, progress: Progress, engine: Engine | None = None
) -> Path:
    """Search the grids of ``experiment`` (all with ``tune:`` if None) and write the winners to ``tuned.yaml``.

    Where an arm's best value lies at the edge of a one-dimensional numeric grid, that arm's grid grows by a step, at
    most twice; the same holds for every arm. Raises LitmusError where nothing is to be tuned, or no trial of an arm
    gives a finite score.
    """
    entry = Catalog(root).get(suite)
    names = _experiments(entry.card, experiment, entry.folder)
    path = entry.folder / "tuned.yaml"
    with nullcontext(engine) if engine else _local(root, entry.folder, jobs) as running:
        for name in names:
            search = _Search(root, entry.name, entry.folder, entry.card, name, running, progress)
            found = search.run()
            kept = load_tuned(path)
            _write(path, Tuned(experiments={**kept.experiments, name: found}))
    return path


def _local(root: Path, folder: Path, jobs: int | None) -> LocalEngine:
    return LocalEngine(root, jobs or this_machine().cores, library_modules(root, folder))


def _experiments(card: Card, wanted: str | None, folder: Path) -> list[str]:
    tunable = [name for name, item in card.experiments.items() if item.tune is not None]
    chosen = [name for name in tunable if wanted in (None, name)]
    if not chosen:
        raise LitmusError("nothing to tune", where=folder / "card.yaml", key="tune", value=wanted,
                          expected=did_you_mean(wanted or "", tunable) if tunable else "an experiment with 'tune:'")
    return chosen


def grid_points(grid: Mapping[str, Sequence[Scalar]]) -> list[Values]:
    """All combinations of a grid, the first axis varying slowest."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def next_value(values: Sequence[Scalar], best: Scalar) -> float | int | None:
    """One step beyond ``values`` where ``best`` is their smallest or largest number; None where it is not.

    Evenly spaced grids go on evenly, others by the ratio of the last two; a grid of positive numbers stays positive.
    """
    numbers = sorted({value for value in values if isinstance(value, int | float) and not isinstance(value, bool)})
    if len(numbers) < 2 or len(numbers) != len(values) or best not in (numbers[0], numbers[-1]):
        return None
    edge, inner = (numbers[0], numbers[1]) if best == numbers[0] else (numbers[-1], numbers[-2])
    gaps = [high - low for low, high in pairwise(numbers)]
    even = len(gaps) > 1 and math.isclose(min(gaps), max(gaps), rel_tol=1e-6)
    step: float = edge + (edge - inner)
    if numbers[0] > 0 and (not even or step <= 0):
        step = edge * (edge / inner)
    if all(isinstance(value, int) for value in numbers):
        return None if round(step) == edge or (numbers[0] > 0 >= round(step)) else round(step)
    return float(f"{step:.{_DIGITS}g}")


@dataclass
class _Arm:
    """One arm's search: what was tried, with the metric of each tuning seed."""

    name: str
    grid: dict[str, list[Scalar]]
    tried: list[tuple[Values, list[float | None]]]
    extensions: int = 0

    def scores(self) -> list[float | None]:
        """The mean over the seeds; None (the worst) where one of them was not finite or did not finish."""
        return [None if None in seeds else fmean(seeds) for _, seeds in self.tried]  # type: ignore[arg-type]

    def best(self, higher: bool) -> Values | None:
        """The values with the best score, the first of equals; None where no score is finite."""
        finite = [(score, values) for score, (values, _) in zip(self.scores(), self.tried, strict=True)
                  if score is not None]
        if not finite:
            return None
        return (max if higher else min)(finite, key=lambda item: item[0])[1]

    def extension(self, higher: bool) -> Values | None:
        """What to try next because the best lies at the edge; None where the search is over."""
        best, varied = self.best(higher), [name for name, values in self.grid.items() if len(values) > 1]
        if best is None or len(varied) != 1 or self.extensions >= _MAX_EXTENSIONS:
            return None
        axis = varied[0]
        value = next_value(self.grid[axis], best[axis])
        if value is None:
            return None
        self.grid[axis].append(value)
        self.extensions += 1
        return {**best, axis: value}


@dataclass
class _Search:
    """One experiment's search."""

    root: Path
    suite: str
    folder: Path
    card: Card
    name: str
    engine: Engine
    progress: Progress
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self) -> TunedExperiment:
        tune_, experiment = self._declared()
        self.code = code_hash(self.root, self.folder)
        self.point = {**{axis: values[0] for axis, values in experiment.axes.items()}, **tune_.point}
        self.seeds = [TUNING_OFFSET + index for index in range(tune_.seeds)]
        higher = experiment.better(tune_.metric) == "higher"
        arms = [_Arm(name, {axis: list(values) for axis, values in grid.items()}, [])
                for name, grid in tune_.grid.items()]
        todo = [(arm, values) for arm in arms for values in grid_points(arm.grid)]
        while todo:
            self._try(experiment, tune_.metric, todo)
            steps = [(arm, arm.extension(higher)) for arm in arms]
            todo = [(arm, values) for arm, values in steps if values is not None]
            for arm, values in todo:
                self.progress.note(f"{arm.name}: the best value lies at the edge of the grid; trying {values}")
        commit, _ = commit_of(self.root)
        return TunedExperiment(
            command=f"litmus tune {self.suite}:{self.name}", commit=commit or "none", code=self.code,
            metric=tune_.metric, seeds=self.seeds, point=self.point,
            arms={arm.name: self._winner(arm, higher) for arm in arms},
        )

    def _declared(self) -> tuple[Tune, Experiment]:
        experiment = self.card.experiments[self.name].in_profile("small") or self.card.experiments[self.name]
        assert experiment.tune is not None  # _experiments chose it
        if experiment.better(experiment.tune.metric) == "none":
            raise LitmusError("the tuning metric has no direction", where=self.folder / "card.yaml",
                              key=f"experiments.{self.name}.metrics.{experiment.tune.metric}.better",
                              expected="lower or higher")
        return experiment.tune, experiment

    def _try(self, experiment: Experiment, metric: str, todo: list[tuple[_Arm, Values]]) -> None:
        cells = [self._cell(experiment, arm.name, values, seed) for arm, values in todo for seed in self.seeds]
        self.progress.planned(Plan(tuple(cells), ()))
        records = iter(self._run(cells))
        for arm, values in todo:
            arm.tried.append((values, [_finite(next(records), metric) for _ in self.seeds]))

    def _cell(self, experiment: Experiment, arm: str, values: Values, seed: int) -> Cell:
        return Cell(
            suite=self.suite, experiment=self.name, kind="trial", point=self.point, seed=seed, device="cpu",
            profile="small", arms=(arm,), card_version=self.card.version, code=self.code, tuned={arm: values},
            measure=Measure(), timeout_s=experiment.timeout_s, memory_gib=experiment.memory_gib,
        )

    def _run(self, cells: Sequence[Cell]) -> list[Record]:
        with ThreadPoolExecutor(self.engine.slots, thread_name_prefix="tune") as pool:
            try:
                return list(pool.map(self._one, cells))
            except BaseException:
                self.engine.cancel()
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, cell: Cell) -> Record:
        records: list[Record] = []
        begin_s = time.monotonic()
        with self.lock:
            self.progress.started(cell)
        run_cell(self.engine, self.root, cell, cell.arms, records.append, self.progress.note)
        with self.lock:
            self.progress.recorded(records[0])
            self.progress.finished(cell, time.monotonic() - begin_s)
        return records[0]

    def _winner(self, arm: _Arm, higher: bool) -> Winner:
        best = arm.best(higher)
        if best is None:
            raise LitmusError("no trial of this arm gave a finite score", where=self.folder / "card.yaml",
                              key=f"experiments.{self.name}.tune.grid.{arm.name}",
                              expected="at least one setting that works",
                              next_step="widen the grid, or see why: litmus run --profile smoke")
        trials = [Score(values=values, score=score, per_seed=seeds)
                  for score, (values, seeds) in zip(arm.scores(), arm.tried, strict=True)]
        return Winner(values=best, trials=trials, extended=arm.extensions > 0)


def _finite(record: Record, metric: str) -> float | None:
    value = record.metrics.get(metric) if record.status == "ok" else None
    return value if isinstance(value, float) and math.isfinite(value) else None


def _write(path: Path, tuned: Tuned) -> None:
    head = "# Generated by 'litmus tune'; every trial of the search is listed. Do not edit.\n"
    text = yaml.safe_dump(tuned.model_dump(), sort_keys=False, width=120, default_flow_style=None)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(head + text, encoding="utf-8")
    temporary.replace(path)
