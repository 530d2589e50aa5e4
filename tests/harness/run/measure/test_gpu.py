"""A real CUDA device: skipped where there is none."""

import pytest
import torch

from harness.declare.card import Measure
from harness.plan.machine import this_machine
from harness.run.measure.cuda import COLD, WARM, CudaTimer
from harness.run.measure.gpu import TorchGpu, claim, unusable
from harness.run.measure.place import place_of
from harness.run.measure.rounds import Bench

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible to torch")
DEVICE = "cuda:0"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is visible to torch")
def test_without_a_device_the_reason_names_torch_and_the_next_step():
    reason = unusable("cuda:0")
    assert torch.__version__ in reason and "litmus doctor" in reason


@needs_cuda
def test_a_device_that_is_not_there_is_named():
    assert unusable(DEVICE) is None
    assert f"cuda:{torch.cuda.device_count()}" in unusable(f"cuda:{torch.cuda.device_count()}")


@needs_cuda
def test_the_plans_devices_are_torchs():
    mine = [device for device in this_machine().devices if device.kind == "cuda"]
    assert len(mine) == torch.cuda.device_count()
    for index, device in enumerate(mine):
        properties = torch.cuda.get_device_properties(index)
        assert device.name == properties.name
        assert device.compute_capability == f"{properties.major}.{properties.minor}"
        assert device.l2_bytes == properties.L2_cache_size
        assert str(properties.uuid) in device.uuid


@needs_cuda
def test_events_measure_the_device_not_the_launch():
    gpu = TorchGpu(DEVICE)
    start = gpu.event()
    gpu.spin(2_000_000)
    end = gpu.event()
    assert not gpu.passed(end)
    gpu.synchronise()
    assert gpu.passed(end) and gpu.passed(start)
    assert 2e5 < gpu.between_ns(start, end) < 2e7  # an order of magnitude: timing must not decide this test
    assert gpu.flush_bytes >= 2 * gpu.l2_bytes > 0
    gpu.flush()
    gpu.synchronise()


@needs_cuda
def test_clocks_are_told():
    clocks = TorchGpu(DEVICE).clocks()
    assert clocks.sm_mhz is None or clocks.sm_mhz > 0
    assert all(isinstance(words, str) for words in clocks.held_back)


@needs_cuda
def test_cold_and_warm_samples_of_a_copy():
    x = torch.ones(2**18, device=DEVICE)
    y = torch.empty_like(x)
    timer = CudaTimer(TorchGpu(DEVICE))
    bench = Bench("copy", (lambda: y.copy_(x),))
    for state in (COLD, WARM):
        assert timer.sample(bench, 20, 0, state) > 0
    assert timer.fault("copy") is None


@needs_cuda
def test_a_side_stream_is_seen():
    side, x = torch.cuda.Stream(), torch.ones(2**26, device=DEVICE)

    def cheat():
        with torch.cuda.stream(side):
            x.add_(1)

    place = place_of(DEVICE)
    measure = Measure(processes=1, rounds=2, min_sample_ms=1)
    timing = place.time([Bench("cheat", (cheat,)), Bench("honest", (lambda: x.add_(1),))], measure, 0, 0)
    assert set(timing.faults) == {"cheat"}


@needs_cuda
def test_the_peak_of_one_call_and_its_graph():
    place, x = place_of(DEVICE), torch.ones(2**20, device=DEVICE)
    seen = place.observe(lambda: torch.add(x, 1).sum())
    assert 2**22 <= seen.peak_bytes < 2**22 + 2**21
    assert seen.how["graph"] is False
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        x.mul_(1)
    assert place.observe(graph.replay).how["graph"] is True


@needs_cuda
def test_the_memory_limit_holds_on_the_device():
    claim(DEVICE, 2**28)
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            torch.empty(2**29, dtype=torch.uint8, device=DEVICE)
    finally:
        claim(DEVICE, torch.cuda.get_device_properties(0).total_memory)


@needs_cuda
def test_ceilings_of_a_device():
    from harness.run.measure.cuda_ceilings import measure_cuda_ceilings

    found = measure_cuda_ceilings(DEVICE)
    assert found["array_bytes"] >= 2**28
    assert all(found[name] > 1e9 for name in ("copy_bytes_per_s", "read_bytes_per_s", "triad_bytes_per_s"))
    assert found["flops_per_s"] > 1e10
