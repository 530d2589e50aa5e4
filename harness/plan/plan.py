"""The plan: card x profile x machine -> cells, each kept or skipped with a reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.declare.card import Experiment, Profile
from harness.declare.catalog import Catalog, Entry, Selector
from harness.declare.tuned import load_tuned
from harness.errors import LitmusError, did_you_mean
from harness.plan.cell import Cell
from harness.plan.code import code_hash
from harness.plan.machine import Machine

# Begins the reason of every cell that has no place to run.
MISSING_DEVICE = "missing_device"


@dataclass(frozen=True)
class Skip:
    """A cell that will not run, and why."""

    cell: Cell
    reason: str


@dataclass(frozen=True)
class Plan:
    """The cells to run, in order, and those that will not run."""

    cells: tuple[Cell, ...]
    skipped: tuple[Skip, ...]

    def __len__(self) -> int:
        return len(self.cells)


@dataclass(frozen=True)
class Request:
    """What the user asked for: selectors, profile, device kinds or ids, and seeds (None: the card's)."""

    selectors: tuple[str, ...] = ()
    profile: Profile = "small"
    devices: tuple[str, ...] = ("auto",)
    seeds: int | None = None


def make_plan(root: Path, request: Request, machine: Machine) -> Plan:
    """Plan ``request`` for ``machine``. Raises LitmusError where a selector or device names nothing."""
    kept: list[Cell] = []
    skipped: list[Skip] = []
    devices = _devices(request, machine)
    for entry, selectors in Catalog(root).select(request.selectors):
        for cell, planned_reason in _suite_cells(root, entry, selectors, request, devices):
            reason = planned_reason or _unfit(cell, machine)
            if reason:
                skipped.append(Skip(cell, reason))
            else:
                kept.append(cell)
    if not kept and not skipped:
        raise _empty(root, request)
    return Plan(tuple(kept), tuple(skipped))


def _empty(root: Path, request: Request) -> LitmusError:
    """Why nothing was planned: an axis without the value asked for, or a device that no experiment is for."""
    kinds: set[str] = set()
    for entry, selectors in Catalog(root).select(request.selectors):
        for selector in selectors:
            for name, experiment in entry.card.experiments.items():
                kinds |= set(experiment.devices) if selector.takes_experiment(name) else set()
                item = experiment.in_profile(request.profile) or experiment
                for axis, value in selector.point if selector.takes_experiment(name) else ():
                    if value not in item.axes.get(axis, [value]):
                        return LitmusError(
                            "the axis does not have this value in this profile", where=entry.folder / "card.yaml",
                            key=f"experiments.{name}.axes.{axis}", value=value,
                            expected="one of " + ", ".join(map(str, item.axes[axis])),
                            next_step=f"see: litmus run {entry.slug} --profile {request.profile} --dry-run",
                        )
    expected = "a device that a selected experiment is for: " + ", ".join(sorted(kinds))
    return LitmusError("the selection holds no cell", where="the command line", key="--device",
                       value=", ".join(request.devices), expected=expected,
                       next_step="leave --device out; see the cells with: litmus run --dry-run")


def _devices(request: Request, machine: Machine) -> list[str]:
    known = [device.id for device in machine.devices]
    if request.devices == ("auto",):
        return known
    chosen = []
    for name in request.devices:
        matching = [item for item in known if item == name or item.split(":")[0] == name]
        if not matching and name.split(":")[0] not in ("cpu", "cuda"):
            raise LitmusError("no such device", where="the command line", key="--device", value=name,
                              expected=did_you_mean(name, known), next_step="see what is there with: litmus doctor")
        chosen += matching or [name]
    return chosen


def _suite_cells(
    root: Path, entry: Entry, selectors: Sequence[Selector], request: Request, devices: Sequence[str]
) -> Iterator[tuple[Cell, str | None]]:
    code = code_hash(root, entry.folder)
    tuned = load_tuned(entry.folder / "tuned.yaml")
    for name, declared in entry.card.experiments.items():
        taking = [selector for selector in selectors if selector.takes_experiment(name)]
        if not taking:
            continue
        experiment = declared.in_profile(request.profile)
        reason = None if experiment else f"profile {request.profile} does not run this experiment"
        experiment = experiment or declared
        missing = tuned.missing(declared, name)
        if reason is None and missing:
            search = missing[0][0]
            arms = ", ".join(arm for of, arm in missing if of == search)
            reason = f"not tuned: run 'litmus tune {entry.slug}:{search}' (arms {arms})"
        for device in _devices_of(experiment, devices, request):
            for point, seed in _points(experiment, request):
                if not any(_takes_point(selector, point) for selector in taking):
                    continue
                yield Cell(
                    suite=entry.name, experiment=name, kind=experiment.kind, point=point, seed=seed, device=device,
                    profile=request.profile, arms=tuple(experiment.arms), card_version=entry.card.version, code=code,
                    tuned={arm: tuned.given(declared, name, arm) for arm in experiment.arms}
                    if declared.is_tuned else {},
                    measure=experiment.measure, timeout_s=experiment.timeout_s, memory_gib=experiment.memory_gib,
                ), reason


def _devices_of(experiment: Experiment, devices: Sequence[str], request: Request) -> list[str]:
    """Those of ``devices`` that the experiment is for; by default also the kind that it needs and nobody has here."""
    found = [device for device in devices if device.split(":")[0] in experiment.devices]
    return found or (list(experiment.devices) if request.devices == ("auto",) else [])


def _points(experiment: Experiment, request: Request) -> Iterator[tuple[dict[str, Any], int]]:
    seeds = experiment.seeds if experiment.kind == "speed" else request.seeds or experiment.seeds
    # Seeds vary slowest, so that a run cut short has every point once before any point twice.
    for seed in range(seeds):
        for point in experiment.grid():
            yield point, seed


def _takes_point(selector: Selector, point: dict[str, Any]) -> bool:
    return all(point.get(axis) == value for axis, value in selector.point)


def _unfit(cell: Cell, machine: Machine) -> str | None:
    device = machine.device(cell.device)
    if device is None:
        return _absent(cell.device, machine)
    place, memory_bytes = (
        ("the machine", machine.memory_bytes) if device.kind == "cpu" else (device.id, device.memory_bytes)
    )
    if cell.memory_gib * 2**30 > 0.9 * memory_bytes:
        return f"needs {cell.memory_gib:g} GiB, {place} has {memory_bytes / 2**30:.0f} GiB"
    threads = cell.point.get("threads")
    if isinstance(threads, int) and threads > machine.cores:
        return f"needs {threads} threads, the machine has {machine.cores} cores"
    return None


def _absent(device: str, machine: Machine) -> str:
    """Why nothing runs on ``device`` where the plan is for."""
    visible = [item.id for item in machine.devices if item.kind == "cuda"]
    if visible:
        return f"{MISSING_DEVICE}: no device {device} on this machine: it has {', '.join(visible)}"
    return (f"{MISSING_DEVICE}: no CUDA device is visible on this machine, so nothing runs on {device} "
            "(see: litmus doctor)")
