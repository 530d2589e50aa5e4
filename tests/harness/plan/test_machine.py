from dataclasses import replace

from harness.plan.machine import Device, software, this_machine


def test_the_key_is_readable_stable_and_the_same_for_the_same_machine(machine):
    assert machine.key == replace(machine).key
    assert machine.key.startswith("test-cpu-2c-24g-") or machine.key.startswith("test-2c-24g-")
    gpu = replace(machine, devices=(*machine.devices, Device("cuda:0", "Test GPU", 1)))
    assert "test-gpu" in gpu.key


def test_what_speed_depends_on_changes_the_key(machine):
    others = [
        replace(machine, cores=4),
        replace(machine, cpu="Other CPU"),
        replace(machine, caches={**machine.caches, "llc": 1}),
        replace(machine, simd=()),
        replace(machine, memory_bytes=2**30),
    ]
    assert len({machine.key, *(other.key for other in others)}) == 6


def test_a_little_less_free_memory_is_the_same_machine(machine):
    assert replace(machine, memory_bytes=machine.memory_bytes - 2**20).key == machine.key


def test_the_constants_are_those_that_cards_may_mention(machine):
    from harness.declare.fields import MACHINE_NAMES

    assert set(machine.constants()) == set(MACHINE_NAMES)


def test_this_machine_is_described_without_a_host_name():
    machine = this_machine()
    assert machine.cores >= 1 and machine.memory_bytes > 2**28
    assert machine.devices[0].id == "cpu" and machine.devices[0].kind == "cpu"
    assert machine.caches["l1"] <= machine.caches["llc"]
    assert machine.to_dict()["key"] == machine.key
    import platform

    assert platform.node().lower() not in machine.key
    assert software()["python"] == platform.python_version()
