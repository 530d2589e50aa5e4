import random
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.declare.card import Measure
from harness.run.measure.rounds import Bench, calibrate, run_rounds, time_calls


def bench_of(name, log, width=2):
    return Bench(name, tuple((lambda index=index: log.append((name, index))) for index in range(width)))


@given(width=st.integers(1, 5), calls=st.integers(1, 40), start=st.integers(0, 100))
def test_schedule_rotates_over_the_input_sets(width, calls, start):
    log = []
    for call in bench_of("a", log, width).schedule(calls, start):
        call()
    assert [index for _, index in log] == [(start + step) % width for step in range(calls)]


@settings(max_examples=20, deadline=None)
@given(arms=st.integers(1, 4), rounds=st.integers(2, 6), seed=st.integers(0, 2**62))
def test_every_round_runs_all_arms_forward_then_backward(arms, rounds, seed):
    log = []
    benches = [bench_of(f"arm{index}", log) for index in range(arms)]
    samples = run_rounds(benches, Measure(processes=1, rounds=rounds, min_sample_ms=1e-6), 3, seed)
    assert set(samples) == {bench.name for bench in benches}
    for taken in samples.values():
        assert taken.process == [3] * (2 * rounds)
        assert taken.round == [index for index in range(rounds) for _ in range(2)]
        # The two places of an arm in a round are mirror images: drift that is linear in time cancels.
        pairs = zip(taken.position[::2], taken.position[1::2], strict=True)
        assert all(first + second == 2 * arms - 1 for first, second in pairs)
        assert all(count >= 1 for count in taken.calls)
        assert all(elapsed > 0 for elapsed in taken.elapsed_ns)


def test_the_order_differs_between_rounds_and_follows_the_seed():
    def orders(seed):
        benches = [bench_of(f"arm{index}", []) for index in range(4)]
        samples = run_rounds(benches, Measure(processes=1, rounds=6, min_sample_ms=1e-6), 0, seed)
        return [tuple(samples[f"arm{index}"].position[2 * turn] for index in range(4)) for turn in range(6)]

    assert len(set(orders(1))) > 1
    assert orders(1) == orders(1)


def test_calibration_makes_samples_long_enough():
    bench = Bench("spin", (lambda: sum(range(200)),))
    calls = calibrate(bench, 2e6)
    elapsed_ns = min(time_calls(bench.schedule(calls, 0)) for _ in range(5))
    assert calls > 10
    assert elapsed_ns > 2e5  # an order of magnitude below the target: timing must not decide this test


def test_calibration_of_a_slow_call_is_one_call():
    assert calibrate(Bench("sleep", (lambda: time.sleep(0.002),)), 1e6) == 1


def test_garbage_collection_is_back_on_after_a_failing_arm():
    import gc

    def fail():
        raise RuntimeError("boom")

    try:
        run_rounds([Bench("bad", (fail,))], Measure(processes=1, rounds=2, min_sample_ms=1), 0, 0)
    except RuntimeError:
        assert gc.isenabled()
    else:
        raise AssertionError("the arm's error must reach the caller")


def test_shuffling_uses_its_own_generator():
    random.seed(5)
    expected = random.random()
    random.seed(5)
    run_rounds([bench_of("a", []), bench_of("b", [])], Measure(processes=1, rounds=2, min_sample_ms=1e-6), 0, 0)
    assert random.random() == expected
