"""Cheating, wrong and honest kernels through the oracle gate and one process of a speed cell."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.declare.card import Measure
from harness.declare.suite import Arm, NotTestable, Problem, SkipArm
from harness.plan.cell import Cell
from harness.run.check import InputSet, poison, prove, relative_error
from harness.run.speed import merge, run_speed

N = 256


def honest(x, out):
    np.multiply(x, 2.0, out=out)


def zero(x, out):
    out[:] = 0


def unwritten(x, out):
    pass


def partial_write(x, out):
    out[:-1] = 2.0 * x[:-1]


def alters_input(x, out):
    np.multiply(x, 2.0, out=out)
    x[0] += 1


def make_cached_by_address():
    cache = {}

    def run(x, out):
        key = x.ctypes.data
        if key not in cache:
            cache[key] = 2.0 * x
        out[:] = cache[key]

    return run


def make_cached_first():
    cache = []

    def run(x, out):
        if not cache:
            cache.append(2.0 * x)
        out[:] = cache[0]

    return run


def make_lazy_after(calls):
    count = [0]

    def run(x, out):
        count[0] += 1
        if count[0] <= calls:
            np.multiply(x, 2.0, out=out)

    return run


def raises(x, out):
    raise ValueError("no such luck")


def out_of_memory(x, out):
    raise MemoryError("too much")


def problem_of(**runs):
    arms = {name: run if isinstance(run, Arm | SkipArm) else Arm(run=run, bytes_moved=16.0 * N, flops=N)
            for name, run in runs.items()}
    return Problem(
        inputs=lambda rng: (rng.standard_normal(N),), buffers=lambda x: (np.empty_like(x),), truth=lambda x: 2.0 * x,
        arms=arms, input_bytes=8 * N, tolerance=1e-12,
    )


class FakeSuite:
    def __init__(self, build):
        self.speeds, self.data = {"s": build}, {}


def run_cell(problem, process=0):
    cell = Cell(suite="x/y", experiment="s", kind="speed", point={"threads": 1}, seed=0, device="cpu", profile="small",
                arms=tuple(problem.arms), card_version=1, code="0", tuned={},
                measure=Measure(processes=2, rounds=3, min_sample_ms=0.01), timeout_s=10, memory_gib=1)
    records = []
    run_speed(cell, FakeSuite(lambda point, rng, device: problem), process, records.append)
    return {record.arm: record for record in records}


def test_an_honest_arm_is_timed():
    record = run_cell(problem_of(honest=honest))["honest"]
    assert (record.status, record.reason) == ("ok", None)
    assert record.error <= 1e-12
    assert len(record.samples.elapsed_ns) == 6
    assert record.bytes_moved == 16 * N
    assert record.first_call_ns > 0


@pytest.mark.parametrize("run, reason", [
    (zero, "exceeds the tolerance"),
    (unwritten, "exceeds the tolerance"),
    (partial_write, "exceeds the tolerance"),
    (alters_input, "altered its inputs"),
    (make_cached_first(), "exceeds the tolerance"),
    (make_cached_by_address(), "after being timed"),
    (make_lazy_after(6), "after being timed"),
])
def test_a_cheating_arm_is_wrong_and_leaves_no_samples_while_the_honest_one_is_timed(run, reason):
    records = run_cell(problem_of(cheat=run, honest=honest))
    assert records["cheat"].status == "wrong"
    assert reason in records["cheat"].reason
    assert records["cheat"].samples.elapsed_ns == []
    assert records["honest"].status == "ok"
    assert len(records["honest"].samples.elapsed_ns) == 6


def test_a_later_process_proves_too():
    assert run_cell(problem_of(cheat=zero, honest=honest), process=1)["cheat"].status == "wrong"


def test_raising_arms_keep_their_reason_and_do_not_stop_the_others():
    skip = SkipArm("peer not installed")
    records = run_cell(problem_of(bad=raises, greedy=out_of_memory, absent=skip, honest=honest))
    assert records["bad"].status == "crashed"
    assert "ValueError: no such luck" in records["bad"].reason
    assert "raises" in records["bad"].stderr_tail
    assert records["greedy"].status == "oom"
    assert (records["absent"].status, records["absent"].reason) == ("skipped", "peer not installed")
    assert records["honest"].status == "ok"


def test_an_arm_missing_from_the_problem_is_named():
    problem = problem_of(honest=honest)
    cell = Cell(suite="x/y", experiment="s", kind="speed", point={}, seed=0, device="cpu", profile="small",
                arms=("honest", "ghost"), card_version=1, code="0", tuned={},
                measure=Measure(processes=1, rounds=2, min_sample_ms=0.01), timeout_s=10, memory_gib=1)
    records = []
    run_speed(cell, FakeSuite(lambda **_: problem), 0, records.append)
    ghost = next(record for record in records if record.arm == "ghost")
    assert ghost.status == "crashed"
    assert "no arm 'ghost'" in ghost.reason


def test_a_problem_that_cannot_be_asked_here_skips_every_arm():
    def build(point, rng, device):
        raise NotTestable("needs a tape drive")

    cell = Cell(suite="x/y", experiment="s", kind="speed", point={}, seed=0, device="cpu", profile="small",
                arms=("a", "b"), card_version=1, code="0", tuned={}, measure=Measure(), timeout_s=1, memory_gib=1)
    records = []
    run_speed(cell, FakeSuite(build), 0, records.append)
    assert [(record.status, record.reason) for record in records] == [("skipped", "needs a tape drive")] * 2


def test_an_arm_may_return_its_result():
    records = run_cell(problem_of(returns=lambda x, out: 2.0 * x, wrong=lambda x, out: 3.0 * x))
    assert records["returns"].status == "ok"
    assert records["wrong"].status == "wrong"


def test_in_place_state_is_fresh_for_each_check():
    def step(x, state):
        state *= 2.0

    arm = Arm(run=step, bytes_moved=1, flops=1, in_place=True, buffers=lambda x: (x.copy(),))
    idle = Arm(run=unwritten, bytes_moved=1, flops=1, in_place=True, buffers=lambda x: (x.copy(),))
    records = run_cell(problem_of(step=arm, idle=idle))
    assert records["step"].status == "ok"
    assert records["idle"].status == "wrong"


def test_merge_joins_samples_and_lets_the_worst_status_win():
    parts = [run_cell(problem_of(honest=honest), process)["honest"] for process in range(2)]
    joined = merge(parts)
    assert joined.status == "ok"
    assert joined.samples.process == [0] * 6 + [1] * 6
    assert joined.error == max(part.error for part in parts)
    spoiled = merge([parts[0], replace(parts[1], status="wrong", reason="no")])
    assert (spoiled.status, spoiled.reason, spoiled.samples.elapsed_ns) == ("wrong", "no", [])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint8, np.int8, np.bool_])
def test_poison_differs_from_zero_in_every_type(dtype):
    buffer = np.zeros(4, dtype)
    poison([buffer])
    assert not np.array_equal(buffer, np.zeros(4, dtype))


def test_poison_reaches_torch_tensors():
    import torch

    tensors = [torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.uint8),
               torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int8)]
    poison(tensors)
    assert torch.isnan(tensors[0]).all() and torch.isnan(tensors[1]).all()
    assert all(bool((tensor != 0).all()) for tensor in tensors[2:])


finite = hnp.arrays(np.float64, st.integers(1, 20), elements=st.floats(-1e6, 1e6))


@given(truth=finite, scale=st.floats(0.5, 2.0))
def test_relative_error_is_scale_free(truth, scale):
    assume(np.abs(truth).max() > 1e-3)
    output = truth + 1e-3 * np.abs(truth).max()
    assert relative_error(truth, truth) == 0
    assert relative_error(output * scale, truth * scale) == pytest.approx(relative_error(output, truth), rel=1e-6)


@given(truth=finite)
def test_a_missing_or_invented_nan_is_an_infinite_error(truth):
    spoiled = truth.copy()
    spoiled[0] = np.nan
    assert relative_error(spoiled, truth) == np.inf
    assert relative_error(truth, spoiled) == np.inf
    assert relative_error(spoiled, spoiled) < np.inf


def test_against_zeros_the_error_is_absolute():
    assert relative_error(np.full(3, 0.25), np.zeros(3)) == 0.25


def test_other_shapes_or_numbers_of_outputs_are_an_infinite_error():
    assert relative_error(np.ones(3), np.ones(4)) == np.inf
    assert relative_error((np.ones(3),), (np.ones(3), np.ones(3))) == np.inf


def test_altered_inputs_are_put_back():
    problem = problem_of(bad=alters_input, good=honest)
    drawn = InputSet(problem, np.random.default_rng(0))
    before = drawn.inputs[0].copy()
    assert prove(problem, problem.arms["bad"], drawn).fault == "altered its inputs"
    assert np.array_equal(drawn.inputs[0], before)
    assert prove(problem, problem.arms["good"], drawn).fault is None


def test_nan_inputs_count_as_unaltered():
    problem = Problem(
        inputs=lambda rng: (np.array([np.nan, 1.0]),), buffers=lambda x: (np.empty_like(x),), truth=lambda x: 2 * x,
        arms={"a": Arm(run=honest, bytes_moved=1, flops=1)}, input_bytes=16, tolerance=0,
    )
    assert prove(problem, problem.arms["a"], InputSet(problem, np.random.default_rng(0))).fault is None
