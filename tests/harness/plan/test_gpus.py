"""Which GPUs a worker sees: by a made-up driver, so that every machine can check the rules of CUDA_VISIBLE_DEVICES."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from harness.plan.gpus import Gpu, chosen, gpus_by, visible_gpus
from harness.plan.machine import Device, this_machine
from harness.plan.plan import Request, make_plan

A, B, C = (Gpu(f"GPU-{name}", "Test GPU", 80 * 2**30, "9.0", "580.1") for name in ("aa11", "ab22", "cc33"))
SLICES = [Gpu(f"MIG-{number}", "Test GPU MIG 1g.10gb", 10 * 2**30, "9.0", "580.1", mig=True) for number in (1, 2)]


class NVMLError(Exception):
    """As in pynvml."""


@dataclass
class Driver:
    """A driver of some GPUs; an entry that is a list is a GPU in MIG mode with these slices, None one that is lost."""

    gpus: list
    running: bool = True
    sessions: int = 0
    NVMLError = NVMLError

    def nvmlInit(self):
        if not self.running:
            raise NVMLError("library not found")
        self.sessions += 1

    def nvmlShutdown(self):
        self.sessions -= 1

    def nvmlSystemGetDriverVersion(self):
        return b"580.1"

    def nvmlDeviceGetCount(self):
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index):
        if self.gpus[index] is None:
            raise NVMLError("GPU is lost")
        return self.gpus[index]

    def nvmlDeviceGetCudaComputeCapability(self, handle):
        return (9, 0)

    def nvmlDeviceGetMigMode(self, handle):
        if not isinstance(handle, list):
            raise NVMLError("not supported")
        return (1, 1)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):
        if index >= len(handle):
            raise NVMLError("not found")
        return handle[index]

    def nvmlDeviceGetUUID(self, handle):
        return A.uuid if isinstance(handle, list) else handle.uuid.encode()

    def nvmlDeviceGetName(self, handle):
        return A.name if isinstance(handle, list) else handle.name

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(total=A.memory_bytes if isinstance(handle, list) else handle.memory_bytes)


def seen(driver, visible=None, sizes=None):
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return list(gpus_by(driver, environ, lambda: sizes or {}))


def test_every_gpu_is_described_in_the_drivers_order():
    driver = Driver([A, B])
    assert seen(driver, sizes={A.uuid: 50 * 2**20}) == [replace(A, l2_bytes=50 * 2**20), B]
    assert driver.sessions == 0


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("0", [A]),
        ("2,0", [C, A]),
        (" 1 , 2 ", [B, C]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("1,7,0", [B]),
        ("1,-1,0", [B]),
        ("0,1,0", []),
        ("GPU-cc33", [C]),
        ("GPU-cc", [C]),
        ("GPU-a", []),  # two UUIDs begin like this
        ("GPU-ab22,GPU-aa11", [B, A]),
        ("GPU-aa11,0", []),
        ("GPU-zz", []),
    ],
)
def test_visible_devices_are_chosen_as_cuda_does(visible, expected):
    assert seen(Driver([A, B, C]), visible) == expected


def test_a_process_sees_one_slice_and_beside_it_no_whole_gpu():
    driver = Driver([B, SLICES, C])
    assert seen(driver) == SLICES[:1]
    assert seen(driver, "MIG-2") == SLICES[1:]
    assert seen(driver, "1") == SLICES[:1]
    assert seen(driver, "0,2") == [B, C]
    assert seen(Driver([[]])) == []


def test_a_lost_gpu_and_an_absent_driver_are_no_error():
    assert seen(Driver([None, B])) == [B]
    assert seen(Driver([A], running=False)) == []


def test_nothing_is_chosen_of_nothing():
    assert chosen([], None) == chosen([], "0") == []


def test_the_environment_can_hide_every_gpu_of_this_machine():
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == ()


def test_the_serial_number_stays_out_of_the_run_and_the_key(machine):
    gpu = Device("cuda:0", A.name, A.memory_bytes, "9.0", 2**25, "580.1", A.uuid)
    with_gpu = replace(machine, devices=(*machine.devices, gpu))
    (_, stored) = with_gpu.to_dict()["devices"]
    assert stored == {"id": "cuda:0", "name": "Test GPU", "memory_bytes": A.memory_bytes, "compute_capability": "9.0",
                      "l2_bytes": 2**25, "driver": "580.1"}
    other = replace(machine, devices=(*machine.devices, replace(gpu, uuid="GPU-other", driver="581")))
    assert with_gpu.key == other.key != machine.key
    assert with_gpu.device("cuda:0") == gpu and with_gpu.device("cuda:1") is None


def test_this_machines_devices_are_those_of_its_driver():
    cuda = [device for device in this_machine().devices if device.kind == "cuda"]
    assert [device.id for device in cuda] == [f"cuda:{index}" for index in range(len(cuda))]
    assert all(device.memory_bytes > 0 and device.uuid and device.driver for device in cuda)


def test_an_absent_device_is_skipped_with_what_is_there(root, machine):
    def reasons(machine, *devices):
        plan = make_plan(root, Request(("one:pace[threads=1]",), devices=devices), machine)
        return [skip.reason for skip in plan.skipped]

    assert reasons(machine, "cuda:1") == [
        "missing_device: no CUDA device is visible on this machine, so nothing runs on cuda:1 (see: litmus doctor)"]
    gpu = replace(machine, devices=(*machine.devices, Device("cuda:0", "Test GPU", 4 * 2**30)))
    assert reasons(gpu, "cuda:1") == ["missing_device: no device cuda:1 on this machine: it has cuda:0"]
    assert reasons(gpu, "cuda") == ["needs 8 GiB, cuda:0 has 4 GiB"]


def test_an_experiment_for_gpus_alone_is_skipped_not_forgotten(root, machine):
    card = root / "suites/alpha/one/card.yaml"
    card.write_text(card.read_text().replace("devices: [cpu, cuda]", "devices: [cuda]"))
    plan = make_plan(root, Request(("one:pace[threads=1]",)), machine)
    assert not plan.cells
    assert [(skip.cell.device, "no CUDA device is visible" in skip.reason) for skip in plan.skipped] == [("cuda", True)]
