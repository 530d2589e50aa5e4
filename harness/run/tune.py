"""The fair search: every arm tries its grid, as many trials each, on seeds that no reported trial uses.

Scores are kept as they come (below ``.litmus/tune``), so a search that was cut off goes on where it was.
"""

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
from harness.run.scores import Scores

Values = dict[str, Scalar]
_MAX_EXTENSIONS = 2
_DIGITS = 6
_NO_LIMITS = (-math.inf, math.inf)


def tune(
    root: Path, suite: str, experiment: str | None, jobs: int | None, progress: Progress, engine: Engine | None = None
) -> Path:
    """Search the grids of ``experiment`` (all with ``tune:`` if None) and write the winners to ``tuned.yaml``.

    Where an arm's best value lies at the edge of a numeric axis of its grid, that axis grows by a step, the others held
    at their best, at most twice for each arm and within the card's ``limits``; an edge that is left is named in
    ``at_edge``. Raises LitmusError where nothing is to be tuned, no trial of an arm gives a finite score, or a winner
    that the experiment takes from another search is not there yet.
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
    return sorted(chosen, key=lambda name: _depth(card, name))


def _depth(card: Card, name: str, below: frozenset[str] = frozenset()) -> int:
    """How many searches the one of ``name`` waits for, one after the other."""
    others = {of for of, _ in Tuned.borrowed(card.experiments[name])} - {name} - below
    return 1 + max((_depth(card, other, below | {name}) for other in others), default=-1)


def grid_points(grid: Mapping[str, Sequence[Scalar]]) -> list[Values]:
    """All combinations of a grid, the first axis varying slowest."""
    return [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]


def next_value(values: Sequence[Scalar], best: Scalar, limits: tuple[float, float] = _NO_LIMITS) -> float | int | None:
    """One step beyond ``values`` where ``best`` is their smallest or largest number; None where it is not.

    Evenly spaced grids go on evenly, others by the ratio of the last two; a grid of positive numbers stays positive.
    A step beyond one of the ``limits`` ends on it; beyond a value that is a limit nothing is left to try.
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
        whole = round(step)
        if not limits[0] <= whole <= limits[1]:
            whole = math.ceil(limits[0]) if whole < limits[0] else math.floor(limits[1])
        return None if whole in numbers or (numbers[0] > 0 >= whole) else whole
    step = float(f"{min(max(step, limits[0]), limits[1]):.{_DIGITS}g}")
    return None if step in numbers else step


@dataclass
class _Arm:
    """One arm's search: what was tried, with the metric of each tuning seed."""

    name: str
    grid: dict[str, list[Scalar]]
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tried: list[tuple[Values, list[float | None]]] = field(default_factory=list)
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
        """What to try next because the best lies at an edge; None where the search is over."""
        if self.extensions >= _MAX_EXTENSIONS:
            return None
        for axis, value in self._beyond(higher).items():
            tried = {**self.best(higher), axis: value}  # type: ignore[dict-item]  # _beyond has found a best
            self.grid[axis].append(value)
            self.extensions += 1
            return tried
        return None

    def edges(self, higher: bool) -> list[str]:
        """The axes on which the best still lies at the edge of what was tried."""
        return list(self._beyond(higher))

    def _beyond(self, higher: bool) -> Values:
        best = self.best(higher)
        if best is None:
            return {}
        steps = {axis: next_value(values, best[axis], self.limits.get(axis, _NO_LIMITS))
                 for axis, values in self.grid.items()}
        return {axis: step for axis, step in steps.items() if step is not None}


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
        self.tuned = self._winners_to_take()
        self.scores = Scores(self.root / ".litmus" / "tune" / f"{self.suite.replace('/', '-')}-{self.name}.jsonl")
        axes = {**{axis: values[0] for axis, values in experiment.axes.items()}, **tune_.point}
        self.points = grid_points({axis: value if isinstance(value, list) else [value] for axis, value in axes.items()})
        self.seeds = [TUNING_OFFSET + index for index in range(tune_.seeds)]
        higher = experiment.better(tune_.metric) == "higher"
        arms = [_Arm(name, {axis: list(values) for axis, values in grid.items()}, tune_.limits)
                for name, grid in tune_.grid.items()]
        todo = [(arm, values) for arm in arms for values in grid_points(arm.grid)]
        while todo:
            self._try(experiment, tune_.metric, todo)
            steps = [(arm, arm.extension(higher)) for arm in arms]
            todo = [(arm, values) for arm, values in steps if values is not None]
            for arm, values in todo:
                self.progress.note(f"{arm.name}: the best value lies at the edge of the grid; trying {values}")
        for arm in arms:
            if edges := arm.edges(higher):
                self.progress.note(f"{arm.name}: the best {' and '.join(edges)} still lies at the edge of what was "
                                   "tried; widen its grid in the card, and every other arm's by as much")
        commit, _ = commit_of(self.root)
        return TunedExperiment(
            command=f"litmus tune {self.suite}:{self.name}", commit=commit or "none", code=self.code,
            metric=tune_.metric, seeds=self.seeds, point=axes,
            arms={arm.name: self._winner(arm, higher) for arm in arms},
        )

    def _winners_to_take(self) -> Tuned:
        """``tuned.yaml`` as it is, where it has all winners that the experiment takes from other searches."""
        tuned, experiment = load_tuned(self.folder / "tuned.yaml"), self.card.experiments[self.name]
        for of, arm in tuned.borrowed(experiment):
            if of != self.name and tuned.values(of, arm) is None:
                raise LitmusError("a winner that this search takes from another is not there yet",
                                  where=self.folder / "card.yaml", key=f"experiments.{self.name}.tuned_from",
                                  value=f"{of}:{arm}", expected="a search that was made before",
                                  next_step=f"litmus tune {self.suite}:{of}")
        return tuned

    def _declared(self) -> tuple[Tune, Experiment]:
        experiment = self.card.experiments[self.name].in_profile("small") or self.card.experiments[self.name]
        assert experiment.tune is not None  # _experiments chose it
        if experiment.better(experiment.tune.metric) == "none":
            raise LitmusError("the tuning metric has no direction", where=self.folder / "card.yaml",
                              key=f"experiments.{self.name}.metrics.{experiment.tune.metric}.better",
                              expected="lower or higher")
        return experiment.tune, experiment

    def _try(self, experiment: Experiment, metric: str, todo: list[tuple[_Arm, Values]]) -> None:
        cells = [[self._cell(experiment, arm.name, values, point, seed) for point in self.points for seed in self.seeds]
                 for arm, values in todo]
        missing = [cell for line in cells for cell in line if cell.id not in self.scores]
        known = sum(map(len, cells)) - len(missing)
        if known:
            self.progress.note(f"{known} trials are known from an earlier search; to make them anew, delete "
                               f"{self.scores.path.relative_to(self.root)}")
        self.progress.planned(Plan(tuple(missing), ()))
        self._run(missing)
        for (arm, values), line in zip(todo, cells, strict=True):
            arm.tried.append((values, [self.scores.value(cell.id, metric) for cell in line]))

    def _cell(self, experiment: Experiment, arm: str, values: Values, point: Values, seed: int) -> Cell:
        tuned = {arm: {**self.tuned.taken(experiment, arm), **values}}
        return Cell(
            suite=self.suite, experiment=self.name, kind="trial", point=point, seed=seed, device="cpu",
            profile="small", arms=(arm,), card_version=self.card.version, code=self.code, tuned=tuned,
            measure=Measure(), timeout_s=experiment.timeout_s, memory_gib=experiment.memory_gib,
        )

    def _run(self, cells: Sequence[Cell]) -> None:
        with ThreadPoolExecutor(self.engine.slots, thread_name_prefix="tune") as pool:
            try:
                list(pool.map(self._one, cells))
            except BaseException:
                self.engine.cancel()
                pool.shutdown(cancel_futures=True)
                raise

    def _one(self, cell: Cell) -> None:
        records: list[Record] = []
        begin_s = time.monotonic()
        with self.lock:
            self.progress.started(cell)
        run_cell(self.engine, self.root, cell, cell.arms, records.append, self.progress.note)
        with self.lock:
            self.scores.add(records[0])
            self.progress.recorded(records[0])
            self.progress.finished(cell, time.monotonic() - begin_s)

    def _winner(self, arm: _Arm, higher: bool) -> Winner:
        best = arm.best(higher)
        if best is None:
            raise LitmusError("no trial of this arm gave a finite score", where=self.folder / "card.yaml",
                              key=f"experiments.{self.name}.tune.grid.{arm.name}",
                              expected="at least one setting that works",
                              next_step="widen the grid, or see why: litmus run --profile smoke")
        trials = [Score(values=values, score=score, per_seed=seeds)
                  for score, (values, seeds) in zip(arm.scores(), arm.tried, strict=True)]
        return Winner(values=best, trials=trials, extended=arm.extensions > 0, at_edge=arm.edges(higher))


def _write(path: Path, tuned: Tuned) -> None:
    head = "# Generated by 'litmus tune'; every trial of the search is listed. Do not edit.\n"
    text = yaml.safe_dump(tuned.model_dump(), sort_keys=False, width=120, default_flow_style=None)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(head + text, encoding="utf-8")
    temporary.replace(path)
