"""When a cell gets another pair, and what is said of it in the end; pairs are invented."""

import math
import time

import numpy as np
import pytest

from harness.declare.gate import Gate
from harness.judge.compare import Sequential
from harness.plan.machine import this_machine
from harness.plan.plan import Request, make_plan
from harness.run.ab.pair import BASE, HEAD, CellPair, Fault, PairResult
from harness.run.ab.timing import CellState, Number, measure_all

LOOKS = (4, 6, 8, 12)


@pytest.fixture
def make_state(repository):
    """make_state(*arms): one cell with these arms."""
    cell = make_plan(repository.root, Request(("y:s",)), this_machine()).cells[0]

    def make(*arms):
        pair = CellPair(cell, cell, {BASE: repository.root, HEAD: repository.root})
        return CellState(pair, {arm: Number(arm, Sequential(0.01, looks=LOOKS), True) for arm in arms})

    return make


def gave(**shifts):
    """A pair in which each arm shows its shift, exactly."""
    return PairResult(rounds={arm: [shift] * 12 for arm, shift in shifts.items()},
                      call_ns={arm: {BASE: 1e6, HEAD: 1e6 * math.exp(shift)} for arm, shift in shifts.items()})


def run(states, measure, seconds=60.0):
    measure_all(states, measure, time.monotonic() + seconds, lambda *_: None)


def said(state):
    return {(item.arm, item.metric): (item.verdict, item.reason) for item, _ in state.comparisons(Gate())}


def test_an_arm_that_is_decided_is_measured_no_more(make_state):
    state, asked = make_state("calm", "wild"), []
    noise = np.random.default_rng(0).normal(0, 0.03, 12)

    def measure(cells, arms, number):
        asked.append(tuple(arms[HEAD]))
        return gave(calm=0.0, wild=float(noise[number]))

    run([state], measure)
    assert asked == [("calm", "wild")] * 4 + [("wild",)] * 8
    assert said(state) == {("calm", "time"): ("same", "inside_zone"), ("wild", "time"): ("inconclusive",
                                                                                       "straddles_zone")}


def test_cells_take_turns(make_state):
    states, order = [make_state("a"), make_state("a")], []

    def measure(cells, arms, number):
        order.append(cells)
        return gave(a=0.0)

    run(states, measure)
    assert [states[0].cells is cells for cells in order] == [True, False] * 4


def test_a_change_needs_enough_pairs(make_state):
    state = make_state("a")
    run([state], lambda *_: gave(a=0.5))
    assert said(state) == {("a", "time"): ("slower", "beyond_zone")}
    assert state.attempts > 4


def test_no_time(make_state):
    state = make_state("a")
    run([state], lambda *_: gave(a=0.0), seconds=0.0)
    assert state.attempts == 0
    assert said(state) == {("a", "time"): ("inconclusive", "budget_spent")}


def test_where_not_all_can_be_decided_some_are(make_state):
    """Two pairs of each of 4 cells take 8 s, two more of all another 8: of 12 s, four are left for two cells."""
    states, clock = [make_state("a") for _ in range(4)], [0.0]

    def measure(cells, arms, number):
        clock[0] += 1.0
        return gave(a=0.001 * (-1) ** number)

    measure_all(states, measure, 12.5, lambda *_: None, now=lambda: clock[0])
    assert [state.attempts for state in states] == [4, 4, 2, 2]
    assert [said(state)["a", "time"] for state in states] == [("same", "inside_zone")] * 2 + [
        ("inconclusive", "budget_spent")] * 2


def test_pairs_that_break_without_anyone_to_blame_end_sometime(make_state):
    state = make_state("a")
    run([state], lambda *_: PairResult())
    assert LOOKS[-1] <= state.attempts < 2 * LOOKS[-1]
    assert said(state) == {("a", "time"): ("inconclusive", "budget_spent")}


@pytest.mark.parametrize(("on_base", "reason"), [(False, "head_status"), (True, "base_status")])
def test_what_the_head_cannot_run_is_asked_of_the_base(make_state, on_base, reason):
    """The first pair does not tell whether the base can run it: its worker broke in another arm."""
    state, asked = make_state("a", "b"), []

    def measure(cells, arms, number):
        asked.append({role: sorted(names) for role, names in arms.items()})
        result = gave()
        if "a" in arms[HEAD]:
            result.faults[HEAD]["a"] = Fault("crashed", "segfault")
            result.faults[BASE]["b"] = Fault("crashed", "segfault")
        elif "a" in arms[BASE] and on_base:
            result.faults[BASE]["a"] = Fault("crashed", "segfault")
        return result

    run([state], measure)
    assert asked[0] == {BASE: ["a", "b"], HEAD: ["a", "b"]}
    assert asked[1] == {BASE: ["a"], HEAD: ["b"]}
    assert said(state)["a", "time"] == ("incomparable", reason)
    assert said(state)["b", "time"] == ("incomparable", "base_status")


def test_arms_without_a_result_are_not_compared(make_state):
    state = make_state("a", "copy")

    def measure(cells, arms, number):
        result = gave(a=0.0)
        result.unchecked = {"copy"}
        return result

    run([state], measure)
    assert set(said(state)) == {("a", "time")}


def test_pairs_of_unequal_length(make_state):
    number = make_state("a").numbers["a"]
    for length in (12, 4, 7, 12):
        result = gave(a=0.0)
        result.rounds["a"] = result.rounds["a"][:length]
        number.add(result)
    assert number.rounds.shape == (4, 12)
    assert np.isnan(number.rounds).sum() == 13
    assert number.decision.word == "same"
