"""The worker: one process that runs one job and nothing else. Forked from the zygote, or a new interpreter for CUDA."""

from __future__ import annotations

import faulthandler
import importlib
import importlib.util
import inspect
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.declare.seeds import seed_for
from harness.declare.suite import EstimateFunction, SkipArm, Suite
from harness.errors import LitmusError
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run import stage
from harness.run.artefact import Cache
from harness.run.faults import describe
from harness.run.measure.canary import builtin_folder
from harness.run.protocol import CANNOT_LOAD, Job, blank_record, encode

_SPEED_PARAMETERS = ("point", "rng", "device")
_TRIAL_PARAMETERS = ("arm", "point", "seed", "device")


class Outbox:
    """The worker's end of the pipe to the supervisor."""

    def __init__(self, fd: int) -> None:
        self._fd, self._pid = fd, os.getpid()

    def record(self, record: Record) -> None:
        """Hand in one arm's record; it is final."""
        self.send("record", record=asdict(record))

    def send(self, kind: str, **values: Any) -> None:
        """Write one message. In a child that a suite forked and let run on, this ends the child instead."""
        if os.getpid() != self._pid:
            os._exit(1)
        sys.stdout.flush()
        sys.stderr.flush()
        data = memoryview(encode(kind, **values))
        while data:
            data = data[os.write(self._fd, data) :]


def work(job: Job, message_fd: int) -> None:
    """Run ``job``, send its messages, say ``done``."""
    faulthandler.enable(all_threads=False)
    outbox = Outbox(message_fd)
    _TASKS[job.task](job, outbox)
    outbox.send("done")


def _trial(job: Job, outbox: Outbox) -> None:
    from harness.run import trial

    cell = _cell(job)
    one_thread()
    suite = _suite_or_records(job, cell, outbox) if _claimed(job, cell, outbox) else None
    if suite is None:
        return
    for arm in job.arms:
        stage.enter(arm)
        set_seeds(cell)
        record = trial.run_trial(cell, suite, arm)
        outbox.record(record)
        _end_if_lost(record)
    stage.enter(None)


def _speed(job: Job, outbox: Outbox) -> None:
    from harness.run import speed

    cell = _cell(job)
    suite = _suite_or_records(job, cell, outbox) if _claimed(job, cell, outbox) else None
    if suite is None:
        return
    set_seeds(cell)
    # Other arms make another id, but not another question: whoever joins the processes gives the cell its own id back.
    speed.run_speed(replace(cell, arms=job.arms), suite, job.process, outbox.record, stage.enter)
    stage.enter(None)


def _turns(job: Job, outbox: Outbox) -> None:
    from harness.run.ab import turns

    cell = _cell(job)
    with turns.connect(job.argument["socket"], job.argument["role"]) as talk:
        suite = _suite_or_records(job, cell, outbox) if _claimed(job, cell, outbox) else None
        if suite is None:
            return
        set_seeds(cell)
        turns.take_turns(replace(cell, arms=job.arms), suite, job.process, outbox.record, talk)
        stage.enter(None)


def _ceilings(job: Job, outbox: Outbox) -> None:
    if "device" in job.argument:
        from harness.run.measure.cuda_ceilings import measure_cuda_ceilings
        from harness.run.measure.gpu import claim, unusable

        reason = unusable(job.argument["device"])
        if reason is None:
            claim(job.argument["device"], None)
            outbox.send("result", value=measure_cuda_ceilings(job.argument["device"]))
        else:
            outbox.send("note", text=reason)
        return
    from harness.run.measure.ceilings import measure_ceilings

    outbox.send("result", value=measure_ceilings(tuple(job.argument["threads"])))


def _judge(job: Job, outbox: Outbox) -> None:
    from harness.judge.verdict import judge_run

    root = Path(job.root)

    def custom_of(name: str) -> Callable[[str], EstimateFunction]:
        return load_suite(root, name).estimates.__getitem__

    verdicts = judge_run(Path(job.argument["folder"]), root, custom_of)
    outbox.send("result", value=[verdict.to_dict() for verdict in verdicts])


def _cell(job: Job) -> Cell:
    assert job.cell is not None  # cell_job sets it
    return Cell.from_json(job.cell)


def _end_if_lost(record: Record) -> None:
    """An arm may break CUDA for the whole process: then the next arms get a new one. Raises SystemExit."""
    if record.device != "cpu" and record.status in ("crashed", "oom"):
        from harness.run.measure.gpu import alive

        if not alive(record.device):
            raise SystemExit(f"CUDA is lost to this process since {record.arm} failed")


def _claimed(job: Job, cell: Cell, outbox: Outbox) -> bool:
    """Take the cell's device, with its share of memory; where torch cannot use it, every arm is skipped for that."""
    if cell.device == "cpu":
        return True
    from harness.run.measure.gpu import claim, unusable

    reason = unusable(cell.device)
    if reason is None:
        claim(cell.device, None if job.argument.get("unlimited") else int(cell.memory_gib * 2**30))
        return True
    for arm in job.arms:
        outbox.record(blank_record(cell, arm, "skipped", reason, started_at=time.time()))
    return False


def _suite_or_records(job: Job, cell: Cell, outbox: Outbox) -> Suite | None:
    """The cell's suite; where its file cannot be loaded, every arm gets a record that says so."""
    try:
        suite = load_suite(Path(job.root), cell.suite)
        _function_of(suite, cell)
    except BaseException as error:  # noqa: BLE001 - a suite's file may raise anything at all
        traceback.print_exc()
        for arm in job.arms:
            outbox.record(blank_record(cell, arm, "crashed", f"{CANNOT_LOAD}: {describe(error)}"))
        return None
    suite.artefacts = Cache(Path(job.root), cell.code, lambda text: outbox.send("note", text=text))
    return suite


def _function_of(suite: Suite, cell: Cell) -> Callable[..., Any]:
    table: dict[str, Callable[..., Any]] = {**(suite.trials if cell.kind == "trial" else suite.speeds)}
    if cell.experiment not in table:
        raise LitmusError(f"suite.py registers no {cell.kind} function for this experiment", where=suite.file,
                          key=cell.experiment, next_step=f"add a function under @suite.{cell.kind}")
    return table[cell.experiment]


def load_suite(root: Path, name: str) -> Suite:
    """Import ``suites/<family>/<slug>/suite.py`` below ``root`` and return its ``suite``.

    The harness's own suites, such as the canary, are found beside its code. Raises LitmusError where there is none.
    """
    builtin = builtin_folder(name)
    if builtin is not None:
        return _suite_in(f"harness.run.builtin.{name.replace('/', '.')}.suite", builtin / "suite.py")
    if str(root) not in sys.path[:1]:
        sys.path.insert(0, str(root))
    parts = ["suites", *name.split("/")]
    for depth in range(1, len(parts) + 1):
        _package(".".join(parts[:depth]), root.joinpath(*parts[:depth]))
    return _suite_in(".".join([*parts, "suite"]), root.joinpath(*parts, "suite.py"))


def _suite_in(module_name: str, file: Path) -> Suite:
    spec = importlib.util.spec_from_file_location(module_name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise LitmusError("the suite has no suite.py", where=file, next_step="create it: see docs/adding-a-suite.md")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    suite = getattr(module, "suite", None)
    if not isinstance(suite, Suite):
        raise LitmusError("suite.py defines no suite", where=file, key="suite", expected="suite = Suite(__file__)")
    return suite


def _package(name: str, folder: Path) -> None:
    """Make ``name`` importable from ``folder``, also where another checkout's package has the same name."""
    known = sys.modules.get(name)
    if known is not None and str(folder) in list(getattr(known, "__path__", [])):
        return
    if (folder / "__init__.py").exists():
        places = [str(folder)]
        spec = importlib.util.spec_from_file_location(name, folder / "__init__.py", submodule_search_locations=places)
        assert spec is not None and spec.loader is not None  # a path to an existing file always has one
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    else:
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module


def one_thread() -> None:
    """One thread for BLAS, torch and numba, and deterministic torch kernels: trials share the cores side by side."""
    import numba
    import threadpoolctl
    import torch

    numba.set_num_threads(1)  # first: when numba loads its threading layer, it resets OpenMP's count for everyone
    threadpoolctl.threadpool_limits(1)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def set_seeds(cell: Cell) -> None:
    """Seed the global generators from the cell's seed, the same for every arm."""
    import numpy as np
    import torch

    seed = seed_for("global", cell.seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _inspect(job: Job, outbox: Outbox) -> None:
    """What the suite registers, and what is wrong with its functions' parameters."""
    suite = load_suite(Path(job.root), job.argument["suite"])
    wrong = {}
    for table, known in ((suite.speeds, _SPEED_PARAMETERS), (suite.trials, _TRIAL_PARAMETERS)):
        for name, function in table.items():
            tuned = suite.card.experiments[name].is_tuned
            try:
                inspect.signature(function).bind(**dict.fromkeys((*known, "tuned") if tuned else known))
            except TypeError as error:
                wrong[name] = str(error)
    outbox.send("result", value={
        "speed": list(suite.speeds), "trial": list(suite.trials), "estimates": list(suite.estimates),
        "oracles": list(suite.oracles), "wrong_parameters": wrong,
    })


def _oracle(job: Job, outbox: Outbox) -> None:
    """Run the suite's oracles; one result each, the fault or None."""
    one_thread()
    suite = load_suite(Path(job.root), job.argument["suite"])
    for name, oracle in suite.oracles.items():
        outbox.send("asking", name=name)
        fault = None
        try:
            oracle()
        except SkipArm as reason:
            fault = f"skipped: {reason}"
        except Exception as error:  # noqa: BLE001 - an oracle says no by raising, AssertionError or anything else
            traceback.print_exc()
            fault = describe(error)
        outbox.send("result", name=name, value=fault)


_TASKS: dict[str, Callable[[Job, Outbox], None]] = {
    "trial": _trial,
    "speed": _speed,
    "turns": _turns,
    "ceilings": _ceilings,
    "judge": _judge,
    "inspect": _inspect,
    "oracle": _oracle,
}


def main(job_fd: int, message_fd: int, page_fd: int) -> None:
    """Entry point of a worker in a new interpreter."""
    with os.fdopen(job_fd) as file:
        job = Job.from_json(file.read())
    stage.attach(stage.Page(page_fd), job.arms)
    work(job, message_fd)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
