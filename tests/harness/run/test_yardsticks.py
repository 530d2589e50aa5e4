"""What is measured around a timing lane, on which devices: with an engine that only notes what it is asked."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harness.plan.cell import Cell
from harness.records.record import Record, Samples
from harness.run.engine.local import environment
from harness.run.measure.canary import NAME, canary_cells
from harness.run.protocol import CUDA_HOST_BYTES, Ending, blank_record, cell_job
from harness.run.yardsticks import Yardsticks, devices_of


@dataclass
class Noting:
    """Answers ceilings with ``answers`` by device; records every canary arm as ``ok`` without samples."""

    answers: dict = field(default_factory=dict)
    jobs: list = field(default_factory=list)
    slots: int = 1

    def execute(self, job, on_message):
        self.jobs.append(job)
        if job.task == "ceilings":
            device = job.argument.get("device", "cpu")
            found = self.answers.get(device)
            if isinstance(found, dict):
                on_message({"kind": "result", "value": found})
            elif isinstance(found, str):
                on_message({"kind": "note", "text": found})
            return Ending("done") if found is not None else Ending("crashed", "killed by SIGSEGV")
        raise AssertionError(job.task)


def cell(device="cpu", **point) -> Cell:
    return replace(canary_cells(0)[0], device=device, point=point)


def ceilings(answers, *cells):
    notes: list[str] = []
    engine = Noting(answers)
    return Yardsticks(engine, Path("/"), lambda record: None, notes.append).ceilings(cells), engine.jobs, notes


def test_a_plan_for_the_cpu_measures_the_cpu_by_its_thread_counts():
    found, (job,), notes = ceilings({"cpu": {"threads": {"1": {}, "all": {}}, "array_bytes": 1}},
                                    cell(threads="all"), cell(threads=1), cell())
    assert found == {"threads": {"1": {}, "all": {}}, "array_bytes": 1}
    assert job.argument == {"threads": [1, "all"]} and not job.fresh
    assert notes == []


def test_each_gpu_of_the_plan_is_measured_in_an_interpreter_of_its_own():
    answers = {"cpu": {"threads": {}}, "cuda:0": {"flops_per_s": 1.0}, "cuda:1": {"flops_per_s": 2.0}}
    found, jobs, _ = ceilings(answers, cell("cuda:1"), cell(), cell("cuda:0", threads=7))
    assert found == {"threads": {}, "devices": {"cuda:0": {"flops_per_s": 1.0}, "cuda:1": {"flops_per_s": 2.0}}}
    assert [(job.argument, job.fresh) for job in jobs] == [
        ({"threads": [1]}, False), ({"device": "cuda:0"}, True), ({"device": "cuda:1"}, True)]


def test_a_gpu_that_cannot_be_measured_is_left_out_with_a_note():
    found, _, notes = ceilings({"cuda:0": "torch sees no CUDA device"}, cell("cuda:0"), cell("cuda:1"))
    assert found == {}
    assert notes == ["the cuda:0's ceilings could not be measured: torch sees no CUDA device",
                     "the cuda:1's ceilings could not be measured: killed by SIGSEGV"]


def test_devices_are_named_once_the_cpu_first():
    assert devices_of([cell("cuda:1"), cell(), cell("cuda:0"), cell()]) == ["cpu", "cuda:0", "cuda:1"]


def test_the_canary_goes_to_every_device_and_keeps_its_cells_on_the_cpu():
    cpu, both = canary_cells(3), canary_cells(3, ("cpu", "cuda:0"))
    assert [item.id for item in both[: len(cpu)]] == [item.id for item in cpu]
    assert [item.device for item in both] == ["cpu"] * len(cpu) + ["cuda:0"] * len(cpu)
    assert {item.suite for item in both} == {NAME}


def canary(device, status="ok", reason=None) -> list[Record]:
    samples = Samples([0] * 9, list(range(9)), [0] * 9, [1] * 9, [1000] * 9)
    where = replace(canary_cells(0)[0], device=device)
    return [blank_record(where, arm, status, reason, samples=samples if status == "ok" else Samples())
            for arm in ("a", "b")]


def test_a_device_without_a_finished_canary_alarms_unless_nothing_could_use_it():
    assert Yardsticks.summary(canary("cpu"))["alarm"] is False
    summary = Yardsticks.summary([*canary("cpu"), *canary("cuda:0")])
    assert {item["device"] for item in summary["cells"]} == {"cpu", "cuda:0"} and not summary["alarm"]
    hot = Yardsticks.summary([*canary("cpu"), *canary("cuda:0", "throttled", "too hot")])
    assert hot == {"alarm": True, "reason": "no canary cell finished on cuda:0: too hot"}
    assert Yardsticks.summary([*canary("cpu"), *canary("cuda:0", "skipped", "no torch")])["alarm"] is False
    assert Yardsticks.summary([])["alarm"] is True


@pytest.mark.parametrize("order", [None, "FASTEST_FIRST"])
def test_workers_number_devices_as_the_plan_does(monkeypatch, order):
    if order:
        monkeypatch.setenv("CUDA_DEVICE_ORDER", order)
    assert environment(Path("/"))["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_a_cuda_job_has_an_interpreter_of_its_own_and_room_for_cudas_libraries():
    cpu, cuda = (cell_job(cell(device), "/", ("a",)) for device in ("cpu", "cuda:0"))
    assert (cpu.fresh, cuda.fresh) == (False, True)
    assert cuda.limits.memory_bytes - cpu.limits.memory_bytes == CUDA_HOST_BYTES
