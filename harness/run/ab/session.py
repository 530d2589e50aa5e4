"""``litmus ab`` from two names of revisions to an outcome. Nothing is written into results/."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from harness.declare.card import Profile
from harness.declare.gate import Gate
from harness.errors import LitmusError
from harness.judge.compare import Decision, Sequential, cell_alpha, decide_metric, holm, one_sided, zone
from harness.judge.comparison import Comparison, Outcome
from harness.plan.code import library_modules
from harness.plan.machine import Machine, this_machine
from harness.plan.plan import Request
from harness.run.ab.accuracy import LEVEL, Metrics, compare_trials, run_trials
from harness.run.ab.canary import Canary
from harness.run.ab.engines import TwoEngines, new_engine
from harness.run.ab.environments import Environment, differences, environments
from harness.run.ab.identity import Matched, arms_of_ours, match, whole
from harness.run.ab.pair import BASE, HEAD, CellPair, PairResult, measure_pair
from harness.run.ab.timing import TIME, CellState, Number, measure_all
from harness.run.ab.worktree import FOLDER, Side, two_sides
from harness.run.engine.local import LocalEngine
from harness.run.interrupt import until_interrupted
from harness.run.oracles import ask
from harness.run.yardsticks import devices_of

BUDGET_S = 180.0
_MOST_SHOWN = 8
Installed = tuple[Environment, Environment] | None


class Progress(Protocol):
    """What the command shows meanwhile; called from one thread at a time."""

    def note(self, text: str) -> None:
        """One sentence the user should see."""

    def step(self, done: int, total: int, text: str) -> None:
        """``done`` of ``total`` are finished, and something happened."""


@dataclass(frozen=True)
class AbOptions:
    """What to compare: ``everything`` also where nothing changed; ``budget_s`` bounds the timing.

    ``looks`` are the numbers of process pairs at which it is decided whether to go on. ``install`` gives each side what
    its own ``pyproject.toml`` asks for; without it both use this process's environment.
    """

    selectors: tuple[str, ...] = ()
    everything: bool = False
    profile: Profile = "smoke"
    budget_s: float = BUDGET_S
    gate: Gate = field(default_factory=Gate)
    looks: tuple[int, ...] = (4, 6, 8, 12)
    install: bool = False


def compare_revisions(
    root: Path, base: str, head: str, options: AbOptions, progress: Progress, engine: LocalEngine | None = None
) -> Outcome:
    """Compare two revisions of the project at ``root`` on this machine, see :func:`two_sides` for their names.

    Raises LitmusError where a revision or the selection names nothing, :class:`harness.run.lanes.Cancelled` after
    Ctrl-C; whatever happens, neither a worktree nor a process is left.
    """
    begin_s, machine = time.monotonic(), this_machine()
    with two_sides(root, base, head) as sides:
        installed = environments(sides, root / FOLDER, progress.note) if options.install else None
        running = nullcontext(engine) if engine else _engine(root, sides, installed, machine.cores)
        with running as own, until_interrupted(own.cancel):
            own.warm()  # its libraries load while both sides are planned
            different = differences(*installed) if installed else []
            request = Request(options.selectors, options.profile)
            matched = match(*sides, request, machine, options.everything or bool(different))
            return _Session(sides, matched, options, machine, progress, own, different).run(begin_s)


@contextmanager
def _engine(
    root: Path, sides: tuple[Side, Side], installed: Installed, slots: int
) -> Iterator[LocalEngine | TwoEngines]:
    """One zygote for both sides where one environment serves both."""
    folder, libraries = root / FOLDER, _libraries(root)
    if installed is None or installed[0] == installed[1]:
        with new_engine(folder, slots, libraries, installed[0].python if installed else None) as engine:
            yield engine
        return
    engines = {side.root: new_engine(folder, slots, libraries, own.python)
               for side, own in zip(sides, installed, strict=True)}
    with TwoEngines(engines) as both:
        yield both


def _libraries(root: Path) -> set[str]:
    return {module for folder in sorted((root / "suites").glob("*/*")) for module in library_modules(root, folder)}


class _Session:
    """The state of one comparison."""

    def __init__(
        self, sides: tuple[Side, Side], matched: Matched, options: AbOptions, machine: Machine, progress: Progress,
        engine: LocalEngine | TwoEngines, different: Sequence[str] = (),
    ) -> None:
        self.different = tuple(different)
        self.sides, self.matched, self.options, self.machine = sides, matched, options, machine
        self.progress, self.engine, self.gate = progress, engine, options.gate
        self.chance = random.Random()
        self.deadline_s = float("inf")
        self.numbers: dict[str, Number | Metrics] = {}
        self.alarms: list[str] = []

    def run(self, begin_s: float) -> Outcome:
        """Oracles, canary, times, canary, trials, words."""
        self._notes()
        comparisons = list(self.matched.settled)
        pairs = list(self.matched.pairs)
        if pairs:
            self.engine.ready()
            wrong = self._ask_oracles(pairs)
            comparisons += wrong.values()
            pairs = [pair for pair in pairs if pair.head.suite not in wrong]
        failed = False
        timed = [pair for pair in pairs if pair.head.kind == "speed"]
        if timed:
            found, failed = self._times(timed)
            comparisons += found
        comparisons += self._trials([pair for pair in pairs if pair.head.kind == "trial"])
        comparisons = list(holm(comparisons, self.gate.alpha, self._again))
        sided = one_sided(comparisons)
        if sided:
            self.alarms.append(sided)
        base, head = self.sides
        return Outcome(base.label, head.label, tuple(comparisons), tuple(self.alarms), failed,
                       time.monotonic() - begin_s, self._environments())

    def _notes(self) -> None:
        count = len(self.matched.pairs)
        speed = sum(pair.head.kind == "speed" for pair in self.matched.pairs)
        text = f"{speed} speed cells and {count - speed} trial cells to compare"
        if self.matched.unchanged:
            text += f", {self.matched.unchanged} equal ones left out (--all takes them)"
        self.progress.note(text)

    def _environments(self) -> tuple[str, ...]:
        """That a change may be a library's doing."""
        if not self.different:
            return ()
        shown = ", ".join(self.different[:_MOST_SHOWN])
        more = len(self.different) - _MOST_SHOWN
        return (f"each side in its own environment: {shown}" + (f" and {more} more" if more > 0 else ""),)

    def _ask_oracles(self, pairs: Sequence[CellPair]) -> dict[str, Comparison]:
        """Correct before anything else: the suites whose oracle disagrees on a side are not measured."""
        suites = sorted({pair.head.suite for pair in pairs})
        jobs = [(side, suite) for suite in suites for side in self.sides]
        with ThreadPoolExecutor(self.engine.slots, thread_name_prefix="oracle") as pool:
            answers = list(pool.map(lambda job: ask(self.engine, job[0].root, job[1]).fault, jobs))
        faults: dict[str, dict[str, str]] = {}
        for (side, suite), fault in zip(jobs, answers, strict=True):
            if fault is not None:
                faults.setdefault(suite, {})[side.role] = fault
        return {
            suite: whole(suite, "base_status" if BASE in found else "head_status",
                         "; ".join(f"{role}: {fault}" for role, fault in found.items()), gates=BASE not in found)
            for suite, found in faults.items()
        }

    def _times(self, pairs: Sequence[CellPair]) -> tuple[list[Comparison], bool]:
        """(what is said of the times, whether the canary failed)."""
        begin_s = time.monotonic()
        # Equal code needs equal libraries, too: where the environments differ, both voices are the head's.
        base, head = self.sides
        voices = (replace(base, root=head.root) if self.different else base, head)
        canary = Canary(voices, devices_of(pair.head for pair in pairs), self._pair)
        self.progress.note("timing equal code against itself (the canary)")
        canary.sing()
        canary_s = time.monotonic() - begin_s
        states = self._states(pairs, canary.floor)
        self.deadline_s = begin_s + max(0.0, self.options.budget_s - canary_s)
        measure_all(states, self._pair, self.deadline_s, self._tell)
        self.deadline_s = float("inf")
        canary.sing()
        alarm = canary.alarm()
        if alarm:
            self.alarms.append(alarm)
        found = []
        for state in states:
            for comparison, number in state.comparisons(self.gate):
                found.append(comparison)
                if number is not None:
                    self.numbers[comparison.label] = number
        return found, alarm is not None

    def _states(self, pairs: Sequence[CellPair], floor: float) -> list[CellState]:
        arms = {id(pair): arms_of_ours(pair, self.matched.cards[pair.head.suite]) for pair in pairs}
        gates = {(id(pair), arm): self.gate.gates(pair.head.suite, pair.head.experiment, arm, TIME)
                 for pair in pairs for arm in arms[id(pair)]}
        alpha = cell_alpha(sum(gates.values()), self.gate.alpha)

        def number(pair: CellPair, arm: str) -> Number:
            threshold, _ = self.gate.threshold(pair.head.suite, pair.head.experiment, TIME)
            rule = Sequential(zone(threshold, floor), alpha, looks=self.options.looks)
            return Number(arm, rule, gates[id(pair), arm])

        return [CellState(pair, {arm: number(pair, arm) for arm in arms[id(pair)]}) for pair in pairs]

    def _pair(self, cells: CellPair, arms: Mapping[str, Sequence[str]], number: int) -> PairResult:
        """Two workers share the memory: a cell that may have more than half of it gets half."""
        most_gib = 0.45 * self.machine.memory_bytes / 2**30
        base, head = (replace(cell, memory_gib=min(cell.memory_gib, most_gib)) if cell.device == "cpu" else cell
                      for cell in (cells.base, cells.head))
        both = replace(cells, base=base, head=head)
        return measure_pair(self.engine, both, arms, number, self.chance, self.deadline_s)

    def _tell(self, state: CellState, done: int, total: int) -> None:
        words = [f"{arm} {number.decision.word}" for arm, number in state.numbers.items() if number.decision]
        broken = [f"{arm} {fault}" for role in (BASE, HEAD) for arm, fault in state.faults[role].items()]
        self.progress.step(done, total, f"{state.cells.head.label} pair {state.attempts}"
                           + (f": {', '.join([*words, *broken])}" if words or broken else ""))

    def _trials(self, pairs: Sequence[CellPair]) -> list[Comparison]:
        if not pairs:
            return []
        done: list[CellPair] = []

        def tell(pair: CellPair) -> None:
            done.append(pair)
            self.progress.step(len(done), len(pairs), f"{pair.head.label} seed {pair.head.seed}")

        records = run_trials(self.engine, pairs, self.progress.note, tell)
        found = []
        for item in compare_trials(pairs, records, self.matched.cards, self.gate):
            comparison = item.decided(LEVEL) if isinstance(item, Metrics) else item
            if isinstance(item, Metrics):
                self.numbers[comparison.label] = item
            found.append(comparison)
        return found

    def _again(self, comparison: Comparison, level: float) -> Decision:
        """The same numbers at another level, for Holm's procedure."""
        number = self.numbers.get(comparison.label)
        if isinstance(number, Number):
            return number.rule.again(number.rounds, level)
        if isinstance(number, Metrics):
            said = decide_metric(number.base, number.head, comparison.better, comparison.threshold,
                                 comparison.relative, level)
            return replace(said, unit=comparison.unit)
        raise LitmusError("no numbers behind this comparison", value=comparison.label)
