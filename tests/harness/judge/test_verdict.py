import dataclasses
import json
import math
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.declare.suite import Estimate, NotTestable
from harness.judge.verdict import judge_suite
from harness.records.record import Record, Samples
from harness.records.store import VERDICTS

ALARM = {"floor": 0.03, "alarm": True}
RATIO = {"ratio": "time", "of": "a", "to": "b"}
FASTER = {"id": "faster", "experiment": "timing", "estimate": RATIO, "supported_if": "> 1.05", "refuted_if": "< 1.00"}
LOWER = {"id": "lower", "experiment": "trials", "estimate": {"difference": "loss", "of": "a", "minus": "b"},
         "supported_if": "< -0.1", "refuted_if": "> 0"}
SPREAD = [0.0, 0.01, -0.01, 0.02, -0.02]


@pytest.fixture
def timing(make_card, judge, speed, noisy):
    """The verdict on FASTER (or a changed claim) when a takes ``ratio`` times as long as b at each point."""

    def make(ratio=1.3, claim=None, noise=0.005, canary=None, axes=None, points=None, **changes):
        card = make_card([{**FASTER, **(claim or {})}], timing={"kind": "speed", "axes": axes or {}})
        records = []
        for index, point in enumerate(points or [{}]):
            factor = ratio[index] if isinstance(ratio, list) else ratio
            records += [speed("a", noisy(factor, noise, seed=2 * index), point=point, **changes),
                        speed("b", noisy(1.0, noise, seed=2 * index + 1), point=point, **changes)]
        return judge(card, records, **({} if canary is None else {"canary": canary or None}))[0]

    return make


@pytest.fixture
def trials(make_card, judge, trial):
    """The verdict on LOWER (or a changed claim) when a's loss is b's plus ``gap`` in each seed, at each point."""

    def make(gap=-0.5, claim=None, seeds=5, axes=None, points=None, spread=SPREAD, **more):
        card = make_card([{**LOWER, **(claim or {})}], trials={"axes": axes or {}})
        records = []
        for index, point in enumerate(points or [{}]):
            here = gap[index] if isinstance(gap, list) else gap
            for seed in range(seeds):
                records.append(trial("a", {"loss": 1 + here + spread[seed % 5]}, seed=seed, point=point))
                records.append(trial("b", {"loss": 1.0}, seed=seed, point=point))
        return judge(card, records, **more)[0]

    return make


@pytest.mark.parametrize(
    ("ratio", "noise", "verdict", "words"),
    [
        (1.3, 0.005, "supported", "lies wholly above 1.05 (24 rounds in 3 processes)"),
        (0.9, 0.005, "refuted", "lies wholly below 1 (24 rounds in 3 processes)"),
        (1.025, 0.005, "inconclusive", "lies neither wholly above 1.05 nor wholly below 1 (24 rounds"),
        (1.08, 0.2, "inconclusive", "neither wholly above"),
    ],
)
def test_speed_verdicts(timing, ratio, noise, verdict, words):
    found = timing(ratio, noise=noise)
    assert found.verdict == verdict
    assert words in found.reason and "95 % interval [" in found.reason and found.reason.startswith("ratio ")


@pytest.mark.parametrize(
    ("gap", "verdict", "words"),
    [
        (-0.5, "supported", "lies wholly below -0.1 (5 seeds)"),
        (0.5, "refuted", "lies wholly above 0 (5 seeds)"),
        (-0.05, "inconclusive", "lies neither wholly below -0.1 nor wholly above 0 (5 seeds)"),
    ],
)
def test_trial_verdicts(trials, gap, verdict, words):
    found = trials(gap)
    assert (found.verdict, found.suite, found.claim) == (verdict, "fam/slug", "lower")
    assert words in found.reason


@pytest.mark.parametrize(
    ("gap", "verdict"), [(0.0, "supported"), (0.5, "refuted"), (0.045, "inconclusive"), (0.06, "inconclusive")]
)
def test_equivalence_is_two_one_sided_tests(trials, gap, verdict):
    claim = {"estimate": {"equivalence": "loss", "of": "a", "to": "b", "within": 0.05},
             "supported_if": None, "refuted_if": None}
    found = trials(gap, claim)
    assert found.verdict == verdict
    part = found.parts[0]
    assert part.estimate.level == pytest.approx(0.90) and part.refute_interval.level == pytest.approx(0.95)
    assert part.supported_if == "inside [-0.05, 0.05]"


@pytest.mark.parametrize(
    ("values", "verdict", "words"),
    [
        ([3.9] * 2, "supported", "value 3.9 is at or above 3.85 (2 cells agree)"),
        ([3.9], "supported", "value 3.9 is at or above 3.85 (1 cell)"),
        ([3.5], "refuted", "value 3.5 is below 3.85 (1 cell)"),
        ([3.9, 4.0], "inconclusive", "the cells disagree, from 3.9 to 4"),
        ([math.nan], "inconclusive", "undefined"),
    ],
)
def test_exact_needs_no_seeds(make_card, judge, trial, values, verdict, words):
    claim = {"id": "bytes", "experiment": "trials", "estimate": {"exact": "loss", "of": "a"},
             "supported_if": ">= 3.85", "refuted_if": "< 3.85"}
    records = [trial("a", {"loss": value}, seed=seed) for seed, value in enumerate(values)]
    found = judge(make_card([claim]), records)[0]
    assert found.verdict == verdict and words in found.reason


# Points and parts -----------------------------------------------------------------------------------------------------

N = {"axes": {"n": [1, 2, 3]}, "points": [{"n": 1}, {"n": 2}, {"n": 3}]}


@pytest.mark.parametrize(
    ("gaps", "points", "verdict", "words"),
    [
        ([-0.5, -0.5, -0.5], "all", "supported", "3 of 3 tests hold, the first: n=1: difference -0.5"),
        ([-0.5, 0.5, -0.5], "all", "refuted", "1 of 3 tests fail, the first: n=2: difference 0.5"),
        ([-0.5, -0.05, -0.5], "all", "inconclusive", "1 of 3 tests are open, the first: n=2"),
        ([0.5, -0.5, 0.5], "any", "supported", "1 of 3 tests hold, the first: n=2"),
        ([0.5, 0.5, 0.5], "any", "refuted", "3 of 3 tests fail"),
        ([0.5, -0.05, 0.5], "any", "inconclusive", "1 of 3 tests are open, the first: n=2"),
        ([-0.7, -0.5, -0.3], "pool", "supported", "difference -0.5"),
        ([-0.5, 0.0, 0.8], "pool", "refuted", "difference 0.1"),
    ],
)
def test_points(trials, gaps, points, verdict, words):
    found = trials(gaps, {"points": points}, **N)
    assert found.verdict == verdict and words in found.reason
    assert [part.point for part in found.parts] == ([{}] if points == "pool" else N["points"])


def test_levels_pay_for_the_number_of_chances(trials):
    every = trials(-0.5, {"points": "all"}, **N).parts[0]
    assert every.estimate.level == pytest.approx(0.95)
    assert every.refute_interval.level == pytest.approx(1 - 0.05 / 3)
    some = trials(-0.5, {"points": "any"}, **N).parts[0]
    assert some.estimate.level == pytest.approx(1 - 0.05 / 3)
    assert some.refute_interval.level == pytest.approx(0.95)


def test_refutation_needs_the_holm_level(trials):
    """A gap that refutes alone does not among three tests."""
    gap, spread = 0.0185, [0.0, 0.01, -0.01, 0.015, -0.015]
    assert trials(gap, spread=spread).verdict == "refuted"
    among = trials([-0.5, gap, -0.5], spread=spread, **N)
    assert among.verdict == "inconclusive"
    assert "98.33 % interval" in among.parts[1].reason and "not wholly above 0" in among.parts[1].reason


def two_parts(second):
    return {"id": "both", "experiment": "trials", "parts": [
        {"id": "one", "estimate": {"mean": "loss", "of": "a"}, "supported_if": "> 1", "refuted_if": "< 1"},
        {"id": "two", "estimate": {"mean": "loss", "of": "b"}, "supported_if": second, "refuted_if": "inside [1.5, 9]"},
    ]}


@pytest.mark.parametrize(
    ("second", "verdict", "words"),
    [("> 9", "refuted", "1 of 2 tests fail, the first: part two: mean 2"), ("< cores", "refuted", "part two: mean 2"),
     ("< 2*cores", "inconclusive", "both below 4 and inside [1.5, 9]: the card's regions overlap")],
)
def test_parts(make_card, judge, trial, second, verdict, words):
    records = [trial(arm, {"loss": 2 + spread}, seed=seed) for seed, spread in enumerate(SPREAD) for arm in "ab"]
    found = judge(make_card([two_parts(second)]), records)[0]
    assert found.verdict == verdict and words in found.reason
    assert [part.id for part in found.parts] == ["one", "two"]
    assert found.parts[0].verdict == "supported"


def test_a_part_that_did_not_run_outweighs_a_refuted_one(make_card, judge, trial):
    records = [trial(arm, {"loss": 0.5 + spread}, seed=seed, status="ok" if arm == "a" else "oom")
               for seed, spread in enumerate(SPREAD) for arm in "ab"]
    found = judge(make_card([two_parts("> 9")]), records)[0]
    assert [part.verdict for part in found.parts] == ["refuted", "not run"]
    assert found.verdict == "not run" and found.reason.startswith("1 of 2 tests cannot be made, the first: part two:")


def test_devices_are_judged_apart(timing, make_card, judge, speed, noisy):
    card = make_card([FASTER], timing={"kind": "speed", "devices": ["cpu", "cuda"]})
    records = [speed(arm, noisy(factor, 0.005, seed=index), device=device)
               for index, (device, arm, factor) in enumerate([("cpu", "a", 1.3), ("cpu", "b", 1.0),
                                                              ("cuda:0", "a", 0.8), ("cuda:0", "b", 1.0)])]
    found = judge(card, records)[0]
    assert {part.point["device"]: part.verdict for part in found.parts} == {"cpu": "supported", "cuda:0": "refuted"}
    only = make_card([{**FASTER, "where": {"device": "cpu"}}], timing={"kind": "speed", "devices": ["cpu", "cuda"]})
    assert judge(only, records)[0].verdict == "supported"


def test_the_point_and_the_cells_that_decided_are_named(timing):
    found = timing(points=[{"n": 1, "threads": "all"}, {"n": 2**20, "threads": "all"}],
                   axes={"n": [1, "2**20"], "threads": ["all"]}, claim={"where": {"n": "2**20"}})
    part = found.parts[0]
    assert part.point == {"n": 2**20, "threads": "all"}
    assert len(part.cells) == 1 and str(2**20) in part.cells[0]


# What keeps a claim from being judged ---------------------------------------------------------------------------------


def test_no_records_at_all(make_card, judge):
    found = judge(make_card([LOWER]), [])[0]
    assert (found.verdict, found.reason) == ("not run", "experiment 'trials' has no records in this run")
    assert found.parts[0].estimate is None


def test_a_profile_that_skips_the_experiment(make_card, judge, trial):
    card = make_card([LOWER], trials={"profiles": {"smoke": "skip"}}, more={"kind": "trial"})
    found = judge(card, [trial("a", {"loss": 1.0}, experiment="more", profile="smoke")])[0]
    assert found.reason == "profile smoke does not run experiment 'trials'"


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ({"input_bytes": ">= 4*llc"}, "no cell has input_bytes >= 4*llc (128 MiB)"),
        ({"n": ">= llc"}, "no cell has n >= llc (32 MiB)"),
        ({"n": "> cores"}, "no cell has n > cores (2)"),
        ({"n": 7}, "no cell has n = 7"),
        ({"input_bytes": "> 5", "n": [7, 8]}, "no cell has input_bytes > 5 and n in [7, 8]"),
    ],
)
def test_where_that_selects_nothing_names_the_machines_constant(make_card, judge, speed, noisy, where, words):
    full = {"profiles": {"full": {"axes": {"n": [7, 8]}}}}
    card = make_card([{**FASTER, "where": where}], timing={"kind": "speed", "axes": {"n": [1, 2]}, **full})
    found = judge(card, [speed(arm, noisy(1), point={"n": n}) for n in (1, 2) for arm in "ab"])[0]
    assert (found.verdict, found.reason) == ("not run", words)


def test_a_constant_that_the_machine_does_not_have(make_card, judge, speed, noisy):
    card = make_card([{**FASTER, "where": {"input_bytes": "> llc"}}], timing={"kind": "speed"})
    found = judge(card, [speed(arm, noisy(1)) for arm in "ab"], constants={})[0]
    assert found.verdict == "not run" and "'llc' is not arithmetic" in found.reason


@pytest.mark.parametrize("status", ["wrong", "timeout", "oom", "crashed", "throttled", "skipped"])
def test_an_arm_that_did_not_end_ok(make_card, judge, trial, status):
    records = [trial(arm, {"loss": 1.0}, seed=seed) for seed in range(5) for arm in "abc"]
    records[4] = dataclasses.replace(records[4], status=status, reason="because")
    found = judge(make_card([LOWER]), records)[0]
    assert found.verdict == "not run"
    assert found.reason == f"1 of 5 cells did not end ok, the first: arm 'b' is {status} (because)"


def test_the_point_and_seed_of_a_failure_are_named(make_card, judge, trial):
    records = [trial(arm, {"loss": 1.0}, seed=seed, point={"n": 4}, status="ok" if arm == "a" else "oom")
               for seed in range(2) for arm in "ab"]
    found = judge(make_card([LOWER], trials={"axes": {"n": [4]}}), records)[0]
    assert found.reason == "2 of 2 cells did not end ok, the first: arm 'b' at n=4, seed 0 is oom"


def test_an_arm_that_the_claim_does_not_read_may_fail(make_card, judge, trial):
    records = [trial(arm, {"loss": {"a": 0.5, "b": 1.0, "c": 0.0}[arm] + spread * (arm == "a")}, seed=seed,
                     status="wrong" if arm == "c" else "ok")
               for seed, spread in enumerate(SPREAD) for arm in "abc"]
    assert judge(make_card([LOWER]), records)[0].verdict == "supported"


def test_an_arm_without_a_record(make_card, judge, trial):
    found = judge(make_card([LOWER]), [trial("a", {"loss": 1.0}, seed=seed) for seed in range(5)])[0]
    assert found.reason == "arm 'b' has no record in 5 of 5 cells"


def test_an_arm_that_the_profile_leaves_out(make_card, judge, trial):
    card = make_card([LOWER], trials={"profiles": {"smoke": {"arms": ["a", "c"]}}})
    found = judge(card, [trial(arm, {"loss": 1.0}, profile="smoke") for arm in "ac"])[0]
    assert found.reason == "profile smoke runs no arm 'b' in experiment 'trials'"


def test_a_point_or_a_seed_that_was_never_run(make_card, judge, trial):
    card = make_card([LOWER], trials={"axes": {"n": [1, 2]}})
    places = [(seed, n, arm) for seed in range(5) for n in (1, 2) for arm in "ab"]
    records = [trial(arm, {"loss": 1.0}, seed=seed, point={"n": n}) for seed, n, arm in places]
    missing_point = judge(card, [record for record in records if record.point["n"] == 1])[0]
    assert missing_point.reason == "5 of 10 cells have no record, the first at n=2, seed 0"
    missing_seed = judge(card, [record for record in records if (record.seed, record.point["n"]) != (4, 2)])[0]
    assert missing_seed.reason == "1 of 10 cells have no record, the first at n=2, seed 4"
    only_one = make_card([{**LOWER, "where": {"n": 1}}], trials={"axes": {"n": [1, 2]}})
    assert judge(only_one, [record for record in records if record.point["n"] == 1])[0].verdict != "not run"


def test_a_cell_that_failed_before_its_inputs_existed_counts_as_selected(timing, make_card, judge, speed, noisy):
    card = make_card([{**FASTER, "where": {"input_bytes": "> 4"}}], timing={"kind": "speed", "axes": {"n": [1, 2]}})
    records = [speed(arm, noisy(1), point={"n": n}, **({} if n == 1 else {"status": "timeout", "input_bytes": 0}))
               for n in (1, 2) for arm in "ab"]
    assert judge(card, records)[0].reason == "1 of 2 cells did not end ok, the first: arm 'a' at n=2 is timeout"


def test_ok_records_without_samples_support_nothing(make_card, judge, speed):
    found = judge(make_card([FASTER]), [speed(arm, []) for arm in "ab"])[0]
    assert (found.verdict, found.reason) == ("not run", "the cells of experiment 'timing' hold no samples")


def test_records_of_another_card_version(make_card, judge, trial):
    found = judge(make_card([LOWER]), [trial("a", {"loss": 1.0}, card_version=7)])[0]
    assert (found.verdict, found.reason) == ("not run", "records are of card version 7, the card is version 1")


def test_a_cell_that_was_run_again_with_newer_code_is_judged_alone(make_card, judge, trial):
    def records(a, **changes):
        return [trial(arm, {"loss": {"a": a + SPREAD[seed], "b": 1.0}[arm]}, seed=seed, **changes)
                for seed in range(5) for arm in "ab"]

    old = records(9.0)
    new = [dataclasses.replace(record, cell=record.cell + "+") for record in records(0.5, code="k2", started_at=2.0)]
    found = judge(make_card([LOWER]), old + new)[0]
    assert found.verdict == "supported" and found.parts[0].estimate.n == 5


# Seeds, the canary and the A/A floor ----------------------------------------------------------------------------------


def test_too_few_seeds_are_inconclusive_whatever_they_say(trials):
    found = trials(-0.5, seeds=4)
    assert found.verdict == "inconclusive" and found.reason.startswith("needs 5 seeds, has 4; difference -0.495")
    one = trials(-0.5, seeds=1)
    assert one.verdict == "inconclusive" and "needs 5 seeds, has 1" in one.reason
    assert trials(-0.5, {"min_seeds": 4}, seeds=4).verdict == "supported"


def test_another_unit_is_counted_instead_of_seeds(make_card, judge, trial):
    values = [2.0 + spread for spread in SPREAD]
    records = [trial("a", {"loss": value}, point={"system": index}) for index, value in enumerate(values)]
    claim = {"id": "c", "experiment": "trials", "estimate": {"mean": "loss", "of": "a"}, "supported_if": "> 1",
             "refuted_if": "< 1", "points": "pool"}
    card = {"trials": {"axes": {"system": list(range(5))}}}
    assert judge(make_card([claim], **card), records)[0].verdict == "inconclusive"
    by_system = judge(make_card([{**claim, "unit": "system"}], **card), records)[0]
    assert by_system.verdict == "supported" and "(5 systems)" in by_system.reason
    by_cell = judge(make_card([{**claim, "unit": "cell"}], **card), records)[0]
    assert by_cell.verdict == "supported"
    unknown = judge(make_card([{**claim, "unit": "checkpoint"}], **card), records)[0]
    assert unknown.reason == "unit 'checkpoint' is neither an axis nor seed nor cell"


@pytest.mark.parametrize("ratio", [1.3, 0.9])
@pytest.mark.parametrize("canary", [ALARM, False, {"floor": None, "alarm": False}])
def test_no_verdict_on_time_without_a_quiet_canary(timing, ratio, canary):
    found = timing(ratio, canary=canary)
    assert found.verdict == "inconclusive"
    assert ("equal code differed by up to 3.00%" if canary == ALARM else "measured no A/A floor") in found.reason


def test_the_canary_has_no_say_in_memory_and_accuracy(make_card, judge, speed, trials):
    claim = {**FASTER, "estimate": {"ratio": "peak_bytes", "of": "a", "to": "b"}}
    records = [speed("a", [1.0] * 6, peak_bytes=300), speed("b", [1.0] * 6, peak_bytes=100)]
    found = judge(make_card([claim]), records, canary=ALARM)[0]
    assert found.verdict == "supported" and "1 cell" in found.reason
    assert trials(-0.5, canary=ALARM).verdict == "supported"


@pytest.mark.parametrize(
    ("ratio", "rule", "floor", "verdict"),
    [
        (1.02, ("> 1.00", "< 1.00"), 0.0, "supported"),
        (1.02, ("> 1.00", "< 1.00"), 0.04, "inconclusive"),
        (1.08, ("> 1.00", "< 1.00"), 0.04, "supported"),
        (0.98, ("> 1.00", "< 1.00"), 0.0, "refuted"),
        (0.98, ("> 1.00", "< 1.00"), 0.04, "inconclusive"),
        (1.00, ("inside [0.98, 1.02]", "outside [0.98, 1.02]"), 0.01, "supported"),
        (1.00, ("inside [0.98, 1.02]", "outside [0.98, 1.02]"), 0.04, "inconclusive"),
        (1.03, ("inside [0.98, 1.02]", "outside [0.98, 1.02]"), 0.01, "refuted"),
        (1.03, ("inside [0.98, 1.02]", "outside [0.98, 1.02]"), 0.04, "inconclusive"),
        (1.30, ("> 1.25", "< 1.2"), 0.04, "supported"),
    ],
)
def test_nothing_inside_the_floor_is_decided(timing, ratio, rule, floor, verdict):
    found = timing(ratio, {"supported_if": rule[0], "refuted_if": rule[1]}, noise=0.003,
                   canary={"floor": floor, "alarm": False})
    assert found.verdict == verdict
    assert ("A/A floor of 4.00%" in found.reason) == (floor == 0.04 and "1.25" not in rule[0])
    assert (found.parts[0].supported_if, found.parts[0].refuted_if) == rule


def test_a_band_that_the_floor_swallows_is_said_to_be_empty(timing):
    found = timing(1.00, {"supported_if": "inside [0.98, 1.02]", "refuted_if": "outside [0.98, 1.02]"}, noise=0.003,
                   canary={"floor": 0.04, "alarm": False})
    assert "the card's band, of which the A/A floor leaves nothing" in found.reason


# Requirements and custom estimates ------------------------------------------------------------------------------------


def requirement(holds_if, **changes):
    return {"requires": [{"experiment": "timing", "estimate": {"mean": "bandwidth", "of": "b"}, "holds_if": holds_if,
                          "otherwise": "a pass is compute bound here", **changes}]}


def test_a_requirement_that_holds_changes_nothing(timing):
    assert timing(claim=requirement("> 1e8")).verdict == "supported"


def test_a_requirement_that_fails_is_the_reason(timing):
    found = timing(claim=requirement("> 1e15"))
    assert (found.verdict, found.parts) == ("not run", ())
    assert found.reason.startswith("a pass is compute bound here (9.9") and "needs > 1e15" in found.reason


def test_a_requirement_that_cannot_be_known_is_not_met(timing):
    found = timing(claim=requirement("> 1", where={"input_bytes": "> memory"}))
    assert found.reason == "no cell has input_bytes > memory (8 GiB)"


def test_a_requirement_of_any_point(timing):
    points = {"points": [{"n": 1}, {"n": 2}], "axes": {"n": [1, 2]}}
    every = requirement("> 1.1", estimate=RATIO)
    some = requirement("> 1.1", estimate=RATIO, points="any")
    claim = {"supported_if": "> 0.5", "refuted_if": "< 0.5"}
    assert timing([1.3, 1.0], {**claim, **every}, **points).verdict == "not run"
    assert timing([1.3, 1.0], {**claim, **some}, **points).verdict == "supported"


CUSTOM = {"id": "own", "experiment": "trials", "estimate": {"custom": "mine", "params": {"k": 2}},
          "supported_if": "> 1", "refuted_if": "< 1"}


@pytest.fixture
def own(make_card, judge, trial):
    def make(function, claim=None, records=None, **card):
        records = records or [trial(arm, {"loss": 1.0 + seed}, seed=seed) for seed in range(5) for arm in "abc"]
        return judge(make_card([{**CUSTOM, **(claim or {})}], **card), records, custom={"mine": function})[0]

    return make


def test_custom_estimates_decide(own):
    found = own(lambda records, level, k: Estimate(k * records["loss"].mean(), 4, 8, 5, level))
    assert found.verdict == "supported" and found.reason.startswith("mine 6, 95 % interval [4, 8] lies wholly above 1")


def raising(error):
    def function(records, level, k):
        raise error

    return function


def test_custom_estimates_see_all_points_at_once(own, trial):
    seen = []

    def function(records, level, k):
        seen.append(set(records["n"]))
        records["loss"] = math.nan  # what it does to its rows stays with it
        return Estimate(2, 2, 2, 5)

    places = [(seed, n, arm) for seed in range(5) for n in (1, 2) for arm in "abc"]
    records = [trial(arm, {"loss": 1.0}, seed=seed, point={"n": n}) for seed, n, arm in places]
    assert own(function, records=records, trials={"axes": {"n": [1, 2]}}).verdict == "supported"
    assert seen == [{1, 2}]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (raising(NotTestable("a pass is compute bound")), "a pass is compute bound"),
        (raising(NotTestable()), "its question cannot be asked on this machine"),
        (raising(ZeroDivisionError("division by zero")), "estimate 'mine' failed: ZeroDivisionError: division by zero"),
        (raising(SystemError("deep")), "estimate 'mine' failed: SystemError: deep"),
        (lambda records, level: None, "estimate 'mine' failed: TypeError"),
        (lambda records, level, k: None, "estimate 'mine' failed: TypeError: it returned NoneType, not an Estimate"),
        (lambda records, level, k: Estimate(1, 0, 2, 5, level=0.5), "asked for the level 0.95 and gave one at 0.5"),
        (lambda records, level, k: Estimate(1, 3, 2, 5), "is upside down"),
    ],
)
def test_what_a_custom_estimate_raises_is_the_reason(own, function, reason):
    found = own(function)
    assert found.verdict == "not run" and reason in found.reason


def test_a_custom_estimate_that_is_not_registered(own, make_card, judge, trial):
    found = judge(make_card([CUSTOM]), [trial(arm, {"loss": 1.0}) for arm in "abc"])[0]
    assert found.reason == "estimate 'mine' failed: KeyError: 'mine'"


def test_a_custom_estimate_does_without_a_peer_that_is_not_installed(own, trial):
    def good(records, level, k):
        return Estimate(2, 2, 2, 5)

    def records(arm_status):
        return [trial(arm, {"loss": 1.0}, seed=seed, status=arm_status.get((arm, seed), arm_status.get(arm, "ok")))
                for seed in range(5) for arm in "abc"]

    assert own(good, records=records({"c": "skipped"})).verdict == "supported"
    assert own(good, records=records({("c", 3): "skipped"})).verdict == "not run"
    assert own(good, records=records({"c": "crashed"})).verdict == "not run"
    named = {"estimate": {"custom": "mine", "params": {"arms": ["a", "c"]}}}
    assert own(good, named, records({"c": "skipped"})).verdict == "not run"
    assert own(good, records=records({"a": "skipped", "b": "skipped", "c": "skipped"})).verdict == "not run"


# What must not matter -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(make_card, frame):
    """A card with a claim of each kind of verdict and kind of estimate, and its records."""
    claims = [
        {**FASTER, "points": "all"}, {**FASTER, "id": "slower", "estimate": {"ratio": "time", "of": "b", "to": "a"}},
        {**FASTER, "id": "same", "estimate": {"ratio": "time", "of": "c", "to": "best(a, b)"}},
        {**FASTER, "id": "growth", "estimate": {"slope": "time", "against": "n", "of": "a"}},
        LOWER, {**LOWER, "id": "pooled", "points": "pool", "estimate": {"mean": "loss", "of": "a"}},
        {**LOWER, "id": "ordered", "estimate": {"ordering": "loss", "rising": ["a", "b", "c"]}},
        {**LOWER, "id": "share", "points": "pool", "estimate": {"fraction": "loss", "of": "a", "holds_if": "> 0.6"},
         "supported_if": "> 0.9", "refuted_if": "< 0.5"},
        {**LOWER, "id": "ranks", "estimate": {"rank_correlation": ["loss", "acc"]}},
        {**LOWER, "id": "elsewhere", "where": {"n": "> 77"}},
    ]
    card = make_card(claims, timing={"kind": "speed", "axes": {"n": [1, 2]}}, trials={"axes": {"n": [1, 2]}})
    rng = np.random.default_rng(11)
    columns = {"suite": "fam/slug", "device": "cpu", "profile": "small", "status": "ok", "card_version": 1, "code": "k"}
    records = []
    for n in (1, 2):
        for arm, center in {"a": 1.3e6, "b": 1e6, "c": 1.02e6}.items():
            times = [round(float(t)) for t in center * n * np.exp(rng.normal(0, 0.01, 24))]
            samples = Samples([u // 8 for u in range(24)], [u % 8 for u in range(24)], [0] * 24, [1] * 24, times)
            records.append(Record(cell=f"t{n}", experiment="timing", kind="speed", arm=arm, point={"n": n}, seed=0,
                                  samples=samples, input_bytes=4, bytes_moved=1.0, flops=1.0, **columns))
        for seed in range(5):
            for arm, center in {"a": 0.5, "b": 1.0, "c": 1.02}.items():
                metrics = {"loss": center + 0.01 * float(rng.normal()), "acc": float(rng.normal())}
                records.append(Record(cell=f"r{n}{seed}", experiment="trials", kind="trial", arm=arm, point={"n": n},
                                      seed=seed, metrics=metrics, **columns))
    return card, records


@pytest.fixture(scope="module")
def mixed_verdicts(mixed, judge):
    return everything(judge, *mixed)


def everything(judge, card, records):
    return [verdict.to_dict() for verdict in judge(card, records)]


def test_all_four_verdicts_occur_and_are_strict_json(mixed_verdicts):
    assert {row["verdict"] for row in mixed_verdicts} == set(VERDICTS)
    assert all(row["reason"] for row in mixed_verdicts)
    json.dumps(mixed_verdicts, allow_nan=False)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_order_of_records_does_not_matter(mixed, mixed_verdicts, judge, seed):
    card, records = mixed
    shuffled = random.Random(seed).sample(records, len(records))
    assert everything(judge, card, shuffled) == mixed_verdicts


@pytest.mark.parametrize("scale", [3, 1000, 10**6])
def test_the_unit_of_time_does_not_matter_to_a_ratio(mixed, mixed_verdicts, judge, scale):
    card, records = mixed
    scaled = [dataclasses.replace(record, samples=dataclasses.replace(
        record.samples, elapsed_ns=[scale * time for time in record.samples.elapsed_ns])) for record in records]
    for before, after in zip(mixed_verdicts, everything(judge, card, scaled), strict=True):
        assert before["verdict"] == after["verdict"]
        for one, two in zip(before["parts"], after["parts"], strict=True):
            if one["estimate"] is not None:
                ends = [(part["estimate"][name]) for part in (one, two) for name in ("low", "point", "high")]
                assert ends[:3] == pytest.approx(ends[3:], rel=1e-9)


def test_an_unrelated_experiment_or_suite_does_not_matter(mixed, mixed_verdicts, judge, trial, speed, noisy):
    card, records = mixed
    more = [trial("a", {"loss": 99.0}, experiment="unknown", seed=9), speed("a", noisy(9), experiment="unknown"),
            trial("a", {"loss": math.nan}, suite="fam/other", card_version=7, device="cuda:0")]
    assert everything(judge, card, more + records) == mixed_verdicts


def test_tables_without_categoricals_are_judged_alike(mixed, mixed_verdicts, frame):
    card, records = mixed
    table = frame(records)
    plain = pd.DataFrame({name: table[name].astype(object) for name in table.columns}).infer_objects()
    found = judge_suite("fam/slug", card, plain, {}, {"floor": 0.0, "alarm": False}, {}.__getitem__)
    assert [verdict.to_dict() for verdict in found] == mixed_verdicts
