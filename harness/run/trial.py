"""One arm of a trial cell: call the suite's function, check what it returns, write the record."""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from harness.declare.card import Experiment, Metric
from harness.declare.suite import NotTestable, SkipArm, Suite
from harness.errors import LitmusError, did_you_mean
from harness.plan.cell import Cell
from harness.records.record import Record
from harness.run.faults import describe, is_out_of_memory
from harness.run.measure.place import place_of
from harness.run.protocol import blank_record


def run_trial(cell: Cell, suite: Suite, arm: str) -> Record:
    """The record of ``arm``, whatever it does short of ending the process.

    ``elapsed_ns`` excludes the time in ``suite.prepare``, which is ``prepare_ns``; ``peak_bytes`` is what the arm
    added to the memory it began with, resident on a CPU, allocated on a CUDA device. Non-finite metrics are kept.
    """
    experiment = suite.card.experiments[cell.experiment]
    started_at, clock = time.time(), suite.artefacts
    prepared_before = getattr(clock, "prepare_ns", 0)
    suite.data.clear()
    place = place_of(cell.device)
    present = place.reset_peak()
    begin = time.perf_counter_ns()
    outcome = _outcome(cell, suite, experiment, arm)
    prepare_ns = getattr(clock, "prepare_ns", 0) - prepared_before
    return replace(
        outcome,
        started_at=started_at,
        data=data_of(suite),
        elapsed_ns=time.perf_counter_ns() - begin - prepare_ns,
        prepare_ns=prepare_ns,
        peak_bytes=max(0, place.peak_bytes() - present),
    )


def data_of(suite: Suite) -> str | None:
    """The digests that the suite named, as ``name=digest`` in order of name; None where it named none."""
    return " ".join(f"{name}={digest}" for name, digest in sorted(suite.data.items())) or None


def _outcome(cell: Cell, suite: Suite, experiment: Experiment, arm: str) -> Record:
    extra = {"tuned": dict(cell.tuned.get(arm, {}))} if experiment.is_tuned else {}
    try:
        returned = suite.trials[cell.experiment](
            arm=arm, point=dict(cell.point), seed=cell.seed, device=cell.device, **extra
        )
        return replace(blank_record(cell, arm, "ok", None), metrics=checked_metrics(experiment, returned))
    except (SkipArm, NotTestable) as reason:
        return blank_record(cell, arm, "skipped", str(reason) or type(reason).__name__)
    except BaseException as error:  # noqa: BLE001 - whatever a suite raises becomes its record
        traceback.print_exc()
        return blank_record(cell, arm, "oom" if is_out_of_memory(error) else "crashed", describe(error))


def checked_metrics(experiment: Experiment, returned: Any) -> dict[str, float | list[float]]:
    """``returned`` as floats and lists of floats. Raises LitmusError unless it has exactly the card's metrics."""
    if not isinstance(returned, Mapping):
        raise LitmusError("a trial must return a mapping of metrics", value=type(returned).__name__,
                          expected="{" + ", ".join(experiment.metrics) + "}")
    for name in returned:
        if name not in experiment.metrics:
            raise LitmusError(f"the trial returned a metric '{name}' that the card does not have", key=str(name),
                              expected=did_you_mean(str(name), experiment.metrics))
    missing = [name for name in experiment.metrics if name not in returned]
    if missing:
        raise LitmusError(f"the trial did not return the metric '{missing[0]}'", key=missing[0])
    return {name: _metric(name, metric, returned[name]) for name, metric in experiment.metrics.items()}


def _metric(name: str, metric: Metric, value: Any) -> float | list[float]:
    if metric.series:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            raise LitmusError(f"metric '{name}' is a series", key=name, value=value, expected="a list of numbers")
        return [_number(name, item) for item in value]
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    if isinstance(value, str | bytes) or value is None:
        raise LitmusError(f"metric '{name}' is not a number", key=name, value=value, expected="a number")
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise LitmusError(f"metric '{name}' is not a number", key=name, value=type(value).__name__,
                          expected="a number") from error
