"""The canary: what alarms, what does not, and that it really sings."""

from pathlib import Path

import pytest

from harness.run.ab.canary import PAIRS, Canary
from harness.run.ab.pair import BASE, HEAD, Fault, PairResult, measure_pair
from harness.run.ab.worktree import Side

SIDES = (Side(BASE, "base", Path()), Side(HEAD, "head", Path()))


def canary_of(result):
    canary = Canary(SIDES, ["cpu"], lambda cells, arms, number: result(number))
    canary.sing()
    canary.sing()
    return canary


def rounds(*values):
    return PairResult(rounds={"a": list(values)})


def test_equal_times_are_no_alarm():
    canary = canary_of(lambda number: rounds(0.001 * (-1) ** number, 0.0, 0.0))
    assert canary.alarm() is None
    assert canary.floor == 0.0
    assert {len(pairs) for pairs in canary.rounds.values()} == {2 * PAIRS}
    assert set(canary.rounds) == {"compute on cpu", "memory on cpu"}


@pytest.mark.parametrize(("shift", "word"), [(0.05, "slower"), (-0.05, "faster")])
def test_equal_code_that_differs_is_an_alarm(shift, word):
    canary = canary_of(lambda number: rounds(*[shift + 0.0001 * number] * 3))
    assert f"equal code did not take equal time (compute on cpu): {word}" in canary.alarm()


def test_noise_is_no_alarm():
    assert canary_of(lambda number: rounds(0.2 * (number - 1))).alarm() is None


def test_a_small_difference_that_is_sure_widens_the_zone_and_is_no_alarm():
    canary = canary_of(lambda number: rounds(0.008 + 0.0001 * number))
    assert canary.alarm() is None
    assert 0.006 < canary.floor < 0.009


def test_a_canary_that_breaks_is_an_alarm():
    broken = PairResult(faults={BASE: {}, HEAD: {"a": Fault("crashed", "killed by SIGSEGV")}})
    assert "did not finish: crashed: killed by SIGSEGV" in canary_of(lambda number: broken).alarm()
    assert canary_of(lambda number: PairResult()).alarm() == "the canary did not finish"


def test_a_device_that_is_not_usable_is_no_alarm():
    skipped = PairResult(faults={BASE: {"a": Fault("skipped", "no CUDA")}, HEAD: {}})
    assert canary_of(lambda number: skipped).alarm() is None


@pytest.mark.usefixtures("nothing_left")
def test_it_is_timed_by_the_real_clock(engine, tmp_path):
    import random

    sides = tuple(Side(role, role, tmp_path) for role in (BASE, HEAD))
    chance = random.Random(0)
    canary = Canary(sides, ["cpu"], lambda cells, arms, number: measure_pair(engine, cells, arms, number, chance))
    canary.sing()
    assert not canary.faults
    assert {label: len(pairs) for label, pairs in canary.rounds.items()} == {
        "compute on cpu": PAIRS, "memory on cpu": PAIRS}
    assert all(4 <= len(pair) <= 12 for pairs in canary.rounds.values() for pair in pairs)
