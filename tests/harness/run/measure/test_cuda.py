"""The logic of timing on a device whose clock the test turns: states, pace, throttling, strays, weighing."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.declare.card import Measure
from harness.declare.suite import Arm, Problem
from harness.plan.cell import Cell
from harness.run.measure.cuda import COLD, MOST_CALLS, WARM, Clocks, CudaTimer
from harness.run.measure.place import Cuda, Host, place_of
from harness.run.measure.rounds import Bench, Spoiled, calibrate, interleave
from harness.run.speed import merge, run_speed

HOT = Clocks(sm_mhz=900, temperature_c=95, held_back=("hardware thermal slowdown",))
QUICK = Measure(processes=1, rounds=3, min_sample_ms=0.1)


def timer_of(gpu):
    return CudaTimer(gpu, gpu.now, gpu.pause)


def bench_of(gpu, name="a", cold_ns=20_000, warm_ns=5_000, width=2, **more):
    return Bench(name, (gpu.kernel(name, cold_ns, warm_ns, **more),) * width)


def per_call(samples):
    return {elapsed / calls for elapsed, calls in zip(samples.elapsed_ns, samples.calls, strict=True)}


def test_cold_and_warm_times_are_the_devices_own_without_flush_launch_or_lead(gpu):
    found = interleave([bench_of(gpu)], QUICK, 0, 0, timer_of(gpu))
    assert per_call(found[COLD]["a"]) == {20_000}
    assert per_call(found[WARM]["a"]) == {5_000}


def test_every_cold_call_is_alone_between_its_events_right_after_a_flush(gpu):
    timer = timer_of(gpu)
    timer.sample(bench_of(gpu), 1, 0, COLD)
    gpu.log.clear()
    timer.sample(bench_of(gpu), 5, 0, COLD)
    assert gpu.log == ["spin", "flush", "event", "a", "event"] * 5


def test_warm_calls_share_two_events_after_a_call_of_each_input_set(gpu):
    timer = timer_of(gpu)
    timer.sample(bench_of(gpu, width=3), 70, 0, WARM)  # finds its pace
    gpu.flush()
    gpu.log.clear()
    timer.sample(bench_of(gpu, width=3), 70, 0, WARM)
    spun = ["spin", "event", *["a"] * 64, "event", "spin", "event", *["a"] * 6, "event"]
    assert gpu.log == ["a"] * 3 + spun
    assert not gpu.cold


@settings(max_examples=20, deadline=None)
@given(arms=st.integers(1, 4), rounds=st.integers(2, 4), seed=st.integers(0, 2**62))
def test_rounds_run_forward_and_backward_in_both_states(arms, rounds, seed):
    from harness.run.measure.rounds import Timer

    class Noting:
        def __init__(self):
            self.states, self.turns = {COLD: 4, WARM: 4}, []

        def sample(self, bench, calls, start, state):
            self.turns.append((bench.name, state))
            return 10**9

        def opened(self):
            self.turns.clear()

        def closed(self):
            assert self.turns == self.turns[::-1]
            assert len(self.turns) == 4 * arms

    timer: Timer = Noting()
    benches = [Bench(str(index), (lambda: None,)) for index in range(arms)]
    found = interleave(benches, Measure(processes=1, rounds=rounds), 2, seed, timer)
    assert set(found) == {COLD, WARM}
    for state in found:
        for samples in found[state].values():
            assert samples.process == [2] * (2 * rounds)
            assert samples.round == [index for index in range(rounds) for _ in range(2)]
            pairs = zip(samples.position[::2], samples.position[1::2], strict=True)
            assert all(first + second == 2 * arms - 1 for first, second in pairs)
    assert [found[COLD][name].position for name in found[COLD]] == [found[WARM][name].position for name in found[WARM]]


@pytest.mark.parametrize("launch_ns", [1_000, 40_000, 200_000])
def test_a_slow_launch_is_given_a_head_start_and_not_measured(gpu, launch_ns):
    timer = timer_of(gpu)
    found = interleave([bench_of(gpu, launch_ns=launch_ns)], QUICK, 0, 0, timer)
    assert per_call(found[COLD]["a"]) == {20_000}
    assert per_call(found[WARM]["a"]) == {5_000}
    assert [late for late, _ in timer.how("a")["late"].values()] == [0, 0]


def test_a_disturbed_sample_is_taken_again(gpu):
    timer, bench = timer_of(gpu), bench_of(gpu)
    timer.sample(bench, 64, 0, WARM)
    kernel, hiccups = bench.bound[0], [10**6]

    def disturbed():
        if hiccups:
            gpu.host_ns += hiccups.pop()
        kernel()

    assert timer.sample(Bench("a", (kernel, disturbed)), 64, 1, WARM) == 64 * 5_000
    assert timer.how("a")["late"][WARM][0] == 0


def test_an_arm_that_waits_for_the_device_is_timed_with_its_wait_and_noted(gpu):
    kernel = gpu.kernel("a", 20_000, 5_000)

    def waits():
        kernel()
        gpu.synchronise()

    timer = timer_of(gpu)
    found = interleave([Bench("a", (waits,))], QUICK, 0, 0, timer)
    late, pairs = timer.how("a")["late"][WARM]
    assert late == pairs > 0
    assert min(per_call(found[WARM]["a"])) >= 5_000


def test_calibration_aims_at_the_sample_length_and_knows_its_limit(gpu):
    timer = timer_of(gpu)
    assert calibrate(bench_of(gpu, warm_ns=10_000), 1e6, timer, WARM) >= 100
    assert calibrate(bench_of(gpu, "slow", cold_ns=10**7), 1e6, timer, COLD) == 1
    assert calibrate(bench_of(gpu, "tiny", 1, 1), 1e9, timer, COLD) == MOST_CALLS[COLD]
    assert calibrate(bench_of(gpu, "tiny", 1, 1), 1e9, timer, WARM) == MOST_CALLS[WARM]


def test_a_round_under_a_held_back_clock_is_dropped_and_taken_again(gpu):
    clear = gpu.clocks()
    gpu.script = [clear, clear, clear, HOT, HOT, clear]
    timer = timer_of(gpu)
    found = interleave([bench_of(gpu)], QUICK, 0, 0, timer)
    assert found[COLD]["a"].round == [0, 0, 1, 1, 2, 2]
    assert len(gpu.pauses) == 2
    how = timer.how("a")
    assert (how["dropped_rounds"], how["held_back"]) == (2, ["hardware thermal slowdown"])
    assert how["sm_mhz"] == [1980, 1980] and how["temperature_c"] == [50, 50]
    assert how["power_w"] == [300.0, 300.0] and how["memory_mhz"] == [2619, 2619]


def test_a_clock_that_stays_held_back_ends_the_rounds_with_its_reason(gpu):
    gpu.script = [HOT] * 100
    with pytest.raises(Spoiled, match="held back in 4 rounds: hardware thermal slowdown"):
        interleave([bench_of(gpu)], QUICK, 0, 0, timer_of(gpu))


def test_a_device_that_does_not_tell_its_clocks_is_timed_all_the_same(gpu):
    gpu.script = [Clocks()] * 100
    timer = timer_of(gpu)
    interleave([bench_of(gpu)], QUICK, 0, 0, timer)
    assert set(timer.how("a")) == {"dropped_rounds", "empty_pair_ns", "late"}


def on_a_side_stream(gpu, duration_ns=300_000):
    def call(*_):
        gpu.host_ns += 5_000
        gpu.side_free_ns = max(gpu.side_free_ns, gpu.host_ns) + duration_ns

    return call


def test_work_on_a_stream_that_nobody_waits_for_is_a_fault(gpu):
    timer = timer_of(gpu)
    interleave([Bench("cheat", (on_a_side_stream(gpu),)), bench_of(gpu)], QUICK, 0, 0, timer)
    assert "works on for" in timer.fault("cheat")
    assert timer.fault("a") is None


def test_one_disturbed_sample_is_no_fault(gpu):
    timer = timer_of(gpu)
    for _ in range(3):
        timer.sample(bench_of(gpu), 3, 0, WARM)
    gpu.side_free_ns = gpu.free_ns + 10**7
    timer.sample(bench_of(gpu), 3, 0, WARM)
    assert timer.fault("a") is None


def numpy_problem(gpu, **arms):
    """Arms that compute on the host at once and launch what they cost on the made-up device."""
    return Problem(
        inputs=lambda rng: (rng.standard_normal(64),), buffers=lambda x: (np.empty_like(x),), truth=lambda x: 2.0 * x,
        arms={name: arm if isinstance(arm, Arm) else Arm(arm, 1024.0, 64.0) for name, arm in arms.items()},
        input_bytes=512, tolerance=1e-12,
    )


class FakeSuite:
    def __init__(self, build, digest=None):
        self.data = {}

        def speed(**_):
            if digest:
                self.data["words"] = digest
            return build

        self.speeds = {"s": speed}


def doubled(gpu, **kernel):
    launch = gpu.kernel("k", 20_000, 5_000, **kernel)

    def run(x, out):
        np.multiply(x, 2.0, out=out)
        launch()

    return run


def run_cell(gpu, problem, process=0, cache="cold", digest=None):
    cell = Cell(suite="x/y", experiment="s", kind="speed", point={}, seed=0, device="cuda:0", profile="small",
                arms=tuple(problem.arms), card_version=1, code="0", tuned={}, measure=QUICK, timeout_s=10, memory_gib=1)
    records = []
    place = Cuda(gpu, cache, lambda device: CudaTimer(device, gpu.now, gpu.pause))
    run_speed(cell, FakeSuite(problem, digest), process, records.append, place=place)
    return {record.arm: record for record in records}


@pytest.mark.parametrize(("cache", "judged_ns", "other_ns"), [("cold", 20_000, 5_000), ("warm", 5_000, 20_000)])
def test_a_record_holds_both_states_and_says_which_is_judged(gpu, cache, judged_ns, other_ns):
    record = run_cell(gpu, numpy_problem(gpu, honest=doubled(gpu)), cache=cache)["honest"]
    assert (record.status, record.cache) == ("ok", cache)
    assert per_call(record.samples) == {judged_ns}
    assert per_call(record.other_samples) == {other_ns}
    assert record.how["timer"] == "CUDA events" and record.how["flush_bytes"] == gpu.flush_bytes
    assert record.how["graph"] is False
    (conditions,) = record.how["processes"]
    assert conditions["process"] == 0 and conditions["dropped_rounds"] == 0


def test_a_throttled_cell_leaves_no_samples_and_its_reason(gpu):
    gpu.script = [HOT] * 100
    record = run_cell(gpu, numpy_problem(gpu, honest=doubled(gpu)))["honest"]
    assert (record.status, record.samples.elapsed_ns) == ("throttled", [])
    assert "hardware thermal slowdown" in record.reason


def test_a_side_stream_makes_an_arm_wrong_and_leaves_the_honest_one(gpu):
    hidden = on_a_side_stream(gpu)

    def cheat(x, out):
        np.multiply(x, 2.0, out=out)
        hidden()

    records = run_cell(gpu, numpy_problem(gpu, cheat=cheat, honest=doubled(gpu)))
    assert records["cheat"].status == "wrong"
    assert records["cheat"].reason.startswith("while being timed: works on for")
    assert records["cheat"].samples.elapsed_ns == records["cheat"].other_samples.elapsed_ns == []
    assert records["honest"].status == "ok"


def test_a_proof_puts_work_ahead_of_the_poison(gpu):
    ahead = []

    def run(x, out):
        ahead.append((gpu.free_ns - gpu.host_ns, bool(np.isnan(out).all())))
        np.multiply(x, 2.0, out=out)
        gpu.log.append("run")

    run_cell(gpu, numpy_problem(gpu, a=run))
    assert ahead[0][0] > 100_000 and ahead[0][1]
    # The result is read in the stream that is timed, whatever stream the arm has left current.
    assert gpu.log[:3] == ["spin", "run", "resume"]


def test_the_peak_is_what_the_device_allocated_in_one_call(gpu):
    gpu.allocated = 10**6

    def run(x, out):
        np.multiply(x, 2.0, out=out)
        gpu.peak = max(gpu.peak, gpu.allocated + 4096)
        gpu.replays[0] += 1

    arm = Arm(run, 1.0, 1.0, workspace_bytes=4096)
    record = run_cell(gpu, numpy_problem(gpu, a=arm))["a"]
    assert (record.peak_bytes, record.workspace_bytes, record.returned_bytes) == (4096, 4096.0, 0)
    assert record.how["graph"] is True


def test_a_fault_that_cuda_keeps_ends_the_process_and_another_does_not(gpu):
    def fails(x, out):
        gpu.sound = sound
        raise RuntimeError("an illegal memory access was encountered")

    sound = True
    records = run_cell(gpu, numpy_problem(gpu, bad=fails, honest=doubled(gpu)))
    assert (records["bad"].status, records["honest"].status) == ("crashed", "ok")
    assert "release" in gpu.log
    sound = False
    with pytest.raises(RuntimeError, match="illegal memory"):
        run_cell(gpu, numpy_problem(gpu, bad=fails, honest=doubled(gpu)))


def test_torchs_out_of_memory_is_oom(gpu):
    import torch

    def greedy(x, out):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 TiB.")

    assert run_cell(gpu, numpy_problem(gpu, a=greedy))["a"].status == "oom"


def test_processes_are_joined_with_both_states_and_each_ones_conditions(gpu):
    parts = [run_cell(gpu, numpy_problem(gpu, a=doubled(gpu)), process)["a"] for process in range(2)]
    joined = merge(parts)
    assert joined.samples.process == joined.other_samples.process == [0] * 6 + [1] * 6
    assert [item["process"] for item in joined.how["processes"]] == [0, 1]
    assert joined.how["graph"] is False
    spoiled = merge([parts[0], replace(parts[1], status="throttled", reason="hot")])
    assert (spoiled.status, spoiled.other_samples.elapsed_ns) == ("throttled", [])


def test_the_digest_of_the_data_reaches_speed_records(gpu):
    record = run_cell(gpu, numpy_problem(gpu, a=doubled(gpu)), digest="d1")["a"]
    assert record.data == "words=d1"
    assert run_cell(gpu, numpy_problem(gpu, a=doubled(gpu)))["a"].data is None


def test_a_cpu_cell_has_one_state_and_no_conditions():
    assert isinstance(place_of("cpu"), Host)
    assert place_of("cpu", "warm").cache is None


def test_a_returned_array_is_told_from_one_that_was_there():
    from harness.run.measure.memory import fresh_bytes

    x, out = np.zeros(8), np.zeros(4)
    assert fresh_bytes(None, (x, out)) == 0
    assert fresh_bytes((out, x[2:], x.reshape(2, 4)), (x, out)) == 0
    assert fresh_bytes(x + 1, (x, out)) == 64
    fresh = np.zeros((2, 8))
    assert fresh_bytes((fresh, fresh[1], 3.0), (x, out)) == 128


def test_a_returned_tensor_is_told_from_one_that_was_there():
    import torch

    from harness.run.measure.memory import fresh_bytes

    x = torch.zeros(8)
    assert fresh_bytes((x[2:], x.view(2, 4)), (x,)) == 0
    assert fresh_bytes(torch.zeros(4), (x,)) == 16
    assert fresh_bytes(x + 1, (x, None, 3)) == 32


def test_best_of_repeats_is_device_time_without_the_lead(gpu):
    from harness.run.measure.cuda_ceilings import best_ns

    assert best_ns(gpu, partial(gpu.work, 7_000), repeats=4) == 7_000


def test_the_words_for_what_holds_a_clock_back_are_nvmls_heat_power_and_hardware_flags():
    pynvml = pytest.importorskip("pynvml")
    from harness.run.measure.gpu import held_back

    bits = pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    assert set(held_back(pynvml, bits)) == {"software power cap", "hardware thermal slowdown"}
    harmless = pynvml.nvmlClocksThrottleReasonGpuIdle | pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting
    assert held_back(pynvml, harmless) == held_back(pynvml, 0) == ()
    older = type("Older", (), {"nvmlClocksThrottleReasonHwSlowdown": 8})
    assert held_back(older, 8) == ("hardware slowdown",)
